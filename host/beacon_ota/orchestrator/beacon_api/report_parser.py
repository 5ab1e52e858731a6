"""Parses reports: returns the fields that the contract gives to a status, within their bounds."""

import json
import math
from collections import Counter
from operator import itemgetter
from typing import Any

from beacon_ota.orchestrator.core.service import ServedCounts
from beacon_ota.orchestrator.db.tables import Fields, attempts
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.wire import journal
from beacon_ota.wire import report as wire
from beacon_ota.wire.shapes import is_number

_ATTEMPT_STATUSES = tuple(word for word in wire.STATUSES if word != "idle")


FAILED_STATUSES = ("failed", "rolled_back")


# The statuses with which a field has a meaning and is checked; with others it is ignored.
_FIELD_STATUSES = {
    **dict.fromkeys(
        ("update_status", "firmware_version", "updated_at", "image_sha256", "journal"),
        wire.STATUSES,
    ),
    **dict.fromkeys((*attempts.MEASURED, "clock_unset", "insecure"), wire.STATUSES),
    **dict.fromkeys(("attempt_id", "firmware_id", "previous_version"), _ATTEMPT_STATUSES),
    **dict.fromkeys(("stage", "code", "detail"), FAILED_STATUSES),
    "progress": ("downloading",),
    "acquitted": ("rolled_back",),
}


def parse_report(body: bytes, counts: ServedCounts | None = None) -> Fields:
    """Return the fields of a report that the contract gives to its status, within their bounds.

    A broken field that is not needed is mended or left out (``wire.report``). ``journal`` has the
    entries to store, ``journal_ack`` the number to acknowledge.

    Args:
        body: JSON.
        counts: counts the fields and journal entries that broke the contract.

    Raises:
        Problem: 422 ``report_syntax``, or ``report_field`` with the name of a needed field.
    """
    try:
        text = body.decode("utf-8", "replace")
        doc = json.loads(text, parse_constant=_refuse_constant, parse_int=_parse_integer)
    except (ValueError, RecursionError):
        raise Problem(422, "report_syntax", "the body is not JSON") from None
    try:
        fields, faults = wire.read_report(doc)
    except wire.ReportError as error:
        raise Problem(
            422, "report_field", f"{error.field}: {error.reason}", found=error.field
        ) from None
    counts = counts or ServedCounts()
    counts.fields.update(faults)
    word = fields["update_status"]
    found = {name: value for name, value in fields.items() if word in _FIELD_STATUSES.get(name, ())}
    if "journal" in found:
        found["journal"], found["journal_ack"] = _mend_journal(found["journal"], counts.entries)
    return found


def _mend_journal(sent: Any, counts: Counter[str]) -> tuple[list[list[Any]], int]:
    """Return the journal entries to store, oldest first, and the number to acknowledge (or 0).

    A broken entry is cut to its bounds or dropped. It is acknowledged all the same, or the beacon
    would send it for ever. Entries over the bound of one report stay for the next report.

    Args:
        sent: the report's field.
        counts: counts how many entries were ``clipped`` and ``dropped``.
    """
    if not isinstance(sent, list):
        return [], 0
    numbered = []
    for entry in sent:
        if isinstance(entry, list) and entry and is_number(entry[0], 1, journal.MAX_SEQ):
            numbered.append(entry)
        else:
            counts["dropped"] += 1
    numbered.sort(key=itemgetter(0))
    del numbered[journal.MAX_ENTRIES :]
    kept = []
    for entry in numbered:
        mended = journal.repair_entry(entry)
        if mended is None:
            counts["dropped"] += 1
            continue
        counts["clipped"] += mended != entry
        kept.append(mended)
    return kept, numbered[-1][0] if numbered else 0


def _refuse_constant(word: str) -> None:
    """Refuse NaN and Infinity, which JSON does not have."""
    raise ValueError(word)


def _parse_integer(digits: str) -> float:
    """Return a whole number; infinity for more than 23 digits, which no field accepts."""
    return int(digits) if len(digits) < 24 else math.inf
