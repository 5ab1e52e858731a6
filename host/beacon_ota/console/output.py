"""Prints tables for people, JSON and CSV for scripts, and named errors.

Control characters in texts are escaped, so that no text can control the terminal.
"""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from string import Formatter
from typing import Any, TextIO

from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from beacon_ota.errors import BeaconOtaError

# Characters that a terminal obeys, or that hide what is printed: C0 and C1 controls, marks of
# direction, line and paragraph separators, zero-width characters, halves of surrogate pairs.
_CONTROL_ESCAPES = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (
        *(code for code in range(32) if code not in (9, 10)),
        *range(0x7F, 0xA0),
        0x061C,
        *range(0x200B, 0x2010),
        *range(0x2028, 0x202F),
        *range(0x2060, 0x2070),
        0xFEFF,
        *range(0xD800, 0xE000),
    )
}
# Signs of this program for terminals whose encoding lacks them.
_ASCII_SIGNS = str.maketrans(
    {"✓": "+", "✗": "x", "–": "-", "…": "...", "≤": "<=", "→": "->", "·": "-"}
)
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_UNBOUNDED = 10_000  # columns of what is no terminal
_FIRST_PLACEHOLDER = (
    0x100000  # the first of the private signs that hold a value's place in a template
)


class SafeConsole(Console):
    """A console that shows control characters in place of sending them to the terminal.

    Printed texts come from the air, from beacons, other people or files. Rich's own control
    segments (a bar that moves, a live display) pass; a control character in a text is shown.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if not segment.control:
                text = self._writable(segment.text.translate(_CONTROL_ESCAPES))
                if text != segment.text:
                    segment = Segment(text, segment.style)
            yield segment

    def _writable(self, text: str) -> str:
        """Return a text as the terminal's encoding can write it (cp1252 has no ✓)."""
        if self.encoding.lower().startswith("utf") or text.isascii():
            return text
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            data = text.translate(_ASCII_SIGNS).encode(self.encoding, "backslashreplace")
            return data.decode(self.encoding)
        except LookupError:
            return text
        return text

    @property
    def size(self) -> ConsoleDimensions:
        """The terminal's size; what goes into a pipe or a file has lines as long as they are."""
        found = super().size
        if self.is_terminal or "COLUMNS" in os.environ:
            return found
        return ConsoleDimensions(_UNBOUNDED, found.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        Console.size.fset(self, new_size)  # type: ignore[attr-defined]


console = SafeConsole()
error_console = SafeConsole(stderr=True)


def make_visible(text: str) -> str:
    """Return a text whose control characters are visible.

    Control characters, marks that turn the writing direction, and halves of surrogate pairs
    come out as ``\\x1b``; newline and tab stay.
    """
    return text.translate(_CONTROL_ESCAPES)


def escape_markup(text: str) -> str:
    """Return text from outside, escaped for the places where rich takes markup alone."""
    return escape(make_visible(text))


def literal_text(value: object) -> Text:
    """Return text from outside as it is printed: neither markup nor control characters."""
    return value if isinstance(value, Text) else Text(make_visible(str(value)))


def fill_markup(template: str, *values: object) -> Text:
    """Return a template in rich's markup with values put in, which are no markup.

    Args:
        values: one for each ``{}``, formatted as it says; :class:`~rich.text.Text` keeps its
            styles, and everything else is put in as :func:`literal_text` returns it.
    """
    pieces: list[Text] = []

    class Pieces(Formatter):
        def format_field(self, value: Any, spec: str) -> str:
            if not isinstance(value, Text):
                found = format(value if isinstance(value, int | float) else str(value), spec)
                value = Text(make_visible(found))
            pieces.append(value)
            return chr(_FIRST_PLACEHOLDER + len(pieces) - 1)

        def convert_field(self, value: Any, conversion: str | None) -> Any:
            return value if conversion is None else super().convert_field(value, conversion)

    found = Text.from_markup(Pieces().format(template, *values))
    for at in reversed(
        [at for at, sign in enumerate(found.plain) if ord(sign) >= _FIRST_PLACEHOLDER]
    ):
        before, _sign, after = found.divide([at, at + 1])
        piece = pieces[ord(_sign.plain) - _FIRST_PLACEHOLDER].copy()
        for span in _sign.spans:
            piece.stylize_before(span.style)
        found = before.append_text(piece).append_text(after)
    return found


def print_markup(template: str, *values: object, to: Console | None = None, **how: Any) -> None:
    """Print a filled template on stdout, or on another console."""
    (to or console).print(fill_markup(template, *values), highlight=False, **how)


def print_rows(
    rows: Iterable[Mapping[str, object]],
    columns: Sequence[str],
    *,
    as_json: bool,
    title: str | None = None,
) -> None:
    """Print rows as a table of the given columns, or all their fields as a JSON array."""
    rows = list(rows)
    if as_json:
        print_json(rows)
        return
    if rows:
        console.print(build_table(rows, columns, title=title))
    else:
        print_markup("{}", f"{title}: none" if title else "none")


_COPIED = frozenset(("beacon_id", "rollout_id", "firmware_id", "mirror_id", "webhook_id", "id"))


def build_table(
    rows: Iterable[Mapping[str, object]],
    columns: Sequence[str],
    *,
    title: str | None = None,
    optional: Sequence[str] = (),
) -> Table:
    """Return rows as a table, for :func:`print_rows` or a live display.

    Args:
        columns: in their order.
        title: above the table.
        optional: columns that are left out when no row has anything to say there.
    """
    rows = list(rows)
    found = Table(title=title)
    empty = {name for name in optional if not any(row.get(name) for row in rows)}
    columns = [name for name in columns if name not in empty]
    room = console.width - 4 * len(columns)  # for one column, with some letters for each other
    for name in columns:  # nothing is cut; an id, which is copied, is not even broken
        longest = max((len(str(row.get(name))) for row in rows), default=0)
        whole = name in _COPIED and longest <= room
        found.add_column(name.replace("_", " "), overflow="fold", no_wrap=whole)
    for row in rows:
        found.add_row(*(_table_cell(row.get(name)) for name in columns))
    return found


def alert_cell(text: str) -> Text:
    """Return a cell in bold red."""
    return Text(make_visible(text), style="bold red")


def print_csv(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as CSV with a header on stdout."""
    write_csv(rows, sys.stdout)


def write_csv(rows: Sequence[Mapping[str, object]], stream: TextIO) -> None:
    """Write rows as CSV with a header; no field is a formula to a spreadsheet."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([csv_field(value) for value in row.values()] for row in rows)


def csv_field(value: object) -> str:
    """Return a field of a CSV file; a quote goes before text that a spreadsheet would run.

    Source: OWASP, "CSV Injection": a field that begins with ``= + - @``, tab or carriage return
    is run, also when it came from a beacon or another person. Numbers stay numbers.
    """
    if value is None:
        return ""
    text = make_visible(str(value))
    if isinstance(value, int | float) or not text.lstrip().startswith(_FORMULA):
        return text
    return "'" + text


def print_json(value: object) -> None:
    """Print one JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, sort_keys=True, default=str)
    sys.stdout.write("\n")


@contextmanager
def byte_progress(
    label: str, total: int | None, *, quiet: bool = False
) -> Iterator[Callable[..., None]]:
    """Show a bar on stderr for long work with bytes.

    Args:
        label: text before the bar.
        total: bytes in all; None while that is not known.
        quiet: show nothing.

    Yields:
        A function to call with the bytes done so far, and the bytes in all where they change.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=error_console, disable=quiet) as bar:
        task = bar.add_task(escape_markup(label), total=total)
        yield lambda done, total=None: bar.update(task, completed=done, total=total)


def print_error(error: BeaconOtaError) -> None:
    """Print a named failure on stderr: what, found, expected, code."""
    print_markup("[bold red]error[/] {}", error.message, to=error_console)
    if error.found is not None:
        print_markup("  found     {}", error.found, to=error_console)
    if error.expected is not None:
        print_markup("  expected  {}", error.expected, to=error_console)
    print_markup("  code      {}", error.code, to=error_console)


def _table_cell(value: object) -> str | Text:
    if isinstance(value, Text):
        return value
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return literal_text(value)
