"""``beacon-ota flash``: write a flash image to a chip and verify it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from beacon_ota.console import output
from beacon_ota.errors import UsageError

app = typer.Typer(add_completion=False, help="Write a flash image to a chip and verify it.")


class Before(StrEnum):
    """How a chip gets into its loader."""

    DEFAULT = "default-reset"
    USB = "usb-reset"
    NONE = "no-reset"


class After(StrEnum):
    """What a chip does when it is written."""

    HARD = "hard-reset"
    WATCHDOG = "watchdog-reset"
    NONE = "no-reset"


@app.command()
def flash(
    port: Annotated[str, typer.Argument(help="Serial port, e.g. /dev/ttyACM0.")],
    image: Annotated[
        Path | None, typer.Argument(help="A flash image: beacon-ota image flash.")
    ] = None,
    address: Annotated[
        bool, typer.Option("--address", help="Write nothing; print the chip's address.")
    ] = False,
    baud: Annotated[int, typer.Option(min=9600, help="Speed of the transfer.")] = 460_800,
    erase_all: Annotated[
        bool, typer.Option("--erase-all", help="Erase the whole flash first.")
    ] = False,
    stub: Annotated[bool, typer.Option(help="Run esptool's flasher on the chip: faster.")] = True,
    before: Annotated[Before, typer.Option(help="How the chip gets into its loader.")] = (
        Before.DEFAULT
    ),
    after: Annotated[After, typer.Option(help="What it does when it is written.")] = After.HARD,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts to connect.")] = 7,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write what the image uses of the flash, verify it, and start the chip."""
    from beacon_ota.device import chip
    from beacon_ota.trust import files

    if address == (image is not None):
        raise UsageError("options", "name a flash image, or ask for the chip's --address")
    if image is None:
        found = chip.read_mac_address(
            port, before=before.value, after=after.value, attempts=attempts
        )
        if json:
            output.print_json({"port": port, "address": found})
        else:
            typer.echo(found)
        return
    data = files.read_file(image, 32 << 20)
    total = sum(length for _, length in chip.flash_regions(data))
    with output.byte_progress(f"Writing to {port}", total, quiet=json) as advance:
        done = chip.write_image(
            port,
            data,
            baud=baud,
            erase_all=erase_all,
            stub=stub,
            before=before.value,
            after=after.value,
            attempts=attempts,
            progress=advance,
        )
    if json:
        output.print_json(vars(done))
        return
    text = f"{done.chip} {done.mac}: {done.size:,} bytes in {done.seconds:.1f} s, verified"
    output.print_markup("[green]✓[/] {}", text)
