"""Formats the log, so that no input can forge a line or hide in one.

A path, a header, an id, a host name or an error message of another system may contain line
breaks, terminal escapes, or text that runs backwards. Every record passes
:func:`escape_unprintable`. Database errors quote statements and rows (digests of tokens, secrets
of webhooks): only their kind is written.
"""

import logging
import traceback
from types import TracebackType

from beacon_ota.orchestrator.db.connection import describe_error, is_driver_error

_MARGIN = "  | "  # so that no line of a traceback looks like a record
_MESSAGE_MAX = 4096  # characters of a message


def escape_unprintable(text: str) -> str:
    """Return text with each unprintable character as an escape sequence."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


class LogFormatter(logging.Formatter):
    """Formats time, level and message as one line; a traceback follows, indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        message = escape_unprintable(record.message)
        if len(message) > _MESSAGE_MAX:
            message = message[:_MESSAGE_MAX] + "…"
        return f"{record.asctime} {record.levelname} {message}"

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # cached by another handler's formatter
        return super().format(record)

    def formatException(self, ei: tuple) -> str:
        lines = _format_traceback(ei[1], ei[2], set()) if ei[1] is not None else []
        return "\n".join(_MARGIN + escape_unprintable(line) for line in lines)

    def formatStack(self, stack_info: str) -> str:
        return "\n".join(_MARGIN + escape_unprintable(line) for line in stack_info.splitlines())


def _format_traceback(
    error: BaseException, trace: TracebackType | None, seen: set[int]
) -> list[str]:
    """Return the lines of a traceback, after those of its causes."""
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
        lines.append(f"{kind}: {describe_error(error)}")
    else:
        lines += f"{kind}: {error}".split("\n")
    for one in getattr(error, "exceptions", ()):  # of an ExceptionGroup
        if id(one) not in seen:
            lines += _format_traceback(one, one.__traceback__, seen)
    return lines
