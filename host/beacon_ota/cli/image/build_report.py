"""Prints the result of ``image build`` and ``image flash``: the image, its parts, the room left."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from beacon_ota.console import output

if TYPE_CHECKING:
    from beacon_ota.images.app_folder import AppFolder
    from beacon_ota.images.boards import Board
    from beacon_ota.images.release import Release

_MAX_FILES = 12  # files that are named one by one
_print_line = partial(output.print_markup, soft_wrap=True)


def print_build(
    file: Path,
    release: "Release",
    board: "Board",
    content: "AppFolder | None",
    more: dict[str, object],
    *,
    as_json: bool,
) -> None:
    """Print what was built.

    Args:
        file: where it is.
        release: the release in it.
        board: the board it is for.
        content: which files of the app's folder are in it, None for a release built before.
        more: further fields of the JSON; a ``beacon_key`` among them is shown to people, too.
    """
    fields = {
        "file": str(file),
        "board": board.name,
        "version": release.info.version,
        "device_type": release.info.device_type,
        "insecure": release.info.insecure,
        "interpreter": release.core.interpreter,
        "checksum": release.checksum,
        "size": release.size,
        "core_length": release.core.length,
        "app_size": release.app_size,
        "payload": release.payload,
        "slot_size": board.slot_size,
        "room": board.slot_size - release.size,
        **more,
    }
    if content is not None:
        fields |= {
            "modules": len(content.sources),
            "files": sorted(content.files),
            "left": dict(content.left),
        }
    if as_json:
        output.print_json(fields)
        return
    info = release.info
    _print_line("[green]✓[/] [bold]{}[/]", file)
    _print_line("  {} {}, SHA-256 {}", info.device_type, info.version, release.checksum)
    _print_line("  core      {:>12,} bytes", release.core.length)
    _print_line("  app       {:>12,} bytes, {:,} of it code", release.app_size, release.payload)
    if content is not None:
        _print_content(content)
    _print_line("  slot      {:>12,} bytes, {:,} to spare", board.slot_size, fields["room"])
    if "beacon_key" in more:
        _print_line("  new key   {}", more["beacon_key"])
    _print_warnings(release)


def _print_content(content: "AppFolder") -> None:
    """Print which files of the app's folder are in the release, and which are not."""
    modules, others = len(content.sources), len(content.files)
    _print_line("  packed    {:>12,} modules, {} other files", modules, others)
    for name in sorted(content.files)[:_MAX_FILES]:
        _print_line("            {}", name)
    for name, reason in list(content.left.items())[:_MAX_FILES]:
        _print_line("  [yellow]left out[/]  {}: {}", name, reason)
    if len(content.left) > _MAX_FILES:
        more = len(content.left) - _MAX_FILES
        _print_line("  [yellow]left out[/]  {} more; --json lists them", more)


def _print_warnings(release: "Release") -> None:
    from beacon_ota.images.appfs import BUDGET

    if release.core.interpreter is None:
        _print_line("  [yellow]No MicroPython in it: for virtual beacons only.[/]")
    if release.payload > BUDGET:
        _print_line(
            "  [yellow]More than {:,} bytes of code: RAM runs short on the chip.[/]", BUDGET
        )
    if release.info.insecure:
        _print_line("  [bold red]INSECURE: beacons that run it install releases nobody signed.[/]")
