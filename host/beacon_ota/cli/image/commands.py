"""The commands of ``beacon-ota image``."""

from pathlib import Path
from typing import Annotated

import typer

from beacon_ota.cli._support.options import JsonOption, expand_groups
from beacon_ota.cli.image.build_report import print_build
from beacon_ota.cli.image.diff import diff_images
from beacon_ota.cli.image.files import read_image
from beacon_ota.cli.image.release_options import (
    BootloaderOption,
    ReleaseOption,
    ReleaseOptions,
    build_release,
    read_parts,
)
from beacon_ota.cli.image.settings_options import SettingsOptions
from beacon_ota.console import output

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Build and inspect release and flash images."
)

BoardOption = Annotated[str, typer.Option(help="Board: its name, or its folder.")]
OutOption = Annotated[
    Path | None, typer.Option("-o", "--out", help="Where it goes [default: named by itself].")
]


@app.command("inspect")
def inspect_file(
    file: Annotated[Path, typer.Argument(help="Any image, table, NVS or filesystem.")],
    secrets: Annotated[bool, typer.Option("--secrets", help="Show passwords and keys.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 if anything is bad.")] = False,
    json: JsonOption = False,
) -> None:
    """Say what a file is, and what is good and bad about it."""
    from beacon_ota.inspect import inspect as inspection

    report = inspection.inspect_file(read_image(file), secrets=secrets)
    if json:
        output.print_json({"file": str(file), **report.as_dict()})
    else:
        from beacon_ota.cli._support import inspection as view

        view.print_report(str(file), report)
    if check and not report.ok:
        raise typer.Exit(1)


app.command("diff")(diff_images)


@app.command("build")
@expand_groups
def build_image(
    *,
    options: ReleaseOptions,
    board: BoardOption = "esp32c3",
    out: OutOption = None,
    json: JsonOption = False,
) -> None:
    """Build a release image: core and app as one file for a slot."""
    from beacon_ota.images import boards, release
    from beacon_ota.trust import files

    target = boards.load_board(board)
    data, content = build_release(target, options.read_core(), options)
    built = release.parse_release(data)
    out = out or Path(f"{target.name}-{built.info.version}.bin")
    files.write_file(out, data)
    print_build(out, built, target, content, {}, as_json=json)


@app.command("flash")
@expand_groups
def build_flash_image(
    *,
    board: BoardOption = "esp32c3",
    release: ReleaseOption = None,
    bootloader: BootloaderOption = None,
    options: ReleaseOptions,
    settings: SettingsOptions,
    out: OutOption = None,
    json: JsonOption = False,
) -> None:
    """Build a flash image: everything a chip, or a virtual beacon, boots from."""
    from beacon_ota.images import boards, flash
    from beacon_ota.images import release as releases
    from beacon_ota.images.settings import SECRETS
    from beacon_ota.provision import labels
    from beacon_ota.trust import files

    target = boards.load_board(board)
    settings, shown = settings.draw_secrets()
    stored = settings.parse_values()
    settings.warn_of_utc()
    loader, data, content = read_parts(target, release, bootloader, options)
    address = b""
    if settings.ble_name is not None:
        address = labels.chip_address(
            labels.check_name(settings.ble_name), str(shown.get("mac", ""))
        )
    image = flash.build_flash(target, loader, data, stored, address=address)
    built = releases.parse_release(data)
    name = settings.beacon_id or f"{target.name}-{built.info.version}"
    out = out or Path(f"{name}-flash.bin")
    files.write_file(out, image, mode=0o600 if SECRETS & stored.keys() else 0o644)
    more = {**shown, "settings": sorted(stored)}
    print_build(out, built, target, content, more, as_json=json)
