"""Shows the answers of an orchestrator: times, single objects, lists, live views."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from beacon_ota.console import output

if TYPE_CHECKING:
    from beacon_ota.client import Json


def local_time(text: str | None) -> str:
    """Return a time of the API, ISO 8601, as people read it in the local time zone, named."""
    if not text:
        return "–"
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def localize_times(rows: Sequence["Json"], *columns: str) -> list["Json"]:
    """Return rows with the times in some columns as :func:`local_time` shows them."""
    return [{**row, **{name: local_time(row.get(name)) for name in columns}} for row in rows]


def print_fields(fields: Mapping[str, object], title: str) -> None:
    """Print a title, then names and values, one a line."""
    output.print_markup("[bold]{}[/]", title)
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        text = "–" if value is None or value == "" else value
        if isinstance(value, bool):
            text = "yes" if value else "no"
        output.print_markup("  {}  {}", name.ljust(width), text)


def redraw_until(
    done: Callable[[], bool], draw: Callable[[], RenderableType], *, every_s: float
) -> None:
    """Draw a live view again and again until it is done, or until the user interrupts it."""
    from rich.live import Live

    with Live(draw(), console=output.console, auto_refresh=False) as live:
        while not done():
            time.sleep(every_s)
            live.update(draw(), refresh=True)


def print_listing(
    list_rows: Callable[[], Sequence["Json"]],
    columns: Sequence[str],
    *,
    watch: bool,
    every_s: float,
    optional: Sequence[str] = (),
) -> None:
    """Print rows as a table, once, or live until interrupted.

    ``optional`` columns are left out when no row has anything to say there.
    """

    def draw() -> Table:
        return output.build_table(list_rows(), columns, optional=optional)

    if watch:
        redraw_until(lambda: False, draw, every_s=every_s)
    elif rows := list_rows():
        output.console.print(output.build_table(rows, columns, optional=optional))
    else:
        output.print_markup("none")
