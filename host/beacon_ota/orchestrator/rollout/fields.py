"""Reads the tables of plans that people write: field by field, strictly, with named errors.

A reader takes a value and the name of its place, ``waves[1].opens``, and returns the parsed value.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from beacon_ota.errors import InputError

from .plan_types import DAY, HOUR, MINUTE, WEEK

T = TypeVar("T")
D = TypeVar("D")
Reader = Callable[[object, str], T]

# Limits: a plan is small, whoever sends it.
TEXT_MAX = 100
COUNT_MAX = 1_000_000
TIME_MAX = 10 * 366 * DAY

_UNITS = {"w": WEEK, "d": DAY, "h": HOUR, "m": MINUTE, "s": 1.0}
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,6})?[wdhms]){1,5}")
_PART = re.compile(r"([0-9.]+)([wdhms])")


class PlanError(InputError):
    """A plan breaks a rule. The message begins with the field at fault."""


class Table:
    """A mapping whose fields are taken one by one; what is left over is an error."""

    def __init__(self, data: object, where: str):
        if not isinstance(data, Mapping):
            raise PlanError(
                "field_type",
                f"{where or 'plan'}: not a table",
                found=printable_value(data),
                expected="table",
            )
        self.where = where
        self._left = dict(data)
        self._known: list[str] = []

    def path_of(self, field: str) -> str:
        """Return the name of a field's place."""
        return f"{self.where}.{field}" if self.where else field

    def has(self, field: str) -> bool:
        """True when the field is there."""
        return field in self._left

    def optional(self, field: str, read: Reader[T], default: D) -> T | D:
        """Return a field, or the default where it is left out."""
        self._known.append(field)
        if field not in self._left:
            return default
        return read(self._left.pop(field), self.path_of(field))

    def required(self, field: str, read: Reader[T]) -> T:
        """Return a field that may not be left out."""
        self._known.append(field)
        if field not in self._left:
            raise PlanError("field_missing", f"{self.path_of(field)}: is missing", expected=field)
        return read(self._left.pop(field), self.path_of(field))

    def reject_unknown(self) -> None:
        """Refuse what nobody has asked for."""
        if self._left:
            name = str(next(iter(self._left)))[:TEXT_MAX]
            raise PlanError(
                "field_unknown",
                f"{self.path_of(name)}: no such field",
                found=name,
                expected=" ".join(self._known),
            )


def printable_value(value: object) -> object:
    """Return what an error may show of a value that somebody else chose."""
    if value is None or isinstance(value, (bool, int)):
        return value if not isinstance(value, int) or abs(value) < 2**63 else "a huge number"
    return repr(value)[:TEXT_MAX]


def type_error(where: str, value: object, expected: str) -> PlanError:
    """Return the error for a value of another kind than expected."""
    return PlanError(
        "field_type", f"{where}: not a {expected}", found=printable_value(value), expected=expected
    )


def read_text(value: object, where: str) -> str:
    """Printable text that is not empty."""
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_MAX or not value.isprintable():
        raise type_error(where, value, f"text of at most {TEXT_MAX} characters")
    return value


def read_flag(value: object, where: str) -> bool:
    """True or false, and nothing that passes for it."""
    if not isinstance(value, bool):
        raise type_error(where, value, "true or false")
    return value


def read_choice(words: Collection[str], code: str) -> Reader[str]:
    """One of the words; anything else is an error of that code."""

    def read(value: object, where: str) -> str:
        if not isinstance(value, str) or value not in words:
            raise PlanError(
                code,
                f"{where}: not one of the words",
                found=printable_value(value),
                expected=" ".join(words),
            )
        return value

    return read


def read_count(value: object, where: str) -> int:
    """A whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise type_error(where, value, "whole number")
    _in_range(value, where, 1, COUNT_MAX)
    return value


def read_share(value: object, where: str) -> float:
    """A number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise type_error(where, value, "number")
    _in_range(value, where, 0, 1)
    return float(value)


def _in_range(value: float, where: str, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN is not, either
        raise PlanError(
            "number_range",
            f"{where}: out of range",
            found=printable_value(value),
            expected=f"{low:g} to {high:g}",
        )


def read_positive_duration(value: object, where: str) -> float:
    """A duration that is not zero."""
    seconds = parse_duration(value, where)
    if seconds == 0:
        raise PlanError(
            "time_range", f"{where}: must be longer than nothing", found=printable_value(value)
        )
    return seconds


def read_list(item: Reader[T], most: int) -> Reader[tuple[T, ...]]:
    """A list of at most ``most`` items, each read by ``item``."""

    def read(value: object, where: str) -> tuple[T, ...]:
        if not isinstance(value, (list, tuple)):
            raise type_error(where, value, "list")
        if len(value) > most:
            raise PlanError("too_many", f"{where}: too many", found=len(value), expected=most)
        return tuple(item(part, f"{where}[{index}]") for index, part in enumerate(value))

    return read


def parse_duration(value: object, where: str = "time") -> float:
    """Read a duration: seconds as a number, or ``90s``, ``30m``, ``24h``, ``7d``, ``1h30m``.

    Raises:
        PlanError: ``time_syntax``, ``time_negative``, ``time_range``.
    """
    if isinstance(value, str):
        if value.startswith("-"):
            raise PlanError(
                "time_negative", f"{where}: a time is not negative", found=printable_value(value)
            )
        if not _DURATION.fullmatch(value):
            raise PlanError(
                "time_syntax",
                f"{where}: not a duration",
                found=printable_value(value),
                expected="90s 24h",
            )
        seconds = sum(float(count) * _UNITS[unit] for count, unit in _PART.findall(value))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = value
    else:
        raise PlanError(
            "time_syntax",
            f"{where}: not a duration",
            found=printable_value(value),
            expected="90s 24h",
        )
    if seconds < 0:
        raise PlanError(
            "time_negative", f"{where}: a time is not negative", found=printable_value(value)
        )
    if not seconds <= TIME_MAX:  # NaN, too
        raise PlanError(
            "time_range", f"{where}: longer than ten years", found=printable_value(value)
        )
    return float(seconds)


def is_duration(value: str) -> bool:
    """True for text that :func:`parse_duration` can read."""
    return _DURATION.fullmatch(value) is not None


def format_duration(seconds: float) -> str | float:
    """Write a duration in its largest exact unit up to days; fractions stay seconds."""
    for unit in "dhms":
        if seconds and seconds % _UNITS[unit] == 0:
            return f"{int(seconds // _UNITS[unit])}{unit}"
    return seconds or "0s"
