"""``beacon-ota core``: fetch and show MicroPython cores."""

from pathlib import Path
from typing import Annotated

import typer

from beacon_ota.console import output
from beacon_ota.errors import UsageError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Fetch and show MicroPython cores."
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def fetch(
    url: Annotated[
        str | None, typer.Option(help="Another server's copy [default: micropython.org].")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also if it is there already.")] = False,
    json: JsonOption = False,
) -> None:
    """Download the stock core for the C3 into the cache, and check its SHA-256."""
    from beacon_ota.images import core

    stock = core.STOCK
    if url is not None and not url.startswith(("http://", "https://")):
        raise UsageError("core_url", "not a URL", found=url, expected="http:// or https://")
    with output.byte_progress(f"MicroPython {stock.version}", stock.size, quiet=json) as advance:
        file = core.fetch_core(
            stock, progress=lambda done, total: advance(done), again=again, url=url
        )
    if json:
        output.print_json({"file": str(file), "version": stock.version, "sha256": stock.sha256})
    else:
        output.print_markup("{} is in [cyan]{}[/]", stock.version, file)


@app.command()
def show(
    file: Annotated[
        Path | None, typer.Option("--core", help="Core [default: BEACON_OTA_CORE, or fetched].")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show which core would be used, and on which boards it fits."""
    from beacon_ota.images import boards, core, release

    path, source = core.locate_core(file)
    found = core.read_core(path)
    rooms = {
        name: boards.load_board(name).slot_size - release.app_offset(len(found.data))
        for name in boards.board_names()
    }
    facts = {
        "file": str(path),
        "source": source,
        "interpreter": found.image.interpreter,
        "idf": found.image.descriptor.idf,
        "length": len(found.data),
        "bootloader": found.bootloader_image.idf if found.bootloader_image else None,
        "room": rooms,
    }
    if json:
        output.print_json(facts)
        return
    for name in ("file", "source", "interpreter", "idf", "length", "bootloader"):
        output.print_markup("[bold]{:12}[/] {}", name, facts[name] or "–")
    for name, room in rooms.items():
        text = (
            f"{room:,} bytes for the app" if room > 0 else f"[red]too large by {-room:,} bytes[/]"
        )
        output.print_markup("[bold]{:12}[/] {}", name, text)
