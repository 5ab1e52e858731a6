"""How lines of the log are written: what came from outside cannot forge one, or hide in one.

A path, a header, an id, a host name or another system's error message may hold line breaks,
terminal escapes, or text that runs backwards. Every record passes :func:`escape`. What a database
says about an error quotes statements and rows (digests of tokens, secrets of webhooks): of that
only the kind is written.
"""

import logging
import traceback
from types import TracebackType

from beacon_ota.orchestrator.db.database import is_driver_error, reason_of

_MARGIN = "  | "  # before each line of a traceback: none of them looks like a record
_MESSAGE_MAX = 4096  # characters of a message


def escape_unprintable(text: str) -> str:
    """Return text with everything that is not plainly printable as an escape sequence."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


class LogFormatter(logging.Formatter):
    """Time, level and message, each record in one line; a traceback follows, indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        message = escape_unprintable(record.message)
        if len(message) > _MESSAGE_MAX:
            message = message[:_MESSAGE_MAX] + "…"
        return f"{record.asctime} {record.levelname} {message}"

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # of another handler's format
        return super().format(record)

    def formatException(self, ei: tuple) -> str:
        lines = _format_traceback(ei[1], ei[2], set()) if ei[1] is not None else []
        return "\n".join(_MARGIN + escape_unprintable(line) for line in lines)

    def formatStack(self, stack_info: str) -> str:
        return "\n".join(_MARGIN + escape_unprintable(line) for line in stack_info.splitlines())


def _format_traceback(
    error: BaseException, trace: TracebackType | None, seen: set[int]
) -> list[str]:
    """Return the lines of a traceback, with those of what led to it before."""
    seen.add(id(error))
    lines: list[str] = []
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        lines += [*_format_traceback(before, before.__traceback__, seen), "and then:"]
    if trace is not None:
        lines.append("Traceback (most recent call last):")
        for frame in traceback.format_tb(trace):
            lines += frame.rstrip("\n").split("\n")
    kind = type(error).__qualname__
    if is_driver_error(error):
        lines.append(f"{kind}: {reason_of(error)}")
    else:
        lines += f"{kind}: {error}".split("\n")
    for one in getattr(error, "exceptions", ()):  # of an ExceptionGroup
        if id(one) not in seen:
            lines += _format_traceback(one, one.__traceback__, seen)
    return lines
