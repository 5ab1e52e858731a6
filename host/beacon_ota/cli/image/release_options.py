"""What goes into a release: the options of ``image build`` and ``image flash``, and the build."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota import text_files
from beacon_ota.cli._support.options import OptionGroup
from beacon_ota.cli.image.files import parse_pair, read_image
from beacon_ota.errors import UsageError

if TYPE_CHECKING:
    from beacon_ota.images.app_folder import AppFolder
    from beacon_ota.images.boards import Board
    from beacon_ota.images.combined import Core

_PANEL = "What goes in"
_PARTS = "From parts"
_SYNTHETIC_SIZE = 64 * 1024  # bytes of the stand-in for a core
_CORE_FIELDS = ("core", "synthetic")

ReleaseOption = Annotated[
    Path | None, typer.Option("--release", help="A release image.", rich_help_panel=_PARTS)
]
BootloaderOption = Annotated[
    Path | None,
    typer.Option(
        "--bootloader",
        help="Bootloader [default: the one that came with the core].",
        rich_help_panel=_PARTS,
    ),
]


@dataclass(frozen=True)
class ReleaseOptions(OptionGroup):
    """What a release is built from."""

    version: Annotated[
        str | None,
        typer.Option("--version", help="Semver of the release.", rich_help_panel=_PANEL),
    ] = None
    core: Annotated[
        Path | None,
        typer.Option(
            "--core",
            help="MicroPython [default: BEACON_OTA_CORE, or the fetched one].",
            rich_help_panel=_PANEL,
        ),
    ] = None
    synthetic: Annotated[
        bool,
        typer.Option(
            "--synthetic",
            help="A stand-in for the core: virtual beacons run it, chips do not.",
            rich_help_panel=_PANEL,
        ),
    ] = False
    app: Annotated[
        Path | None,
        typer.Option("--app", help="Folder of the app [default: our own].", rich_help_panel=_PANEL),
    ] = None
    frozen: Annotated[
        bool,
        typer.Option(
            "--frozen",
            help="The app is frozen into the core: add only keys.",
            rich_help_panel=_PANEL,
        ),
    ] = False
    keys: Annotated[
        Path | None,
        typer.Option(
            help="keys.json: whose releases are installed after this one.", rich_help_panel=_PANEL
        ),
    ] = None
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Install releases that nobody signed.", rich_help_panel=_PANEL
        ),
    ] = False
    built_at: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="UTC seconds [default: SOURCE_DATE_EPOCH, or the newest commit].",
            rich_help_panel=_PANEL,
        ),
    ] = None
    add: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", help="One more file, e.g. ca.der.", rich_help_panel=_PANEL
        ),
    ] = None
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Files of the app's folder that go in as they are, e.g. *.json.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    like: Annotated[
        Path | None,
        typer.Option(
            help="An earlier release image: what did not change stays where it is in it, so that "
            "beacons fetch and write less.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    without_agent: Annotated[
        bool,
        typer.Option(
            "--without-agent",
            help="The app never updates itself, and that is meant.",
            rich_help_panel=_PANEL,
        ),
    ] = False

    def check_unused(self) -> None:
        """Refuse options beside the core's, for a release that is built already.

        Raises:
            UsageError: ``options``.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in _CORE_FIELDS and value is not None and value is not False:
                raise UsageError(
                    "options", "with --release, what goes into a release is decided already"
                )

    def read_core(self) -> "Core":
        """Return the core that is named or fetched, or a synthetic one.

        Raises:
            UsageError: ``options``, ``core_missing``, ``file_missing``.
            ImageError, PartitionError: the file holds no core.
        """
        from beacon_ota.images import combined, core
        from beacon_ota.images import synthetic as stand_in

        if not self.synthetic:
            return core.read_core(core.locate_core(self.core)[0])
        if self.core is not None:
            raise UsageError("options", "--core and --synthetic exclude each other")
        found = combined.parse_core(stand_in.app_image(_SYNTHETIC_SIZE))
        return combined.Core(found.data, found.image, stand_in.bootloader_image())


def build_release(
    board: "Board", core: "Core", options: ReleaseOptions
) -> tuple[bytes, "AppFolder"]:
    """Build a release for a board.

    Returns:
        The image, and which files of the app's folder are in it.

    Raises:
        UsageError: ``options``, ``version_missing``, ``keys_missing``, ``core_not_frozen``.
        AppError: ``app_agent``, and as :func:`beacon_ota.images.release.build_release`.
        BoardError: ``slot_too_small``.
    """
    from beacon_ota import paths
    from beacon_ota.images import appfs, release
    from beacon_ota.images.app_folder import AppFolder
    from beacon_ota.trust import KeySet

    folder = options.app or paths.data_path("firmware", "app")
    version = options.version
    if options.frozen:
        if options.app is not None:
            raise UsageError("options", "--app and --frozen exclude each other")
        content = AppFolder({})
        version = _check_frozen_version(core, board, version)
    else:
        content = _scan_app(folder, options)
    if version is None:
        raise UsageError("version_missing", "a release needs --version", expected="e.g. 1.2.3")
    keys = None
    if options.keys is not None:
        text = text_files.read_text_file(options.keys)
        keys = KeySet.parse(text, name=str(options.keys)).to_json()
    elif not options.insecure:
        raise UsageError(
            "keys_missing",
            "a beacon that trusts no keys can never be updated again: give --keys (beacon-ota "
            "keys export), or --insecure to install releases that nobody signed",
        )
    added = dict(parse_pair(text, "--add") for text in options.add or ())
    built_at = appfs.build_time(folder) if options.built_at is None else options.built_at
    data = release.build_release(
        core.data,
        content.sources,
        version,
        board.device_type,
        built_at=built_at,
        keys=keys,
        insecure=options.insecure,
        extra={
            **content.files,
            **{name: read_image(Path(file)) for name, file in added.items()},
        },
        like=None if options.like is None else read_image(options.like),
        slot_size=board.slot_size,
    )
    board.check_fit(len(data))
    return data, content


def read_parts(
    board: "Board", release: Path | None, bootloader: Path | None, options: ReleaseOptions
) -> tuple[bytes, bytes, "AppFolder | None"]:
    """Return bootloader and release of a flash image, and what of the app's folder is in it.

    The last is None for a release that was built before.

    Raises:
        UsageError: ``bootloader_missing``, and as :func:`build_release`.
    """
    loader = read_image(bootloader) if bootloader is not None else None
    core = options.read_core() if release is None or loader is None else None
    content = None
    if release is not None:
        options.check_unused()
        data = read_image(release)
    else:
        assert core is not None
        data, content = build_release(board, core, options)
    if loader is None:
        loader = core.bootloader if core else None
    if loader is None:
        raise UsageError(
            "bootloader_missing",
            "this core came without a bootloader: take the official download, or name one with "
            "--bootloader",
        )
    return loader, data, content


def _scan_app(folder: Path, options: ReleaseOptions) -> "AppFolder":
    """Scan the app's folder; refuse an app that never starts the update agent."""
    from beacon_ota.images import app_folder
    from beacon_ota.images.appfs import AppError

    content = app_folder.scan_folder(folder, options.include or ())
    if not (content.has_agent or options.without_agent):
        raise AppError(
            "app_agent",
            "this main starts no update agent: a beacon that runs it is never updated again",
            found=f"{folder / 'main.py'} does not import {app_folder.AGENT}",
            expected="the app of firmware/app with your changes; or --without-agent",
        )
    return content


def _check_frozen_version(core: "Core", board: "Board", version: str | None) -> str:
    """Return the version of the app that is frozen into a core.

    Raises:
        UsageError: ``core_not_frozen``: no app, or an app for another board or of another version.
    """
    from beacon_ota.images import release

    frozen = release.frozen_app(core.image)
    if frozen is None:
        raise UsageError("core_not_frozen", "no app is frozen into this core")
    if frozen[0] != board.device_type or version not in (None, frozen[1]):
        raise UsageError(
            "core_not_frozen",
            "another app is frozen into this core",
            found=" ".join(frozen),
            expected=f"{board.device_type} {version or frozen[1]}",
        )
    return frozen[1]
