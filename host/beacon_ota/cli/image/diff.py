"""``beacon-ota image diff``: what a beacon on one release fetches, erases and takes for another."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beacon_ota.cli._support.options import JsonOption
from beacon_ota.cli.image.files import read_image
from beacon_ota.console import output

if TYPE_CHECKING:
    from beacon_ota.images.compare import Comparison
    from beacon_ota.images.update_cost import UpdateCost

_COLUMNS = ("file", "how", "before", "after", "sectors")


def diff_images(
    before: Annotated[Path, typer.Argument(help="The release that the beacon runs.")],
    after: Annotated[Path, typer.Argument(help="The release that it is to get.")],
    json: JsonOption = False,
) -> None:
    """Say what an update from one release image to another moves."""
    from beacon_ota.images import compare

    found = compare.compare_releases(read_image(before), read_image(after))
    if json:
        output.print_json(_as_json(found))
    else:
        _print_comparison(found)


def _as_json(found: "Comparison") -> dict[str, Any]:
    return {
        "same_core": found.same_core,
        "cost": _cost_as_json(found.cost),
        "full": _cost_as_json(found.full),
        "sectors": [
            {"sector": sector, "offset": sector * 4096, "holds": list(found.parts[sector])}
            for sector in found.fetched
        ],
        "files": [vars(one) for one in found.files],
    }


def _cost_as_json(cost: "UpdateCost") -> dict[str, Any]:
    return {**vars(cost), "seconds": cost.seconds}


def _print_comparison(found: "Comparison") -> None:
    cost, full = found.cost, found.full
    core = "the same core" if found.same_core else "[yellow]another core[/]"
    output.print_markup(f"{core}, {{}} of the app's files changed", len(found.files))
    for label, one in (("update", cost), ("in full", full)):
        output.print_markup(
            "  {}  fetches {:>9,} bytes, writes {:>3} sectors, keeps {:>3}, takes {:>5} s",
            label.ljust(7),
            one.fetched,
            one.written,
            one.kept,
            one.seconds,
        )
    rows = [
        {
            "file": one.name,
            "how": one.how,
            "before": one.before,
            "after": one.after,
            "sectors": " ".join(map(str, one.sectors)),
        }
        for one in found.files
    ]
    if rows:
        output.print_rows(rows, _COLUMNS, as_json=False)
