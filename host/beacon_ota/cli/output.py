"""What every command prints: tables for people, JSON for scripts, one line for a failure."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from beacon_ota.errors import BeaconOtaError

console = Console()
errors = Console(stderr=True)


def emit(
    rows: Iterable[Mapping[str, object]],
    columns: Sequence[str],
    *,
    as_json: bool,
    title: str | None = None,
) -> None:
    """Print rows as a table of the given columns, or all their fields as a JSON array."""
    rows = list(rows)
    if as_json:
        dump(rows)
        return
    console.print(table(rows, columns, title=title))


def table(
    rows: Iterable[Mapping[str, object]], columns: Sequence[str], *, title: str | None = None
) -> Table:
    """Return rows as a table of the given columns, for :func:`emit` or a live display."""
    found = Table(title=title)
    for name in columns:
        found.add_column(name.replace("_", " "))
    for row in rows:
        found.add_row(*(_cell(row.get(name)) for name in columns))
    return found


def loud(text: str) -> Text:
    """Return a cell that nobody overlooks."""
    return Text(text, style="bold red")


def dump(value: object) -> None:
    """Print one JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, sort_keys=True, default=str)
    sys.stdout.write("\n")


@contextmanager
def progress(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr for long work with bytes.

    Args:
        what: goes before the bar.
        total: bytes in all.
        quiet: show nothing.

    Yields:
        A function to call with the bytes done so far.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=errors, disable=quiet) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def fail(error: BeaconOtaError) -> None:
    """Print a named failure on stderr: what, found, expected, code."""
    errors.print(f"[bold red]error[/] {escape(error.message)}", highlight=False)
    if error.found is not None:
        errors.print(f"  found     {escape(str(error.found))}", highlight=False)
    if error.expected is not None:
        errors.print(f"  expected  {escape(str(error.expected))}", highlight=False)
    errors.print(f"  code      {error.code}", highlight=False)


def _cell(value: object) -> str | Text:
    if isinstance(value, Text):
        return value
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(str(value))
