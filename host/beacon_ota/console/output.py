"""What every command prints: tables for people, JSON for scripts, one line for a failure."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from string import Formatter
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from beacon_ota.errors import BeaconOtaError

# Characters that a terminal obeys, or that hide what is printed: C0 and C1 controls, marks of
# direction, line and paragraph separators, zero-width characters, halves of surrogate pairs.
_SEEN = {
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
_PLAIN = str.maketrans({"✓": "+", "✗": "x", "–": "-", "…": "...", "≤": "<=", "→": "->", "·": "-"})
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_PLACE = 0x100000  # the first of the private signs that hold a value's place in a template


class _Terminal(Console):
    """A console whose terminal obeys nobody but this program.

    What is printed came from the air, from beacons, other people or files. Rich's own control
    segments (a bar that moves, a live display) pass; a control character in a text is shown.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if not segment.control:
                text = self._writable(segment.text.translate(_SEEN))
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
            data = text.translate(_PLAIN).encode(self.encoding, "backslashreplace")
            return data.decode(self.encoding)
        except LookupError:
            return text
        return text


console = _Terminal()
errors = _Terminal(stderr=True)


def visible(text: str) -> str:
    """Return a text with everything shown that a terminal would obey instead of printing it.

    Control characters, marks that turn the direction of what follows, and halves of surrogate
    pairs come out as ``\\x1b``; newline and tab stay.
    """
    return text.translate(_SEEN)


def quoted(text: str) -> str:
    """Return text from elsewhere for the few places where rich takes markup alone."""
    return escape(visible(text))


def plain(value: object) -> Text:
    """Return text from elsewhere as it is printed: to the letter, neither markup nor control."""
    return value if isinstance(value, Text) else Text(visible(str(value)))


def fill(template: str, *values: object) -> Text:
    """Return a template of our own, in rich's markup, with values put in.

    Args:
        values: one for each ``{}``, formatted as it says; :class:`~rich.text.Text` keeps its
            styles, and everything else is put in as :func:`plain` returns it.
    """
    pieces: list[Text] = []

    class Pieces(Formatter):
        def format_field(self, value: Any, spec: str) -> str:
            if not isinstance(value, Text):
                found = format(value if isinstance(value, int | float) else str(value), spec)
                value = Text(visible(found))
            pieces.append(value)
            return chr(_PLACE + len(pieces) - 1)

        def convert_field(self, value: Any, conversion: str | None) -> Any:
            return value if conversion is None else super().convert_field(value, conversion)

    found = Text.from_markup(Pieces().format(template, *values))
    for at in reversed([at for at, sign in enumerate(found.plain) if ord(sign) >= _PLACE]):
        before, _sign, after = found.divide([at, at + 1])
        piece = pieces[ord(_sign.plain) - _PLACE].copy()
        for span in _sign.spans:
            piece.stylize_before(span.style)
        found = before.append_text(piece).append_text(after)
    return found


def say(template: str, *values: object, to: Console | None = None, **how: Any) -> None:
    """Print a filled template on stdout, or on another console."""
    (to or console).print(fill(template, *values), highlight=False, **how)


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
    return Text(visible(text), style="bold red")


def dump_csv(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as CSV with a header on stdout; no field is a formula to a spreadsheet."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([cell(value) for value in row.values()] for row in rows)


def cell(value: object) -> str:
    """Return a field of a CSV: what a spreadsheet would take for a formula begins with a quote.

    Source: OWASP, "CSV Injection": a field that begins with ``= + - @``, tab or carriage return
    is run, also when it came from a beacon or another person. Numbers stay numbers.
    """
    if value is None:
        return ""
    text = visible(str(value))
    if isinstance(value, int | float) or not text.lstrip().startswith(_FORMULA):
        return text
    return "'" + text


def dump(value: object) -> None:
    """Print one JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, sort_keys=True, default=str)
    sys.stdout.write("\n")


@contextmanager
def progress(what: str, total: int | None, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Show a bar on stderr for long work with bytes.

    Args:
        what: goes before the bar.
        total: bytes in all; None when that is learnt on the way.
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
    with Progress(*columns, console=errors, disable=quiet) as bar:
        task = bar.add_task(quoted(what), total=total)
        yield lambda done, total=None: bar.update(task, completed=done, total=total)


def fail(error: BeaconOtaError) -> None:
    """Print a named failure on stderr: what, found, expected, code."""
    say("[bold red]error[/] {}", error.message, to=errors)
    if error.found is not None:
        say("  found     {}", error.found, to=errors)
    if error.expected is not None:
        say("  expected  {}", error.expected, to=errors)
    say("  code      {}", error.code, to=errors)


def _cell(value: object) -> str | Text:
    if isinstance(value, Text):
        return value
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plain(value)
