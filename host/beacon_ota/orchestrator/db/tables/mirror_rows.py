"""Checks the rows that a mirror sends, field by field, as an upload is checked.

A mirror's disk may be in anybody's hands, and pages, decisions and the next start read what is
stored from it. So every field must have the type and the bounds that this orchestrator writes
itself. Pure: rows go in, rows come out, or ``InputError`` ``mirror_change``, which names the field.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from beacon_ota.errors import InputError
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.db.tables.attempts import MEASURED
from beacon_ota.orchestrator.db.tables.device_types import DEVICE_TYPE
from beacon_ota.orchestrator.rollout.types import Result
from beacon_ota.wire import auth, journal, report, versions
from beacon_ota.wire.shapes import is_hex, is_number

LAST_TIME = 253402300799.0  # UTC seconds, the end of the year 9999
MAX_BODY = 16 * 1024  # bytes of a stored report
MAX_DATA = 4096  # bytes of an event's data
_MAX_INT = (1 << 62) - 1
_MAX_REFUSALS = (1 << 31) - 1
_CODE = re.compile(r"[a-z0-9_]{1,32}")
_RESULTS = frozenset(result.value for result in Result)
_WORDS = frozenset(code for codes in report.CODES.values() for code in codes)
# The fields of a mirror's events, by subject. The field `beacon` is never taken from the mirror.
_SAID = {
    **dict.fromkeys(
        (f"attempt.{result}" for result in _RESULTS),
        ("rollout", "firmware", "version", "failed_in", "code", "detail"),
    ),
    "beacon.withheld": ("rollout", "firmware", "version", "tries"),
    "beacon.refused": ("code",),
    "mirror.halted": ("reason",),
}

Check = Callable[[Any], bool]


def _text(limit: int) -> Check:
    def check(value: Any) -> bool:
        if not isinstance(value, str) or len(value) > limit:
            return False
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            return False
        return "\0" not in value

    return check


def _is_time(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LAST_TIME
    )


def _is_lead(value: Any) -> bool:
    return _is_time(value) or (isinstance(value, int | float) and _is_time(-value))


def _is_fault(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"code", "detail"}
        and _text(48)(value["code"])
        and _text(300)(value["detail"])
    )


def _is_image(value: Any) -> bool:
    return value == "" or is_hex(value, 64)  # "": the beacon has not stated it


def _is_version(value: Any) -> bool:
    try:
        if value != "":  # it has not said
            versions.parse(value)
    except (ValueError, TypeError):
        return False
    return True


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and auth.is_valid_id(value)


def _whole(low: int, high: int) -> Check:
    return lambda value: is_number(value, low, high)


def _hex(length: int) -> Check:
    return lambda value: is_hex(value, length)


def _one_of(words: Any) -> Check:
    return lambda value: isinstance(value, str) and value in words


def _maybe(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_device_type(value: Any) -> bool:
    return isinstance(value, str) and DEVICE_TYPE.fullmatch(value) is not None


def _is_code(value: Any) -> bool:
    return isinstance(value, str) and _CODE.fullmatch(value) is not None


def _is_word(value: Any) -> bool:
    return _text(24)(value) and bool(value)


_MEASURES = dict.fromkeys(MEASURED, _maybe(_whole(0, report.MAX_NUMBER)))
_ATTEMPT: dict[str, Check] = {
    "id": _hex(24),
    "beacon_id": _is_id,
    "firmware_id": _hex(24),
    "rollout_id": _hex(24),
    "mirror": _maybe(_text(24)),
    "wave": _whole(0, 10_000),
    "stage": _whole(0, 10_000),
    "n": _whole(1, 1 << 30),
    "site": _maybe(_text(256)),
    "from_version": _maybe(_is_version),
    "from_image": _maybe(_is_image),
    "offered_at": _is_time,
    "taken_at": _maybe(_is_time),
    "rebooting_at": _maybe(_is_time),
    "ended_at": _maybe(_is_time),
    "result": _maybe(_one_of(_RESULTS)),
    "failed_in": _maybe(_one_of(report.CODES)),
    "code": _maybe(_one_of(_WORDS)),
    "detail": _maybe(_text(report.MAX_DETAIL)),
    "late_result": _maybe(_one_of(_RESULTS)),
    "late_at": _maybe(_is_time),
    "blamed_at": _maybe(_is_time),
    **_MEASURES,
}
_REPORT: dict[str, Check] = {
    "beacon_id": _is_id,
    "attempt_id": _maybe(_hex(24)),
    "at": _is_time,
    "status": _one_of(report.STATUSES),
    "body": _text(MAX_BODY),
}
_JOURNAL: dict[str, Check] = {
    "beacon_id": _is_id,
    "seq": _whole(1, journal.MAX_SEQ),
    "digest": _text(16),
    "utc": _is_time,
    "stage": _is_word,
    "code": _is_word,
    "detail": _text(200),
    "stored_at": _is_time,
}
_EVENT: dict[str, Check] = {
    "at": _is_time,
    "kind": _text(48),
    "subject": _text(256),
    "data": _text(MAX_DATA),
}
_HALT: dict[str, Check] = {
    "rollout_id": _text(64),
    "reason": _maybe(_text(MAX_BODY)),
    "id": _maybe(_hex(24)),
    "at": _maybe(_is_time),
}
HEARD: dict[str, Check] = {
    "version": _maybe(_is_version),
    "image": _maybe(_is_image),
    "state": _maybe(_one_of(("valid", "trial"))),
    "first_seen": _maybe(_is_time),
    "last_seen": _maybe(_is_time),
    "address": _maybe(_text(64)),
    "reset_cause": _maybe(_whole(0, _MAX_INT)),
    "heap_free_min": _maybe(_whole(0, _MAX_INT)),
    "clock_unset": _maybe(_is_flag),
    "insecure": _maybe(_is_flag),
    "said_type": _maybe(_is_device_type),
    "refused_code": _maybe(_is_code),
    "refused_at": _maybe(_is_time),
    "refusals": _maybe(_whole(0, _MAX_REFUSALS)),
}


def check_attempt(row: Any) -> Fields:
    """Return an attempt's row; an open one has no end time, and a code must fit its stage."""
    found = _fields("attempts", _ATTEMPT, row)
    for how, when in (("result", "ended_at"), ("late_result", "late_at")):
        if found[how] is None and found[when] is not None:
            raise _refused(f"attempts.{when}", found[when])
    code = found["code"]
    if code is not None and code not in report.CODES.get(found["failed_in"] or "", ()):
        raise _refused("attempts.code", code)
    return found


def check_report(row: Any) -> Fields:
    """Return a report's row, without the id that it had at the mirror."""
    found = _fields("reports", _REPORT, row)
    _document("reports.body", found["body"])
    return found


def check_journal_entry(row: Any) -> Fields:
    """Return the row of a journal's entry."""
    return _fields("journal", _JOURNAL, row)


def check_halt(row: Any) -> Fields:
    """Return a halt: its rollout, its reason, and ``id`` or ``at``, which identify it."""
    return _fields("halts", _HALT, row)


def check_event(row: Any) -> Fields | None:
    """Return an event's row with ``data`` decoded, None for a kind that mirrors do not make."""
    found = _fields("events", _EVENT, row)
    data = _document("events.data", found["data"])
    names = _SAID.get(found["kind"])
    if names is None:
        return None
    said = {name: data[name] for name in names if data.get(name) is not None}
    for name, value in said.items():
        if not (_text(256)(value) or is_number(value, 0, _MAX_INT)):
            raise _refused(f"events.data.{name}", value)
    return {**found, "data": said}


def beacon_id_of(row: Any) -> str | None:
    """Return the id of the beacon that a row is about, None when it is not a valid id."""
    ident = row.get("id")
    return ident if _is_id(ident) else None


def check_beacon(row: Any, now: float) -> Fields:
    """Return the columns of a beacon that a mirror has heard from.

    Args:
        now: UTC seconds; later times come from a wrong clock of the mirror and are cut to this.
    """
    found = _fields("beacons", HEARD, row)
    for name in ("first_seen", "last_seen", "refused_at"):
        if found[name] is not None:
            found[name] = min(found[name], now)
    return found


def check_status(said: Any) -> Fields:
    """Return the mirror's own status; an unknown or malformed field is left out."""
    wanted: dict[str, Check] = {
        "backlog": _whole(0, _MAX_INT),
        "lag_s": _is_time,
        "releases": lambda value: (
            isinstance(value, list) and len(value) <= 32 and all(map(_text(160), value))
        ),
        "version": _text(64),
        "url": _text(256),
        "moves": _text(64),
        "lease_s": _is_time,
        "skew_s": _is_lead,
        "error": _is_fault,
    }
    if not isinstance(said, dict):
        return {}
    return {
        name: said[name] for name, check in wanted.items() if name in said and check(said[name])
    }


def is_last_batch(said: Any, count: int) -> bool:
    """Tell whether a mirror that sends ``count`` changes states that no others wait."""
    backlog = check_status(said).get("backlog")
    return backlog is not None and backlog <= count


def _fields(table: str, checks: dict[str, Check], row: Any) -> Fields:
    if not isinstance(row, dict):
        raise _refused(table, row)
    found: Fields = {}
    for name, check in checks.items():
        value = row.get(name)
        if not check(value):
            raise _refused(f"{table}.{name}", value)
        found[name] = value
    return found


def _document(field: str, text: str) -> Fields:
    try:
        found = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _refused(field, text)
    return found


def _no_constant(word: str) -> None:
    raise ValueError(word)


def _refused(field: str, value: Any) -> InputError:
    return InputError("mirror_change", f"{field} is not what it has to be", found=repr(value)[:80])
