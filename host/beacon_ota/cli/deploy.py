"""``beacon-ota deploy``: copy the app to a board that runs MicroPython, for development."""

from pathlib import Path
from typing import Annotated

import typer

from beacon_ota.console import output

app = typer.Typer(
    add_completion=False, help="Copy the app to a board that runs MicroPython (development)."
)


@app.command()
def deploy(
    port: Annotated[str, typer.Argument(help="Serial port, e.g. /dev/ttyACM0.")],
    folder: Annotated[
        Path | None, typer.Option("--app", help="Folder of the app [default: our own].")
    ] = None,
    board: Annotated[str, typer.Option(help="Board: its device type goes along.")] = "esp32c3",
    version: Annotated[
        str, typer.Option("--version", help="What the app says it is.")
    ] = "0.0.0-dev",
    baud: Annotated[int, typer.Option(min=9600, help="Speed.")] = 115_200,
    fresh: Annotated[bool, typer.Option(help="Soft-reset the interpreter first.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Send stage 0 and the compiled app, as far as they differ, and reset the board.

    Such a board accepts releases that nobody signed: it is for the desk, not for the wall.
    """
    from beacon_ota import paths
    from beacon_ota.device import board as boards
    from beacon_ota.images import app_folder
    from beacon_ota.images.boards import load_board

    texts = app_folder.read_sources(folder or paths.data_path("firmware", "app"))
    wanted = boards.board_files(texts, load_board(board).device_type, version)
    total = sum(map(len, wanted.values()))
    with output.byte_progress(f"Sending to {port}", total, quiet=json) as advance:
        done = boards.deploy_app(port, wanted, baud=baud, fresh=fresh, progress=advance)
    if json:
        output.print_json(vars(done))
        return
    text = (
        f"{len(done.written)} files sent ({done.size:,} bytes), {len(done.removed)} removed, "
        f"{done.unchanged} unchanged, in {done.seconds:.1f} s"
    )
    output.print_markup("[green]✓[/] {}", text)
