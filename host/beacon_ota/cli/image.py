"""``beacon-ota image``: build and inspect release and flash images."""

import secrets
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota import text_files
from beacon_ota.console import output
from beacon_ota.errors import UsageError

if TYPE_CHECKING:
    from beacon_ota.images.app_folder import AppFolder
    from beacon_ota.images.boards import Board
    from beacon_ota.images.combined import Core
    from beacon_ota.images.release import Release

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Build and inspect release and flash images."
)

MAX_FILE = 32 << 20  # bytes of anything we read
NEW = "new"
_SHOWN = 12  # lines of files that are named one by one
_BUILD, _PARTS, _SETTINGS = "What goes in", "From parts", "Settings"

BoardOption = Annotated[str, typer.Option(help="Board: its name, or its folder.")]
VersionOption = Annotated[
    str | None, typer.Option("--version", help="Semver of the release.", rich_help_panel=_BUILD)
]
CoreOption = Annotated[
    Path | None,
    typer.Option(
        "--core",
        help="MicroPython [default: BEACON_OTA_CORE, or the fetched one].",
        rich_help_panel=_BUILD,
    ),
]
SyntheticOption = Annotated[
    bool,
    typer.Option(
        "--synthetic",
        help="A stand-in for the core: virtual beacons run it, chips do not.",
        rich_help_panel=_BUILD,
    ),
]
AppOption = Annotated[
    Path | None,
    typer.Option("--app", help="Folder of the app [default: our own].", rich_help_panel=_BUILD),
]
FrozenOption = Annotated[
    bool,
    typer.Option(
        "--frozen", help="The app is frozen into the core: add only keys.", rich_help_panel=_BUILD
    ),
]
KeysOption = Annotated[
    Path | None,
    typer.Option(
        help="keys.json: whose releases are installed after this one.", rich_help_panel=_BUILD
    ),
]
InsecureOption = Annotated[
    bool,
    typer.Option("--insecure", help="Install releases that nobody signed.", rich_help_panel=_BUILD),
]
BuiltAtOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="UTC seconds [default: SOURCE_DATE_EPOCH, or the newest commit].",
        rich_help_panel=_BUILD,
    ),
]
AddOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=FILE", help="One more file, e.g. ca.der.", rich_help_panel=_BUILD),
]
IncludeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Files of the app's folder that go in as they are, e.g. *.json.",
        rich_help_panel=_BUILD,
    ),
]
WithoutAgentOption = Annotated[
    bool,
    typer.Option(
        "--without-agent",
        help="The app never updates itself, and that is meant.",
        rich_help_panel=_BUILD,
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("-o", "--out", help="Where it goes [default: named by itself].")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Any image, table, NVS or filesystem.")],
    secrets: Annotated[bool, typer.Option("--secrets", help="Show passwords and keys.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 if anything is bad.")] = False,
    json: JsonOption = False,
) -> None:
    """Say what a file is, and what is good and bad about it."""
    from beacon_ota.inspect import inspect as inspection

    report = inspection.inspect_file(_read(file), secrets=secrets)
    if json:
        output.print_json({"file": str(file), **report.as_dict()})
    else:
        from beacon_ota.cli._support import inspection as page

        page.show(str(file), report)
    if check and not report.ok:
        raise typer.Exit(1)


@app.command()
def build(
    version: VersionOption = None,
    board: BoardOption = "esp32c3",
    core: CoreOption = None,
    synthetic: SyntheticOption = False,
    app: AppOption = None,
    frozen: FrozenOption = False,
    keys: KeysOption = None,
    insecure: InsecureOption = False,
    built_at: BuiltAtOption = None,
    add: AddOption = None,
    include: IncludeOption = None,
    without_agent: WithoutAgentOption = False,
    out: OutOption = None,
    json: JsonOption = False,
) -> None:
    """Build a release image: core and app as one file for a slot."""
    from beacon_ota.images import boards, release
    from beacon_ota.trust import files

    target = boards.load_board(board)
    found = _core(core, synthetic)
    data, content = _build(
        target,
        found,
        version,
        app,
        frozen,
        keys,
        insecure,
        built_at,
        add,
        include,
        without_agent,
    )
    built = release.parse_release(data)
    out = out or Path(f"{target.name}-{built.info.version}.bin")
    files.write_file(out, data)
    _tell(out, built, target, json, {}, content)


@app.command()
def flash(
    board: BoardOption = "esp32c3",
    release: Annotated[
        Path | None, typer.Option(help="A release image.", rich_help_panel=_PARTS)
    ] = None,
    bootloader: Annotated[
        Path | None,
        typer.Option(
            help="Bootloader [default: the one that came with the core].", rich_help_panel=_PARTS
        ),
    ] = None,
    version: VersionOption = None,
    core: CoreOption = None,
    synthetic: SyntheticOption = False,
    app: AppOption = None,
    frozen: FrozenOption = False,
    keys: KeysOption = None,
    insecure: InsecureOption = False,
    built_at: BuiltAtOption = None,
    add: AddOption = None,
    include: IncludeOption = None,
    without_agent: WithoutAgentOption = False,
    beacon_id: Annotated[
        str | None, typer.Option(help="The beacon's name.", rich_help_panel=_SETTINGS)
    ] = None,
    beacon_key: Annotated[
        str | None,
        typer.Option(help="Its key: 64 hex, a file of it, or: new.", rich_help_panel=_SETTINGS),
    ] = None,
    fleet_key: Annotated[
        str | None,
        typer.Option(help="Fleet key: 32 hex, or a file of it.", rich_help_panel=_SETTINGS),
    ] = None,
    orch_url: Annotated[
        str | None,
        typer.Option(help="The orchestrator: http[s]://host:port.", rich_help_panel=_SETTINGS),
    ] = None,
    wifi_ssid: Annotated[
        str | None, typer.Option(help="Network.", rich_help_panel=_SETTINGS)
    ] = None,
    wifi_pass: Annotated[
        str | None, typer.Option(help="Its password.", rich_help_panel=_SETTINGS)
    ] = None,
    wifi_pass_file: Annotated[
        Path | None, typer.Option(help="File with its password.", rich_help_panel=_SETTINGS)
    ] = None,
    wifi2_ssid: Annotated[
        str | None, typer.Option(help="A second network.", rich_help_panel=_SETTINGS)
    ] = None,
    wifi2_pass: Annotated[
        str | None, typer.Option(help="Its password.", rich_help_panel=_SETTINGS)
    ] = None,
    wifi2_pass_file: Annotated[
        Path | None, typer.Option(help="File with its password.", rich_help_panel=_SETTINGS)
    ] = None,
    site: Annotated[
        str | None, typer.Option(help="Where it hangs.", rich_help_panel=_SETTINGS)
    ] = None,
    channel: Annotated[
        str | None, typer.Option(help="stable or beta.", rich_help_panel=_SETTINGS)
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(help="Local maintenance window, HH:MM-HH:MM.", rich_help_panel=_SETTINGS),
    ] = None,
    utc_off: Annotated[
        int | None,
        typer.Option(help="Minutes of local time before UTC.", rich_help_panel=_SETTINGS),
    ] = None,
    label: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV of provision label: PIN, name and proof of possession of the only row, or of "
            "the one that --ble-name names.",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    pin: Annotated[
        str | None,
        typer.Option(help="PIN of its label; needs --ble-name.", rich_help_panel=_SETTINGS),
    ] = None,
    ibeacon: Annotated[
        str | None,
        typer.Option(help="UUID:major:minor that it advertises.", rich_help_panel=_SETTINGS),
    ] = None,
    ble_name: Annotated[
        str | None,
        typer.Option(
            help="BLUFI_ and the last 6 digits of its address.", rich_help_panel=_SETTINGS
        ),
    ] = None,
    pop: Annotated[
        str | None,
        typer.Option(
            help="Proof of possession of its label, 8 to 64 characters.", rich_help_panel=_SETTINGS
        ),
    ] = None,
    nvs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Any other setting: text, hex:…, i32:….",
            rich_help_panel=_SETTINGS,
        ),
    ] = None,
    out: OutOption = None,
    json: JsonOption = False,
) -> None:
    """Build a flash image: everything a chip, or a virtual beacon, boots from."""
    from beacon_ota.images import boards, settings
    from beacon_ota.images import flash as flashes
    from beacon_ota.images import release as releases
    from beacon_ota.provision.desired_config import parse_position
    from beacon_ota.trust import files

    target = boards.load_board(board)
    made: dict[str, object] = {}
    if beacon_key == NEW:
        beacon_key = secrets.token_hex(32)
        made["beacon_key"] = beacon_key
    if label is not None:
        ble_name, pin, pop = _label(label, ble_name, pin, pop)
        made["ble_name"] = ble_name
    values = {
        "beacon_id": beacon_id,
        "beacon_key": _secret(beacon_key, 64),
        "fleet_key": _secret(fleet_key, 32),
        "orch_url": orch_url,
        "wifi_ssid": wifi_ssid,
        "wifi_pass": _password("wifi", wifi_pass, wifi_pass_file),
        "wifi2_ssid": wifi2_ssid,
        "wifi2_pass": _password("wifi2", wifi2_pass, wifi2_pass_file),
        "site": site,
        "channel": channel,
        "window": window,
        "utc_off": None if utc_off is None else str(utc_off),
        "pin_w": _pin(pin, ble_name),
        "pop": pop,
        "ibeacon": None if ibeacon is None else parse_position(ibeacon).hex(),
        **dict(_pair(text, "--nvs") for text in nvs or ()),
    }
    stored = settings.parse_settings(
        {key: value for key, value in values.items() if value is not None}
    )
    loader = _read(bootloader) if bootloader is not None else None
    found = content = None
    if release is None or loader is None:
        found = _core(core, synthetic)
    if release is not None:
        unused = (version, app, keys, built_at, add, include)
        if insecure or without_agent or frozen or any(option is not None for option in unused):
            raise UsageError(
                "options", "with --release, what goes into a release is decided already"
            )
        data = _read(release)
    else:
        assert found is not None
        data, content = _build(
            target,
            found,
            version,
            app,
            frozen,
            keys,
            insecure,
            built_at,
            add,
            include,
            without_agent,
        )
    if loader is None:
        loader = found.bootloader if found else None
    if loader is None:
        raise UsageError(
            "bootloader_missing",
            "this core came without a bootloader: take the official download, or name one with "
            "--bootloader",
        )
    image = flashes.build_flash(target, loader, data, stored)
    built = releases.parse_release(data)
    name = beacon_id or f"{target.name}-{built.info.version}"
    out = out or Path(f"{name}-flash.bin")
    files.write_file(out, image, mode=0o600 if settings.SECRETS & stored.keys() else 0o644)
    _tell(out, built, target, json, {**made, "settings": sorted(stored)}, content)


def _build(
    board: "Board",
    core: "Core",
    version: str | None,
    app: Path | None,
    frozen: bool,
    keys: Path | None,
    insecure: bool,
    built_at: int | None,
    add: list[str] | None,
    include: list[str] | None,
    without_agent: bool,
) -> tuple[bytes, "AppFolder"]:
    """Build a release from the options of a command; return what of the folder is in it, too."""
    from beacon_ota import paths
    from beacon_ota.images import app_folder, appfs, release
    from beacon_ota.images.app_folder import AppFolder
    from beacon_ota.images.appfs import AppError
    from beacon_ota.trust import KeySet

    found = AppFolder({})
    folder = app or paths.data_path("firmware", "app")
    if frozen:
        if app is not None:
            raise UsageError("options", "--app and --frozen exclude each other")
        version = _frozen_version(core, board, version)
    else:
        found = app_folder.scan_folder(folder, include or ())
        if not (found.has_agent or without_agent):
            raise AppError(
                "app_agent",
                "this main starts no update agent: a beacon that runs it is never updated again",
                found=f"{folder / 'main.py'} does not import {app_folder.AGENT}",
                expected="the app of firmware/app with your changes; or --without-agent",
            )
    if version is None:
        raise UsageError("version_missing", "a release needs --version", expected="e.g. 1.2.3")
    if keys is None and not insecure:
        raise UsageError(
            "keys_missing",
            "a beacon that trusts no keys can never be updated again: give --keys (beacon-ota "
            "keys export), or --insecure to install releases that nobody signed",
        )
    data = release.build_release(
        core.data,
        found.sources,
        version,
        board.device_type,
        built_at=appfs.build_time(folder) if built_at is None else built_at,
        keys=KeySet.parse(text_files.read_text(keys), name=str(keys)).to_json() if keys else None,
        insecure=insecure,
        extra={
            **found.files,
            **{name: _read(Path(file)) for name, file in (_pair(t, "--add") for t in add or ())},
        },
    )
    board.check_fit(len(data))
    return data, found


def _frozen_version(core: "Core", board: "Board", version: str | None) -> str:
    """Return the version of the app that is frozen into a core; check that it is what is asked."""
    from beacon_ota.images import release

    said = release.frozen_app(core.image)
    if said is None:
        raise UsageError("core_not_frozen", "no app is frozen into this core")
    if said[0] != board.device_type or version not in (None, said[1]):
        raise UsageError(
            "core_not_frozen",
            "another app is frozen into this core",
            found=" ".join(said),
            expected=f"{board.device_type} {version or said[1]}",
        )
    return said[1]


def _core(given: Path | None, synthetic: bool) -> "Core":
    from beacon_ota.images import combined, core
    from beacon_ota.images import synthetic as stand_in

    if not synthetic:
        return core.read_core(core.locate_core(given)[0])
    if given is not None:
        raise UsageError("options", "--core and --synthetic exclude each other")
    found = combined.parse_core(stand_in.app_image(64 * 1024))
    return combined.Core(found.data, found.image, stand_in.bootloader_image())


def _tell(
    out: Path,
    built: "Release",
    board: "Board",
    json: bool,
    more: dict[str, object],
    content: "AppFolder | None",
) -> None:
    """Print what was built, what of the app's folder is in it, and the room it leaves."""
    from beacon_ota.images.appfs import BUDGET

    facts = {
        "file": str(out),
        "board": board.name,
        "version": built.info.version,
        "device_type": built.info.device_type,
        "insecure": built.info.insecure,
        "interpreter": built.core.interpreter,
        "checksum": built.checksum,
        "size": built.size,
        "core_length": built.core.length,
        "app_size": built.app_size,
        "payload": built.payload,
        "slot_size": board.slot_size,
        "room": board.slot_size - built.size,
        **more,
    }
    if content is not None:
        facts |= {
            "modules": len(content.sources),
            "files": sorted(content.files),
            "left": dict(content.left),
        }
    if json:
        output.print_json(facts)
        return
    say = partial(output.print_markup, soft_wrap=True)
    say("[green]✓[/] [bold]{}[/]", out)
    say("  {} {}, SHA-256 {}", built.info.device_type, built.info.version, built.checksum)
    say("  core      {:>12,} bytes", built.core.length)
    say("  app       {:>12,} bytes, {:,} of it code", built.app_size, built.payload)
    if content is not None:
        _show_content(content)
    say("  slot      {:>12,} bytes, {:,} to spare", board.slot_size, facts["room"])
    if "beacon_key" in more:
        say("  new key   {}", more["beacon_key"])
    if built.core.interpreter is None:
        say("  [yellow]No MicroPython in it: for virtual beacons only.[/]")
    if built.payload > BUDGET:
        say("  [yellow]More than {:,} bytes of code: RAM runs short on the chip.[/]", BUDGET)
    if built.info.insecure:
        say("  [bold red]INSECURE: beacons that run it install releases nobody signed.[/]")


def _show_content(content: "AppFolder") -> None:
    say = partial(output.print_markup, soft_wrap=True)
    say("  packed    {:>12,} modules, {} other files", len(content.sources), len(content.files))
    for name in sorted(content.files)[:_SHOWN]:
        say("            {}", name)
    for name, reason in list(content.left.items())[:_SHOWN]:
        say("  [yellow]left out[/]  {}: {}", name, reason)
    if len(content.left) > _SHOWN:
        say("  [yellow]left out[/]  {} more; --json lists them", len(content.left) - _SHOWN)


def _read(file: Path) -> bytes:
    from beacon_ota.trust import files

    return files.read_file(file, MAX_FILE)


def _pair(text: str, option: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise UsageError("options", f"{option} takes NAME=VALUE", found=name)
    return name, value


def _secret(value: str | None, digits: int) -> str | None:
    """Return hex as given, or from the file named."""
    if value is None or len(value) == digits:
        return value
    return text_files.read_line(Path(value)).strip()


def _password(name: str, value: str | None, file: Path | None) -> str | None:
    if value is not None and file is not None:
        raise UsageError("options", f"--{name}-pass and --{name}-pass-file exclude each other")
    if file is None:
        return value
    return text_files.read_line(file)


def _label(
    file: Path, name: str | None, pin: str | None, pop: str | None
) -> tuple[str, str, str | None]:
    """Return name, PIN and proof of possession of a label."""
    from beacon_ota.provision import labels

    if pin is not None or pop is not None:
        raise UsageError("options", "--label brings PIN and proof of possession itself")
    found = labels.pick_label(text_files.read_text(file), name)
    return found.name, found.pin, found.pop or None


def _pin(pin: str | None, name: str | None) -> str | None:
    """Return what the beacon stores in place of its PIN, hex."""
    if pin is None:
        return None
    if name is None:
        raise UsageError("options", "--pin needs --ble-name: the PIN is bound to it")
    from beacon_ota.provision import labels, session

    return session.enroll_pin(labels.check_pin(pin), labels.check_name(name).encode()).hex()
