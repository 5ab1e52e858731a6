"""``beacon-ota flash-batch``: label, build and flash boards as they are plugged in."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota.cli._support.options import JsonOption, expand_groups
from beacon_ota.cli.flash import After, Before
from beacon_ota.cli.image.release_options import (
    BootloaderOption,
    ReleaseOption,
    ReleaseOptions,
    read_parts,
)
from beacon_ota.cli.image.settings_options import SettingsOptions
from beacon_ota.console import output
from beacon_ota.errors import UsageError

if TYPE_CHECKING:
    from beacon_ota.device.board_batch import BoardResult
    from beacon_ota.provision.labels import Label

app = typer.Typer(
    add_completion=False, help="Label, build and flash boards as they are plugged in."
)

_OWN = ("beacon_id", "beacon_key", "label", "pin", "pop", "ble_name", "ibeacon")  # of one beacon


@app.command("flash-batch")
@expand_groups
def flash_boards(
    file: Annotated[
        Path, typer.Argument(metavar="LABELS", help="CSV of labels and results; goes on with it.")
    ],
    *,
    port: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Ports, e.g. '/dev/ttyUSB*' [default: those of Espressif's chips].",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="End after so many flashed boards.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also boards that were flashed before.")
    ] = False,
    board: Annotated[str, typer.Option(help="Board: its name, or its folder.")] = "esp32c3",
    release: ReleaseOption = None,
    bootloader: BootloaderOption = None,
    options: ReleaseOptions,
    settings: SettingsOptions,
    baud: Annotated[int, typer.Option(min=9600, help="Speed of the transfer.")] = 460_800,
    erase_all: Annotated[
        bool, typer.Option("--erase-all", help="Erase the whole flash first.")
    ] = False,
    before: Annotated[Before, typer.Option(help="How a chip gets into its loader.")] = (
        Before.DEFAULT
    ),
    after: Annotated[After, typer.Option(help="What it does when it is written.")] = After.HARD,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts to connect.")] = 7,
    json: JsonOption = False,
) -> None:
    """Label, build and flash boards as they are plugged in, one after the other.

    Each board gets a PIN of its own; the CSV says which, and what was done with the board. Ctrl-C
    ends it; called again it goes on: boards that are flashed are left alone, the others keep their
    labels. Exit code 1 when a board failed and was not flashed afterwards.
    """
    from beacon_ota.device import board_batch, board_log
    from beacon_ota.images import boards
    from beacon_ota.images import release as releases

    if given := [name for name in _OWN if getattr(settings, name) is not None]:
        raise UsageError(
            "options", f"--{given[0].replace('_', '-')} is of one beacon, and this is for many"
        )
    target = boards.load_board(board)
    loader, data, _ = read_parts(target, release, bootloader, options)
    parsed = releases.parse_release(data)
    version = parsed.info.version
    if parsed.core.interpreter is None:
        output.print_markup(
            "[yellow]No MicroPython in it: for virtual beacons only.[/]", to=output.error_console
        )
    settings.parse_values()  # refused before a board is waited for
    settings.warn_of_utc()

    def build_image(label: "Label") -> bytes:
        from beacon_ota.images import flash
        from beacon_ota.provision.labels import chip_address

        own = replace(settings, ble_name=label.name, pin=label.pin, pop=label.pop)
        return flash.build_flash(
            target,
            loader,
            data,
            own.parse_values(),
            address=chip_address(label.name, label.mac),
        )

    how = {
        "baud": baud,
        "erase_all": erase_all,
        "before": before.value,
        "after": after.value,
        "attempts": attempts,
    }
    flashed: list[str] = []
    failed: set[str] = set()
    with board_log.open_log(file) as log:
        batch = board_batch.BoardBatch(log, build_image, version, again=again, how=how)
        find = functools.partial(board_batch.find_ports, port or [])
        if not json:
            output.print_markup("Plug in a board; Ctrl-C ends this. Labels are in {}", file)
        try:
            for name, mac in board_batch.new_ports(
                find, go_on=lambda: count is None or len(flashed) < count
            ):
                if mac and batch.is_done(mac):
                    continue
                with output.byte_progress(f"{name}", None, quiet=json) as advance:
                    result = batch.flash_board(name, advance)
                who = result.row.label.mac if result.row else name
                failed.discard(name)
                (failed.add if result.error else failed.discard)(who)
                if result.done:
                    flashed.append(who)
                if not json:
                    _print_result(result)
        except KeyboardInterrupt:
            pass
        rows = [row.as_dict() for row in log.rows.values()]
    if json:
        output.print_json(rows)
    else:
        output.print_markup("{} flashed, {} failed", len(flashed), len(failed))
    if failed:
        raise typer.Exit(1)


def _print_result(result: "BoardResult") -> None:
    """Print what became of a board, and what to write on its label."""
    if result.error is not None:
        output.print_markup("[red]✗[/] {}", result.port)
        output.print_error(result.error)
        output.print_markup("  unplug it, and plug it in again to try once more")
        return
    assert result.row is not None
    label = result.row.label
    word = "was flashed before" if result.known else "is flashed"
    output.print_markup("[green]✓[/] {} {}: PIN {}", label.name, word, label.pin)
