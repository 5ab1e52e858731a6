"""Parses reports: the fields that the contract gives to each status, within their bounds."""

import json
import math
from collections import Counter
from operator import itemgetter
from typing import Any

from beacon_ota.orchestrator.core.service import Counts
from beacon_ota.orchestrator.db.tables import Fields, attempts
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.wire import journal
from beacon_ota.wire import report as wire
from beacon_ota.wire.shapes import is_number

_ATTEMPT_STATUSES = tuple(word for word in wire.STATUSES if word != "idle")


FAILED_STATUSES = ("failed", "rolled_back")


# With which statuses a field means something, and is checked: what else is sent is let go.
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


def parse_report(body: bytes, counts: Counts | None = None) -> Fields:
    """Return a report: the fields that the contract gives to its status, all within their bounds.

    What is broken and not needed is mended or left out (``wire.report``). ``journal`` holds the
    entries to store, ``journal_ack`` the number to acknowledge.

    Args:
        counts: takes how many fields and journal entries broke the contract.

    Raises:
        Problem: ``report_syntax``, or ``report_field`` naming a field that is needed.
    """
    try:
        text = body.decode("utf-8", "replace")
        doc = json.loads(text, parse_constant=_refuse_constant, parse_int=_parse_integer)
    except (ValueError, RecursionError):
        raise Problem(422, "report_syntax", "the body is not JSON") from None
    try:
        fields, faults = wire.read(doc)
    except wire.ReportError as error:
        raise Problem(
            422, "report_field", f"{error.field}: {error.reason}", found=error.field
        ) from None
    counts = counts or Counts()
    counts.fields.update(faults)
    word = fields["update_status"]
    found = {name: value for name, value in fields.items() if word in _FIELD_STATUSES.get(name, ())}
    if "journal" in found:
        found["journal"], found["journal_ack"] = _mend_journal(found["journal"], counts.entries)
    return found


def _mend_journal(sent: Any, counts: Counter[str]) -> tuple[list[list[Any]], int]:
    """Return the journal entries to store, oldest first, and the number to acknowledge; or 0.

    An entry that breaks the contract is cut to its bounds or dropped, and acknowledged like the
    others, or its beacon would send it for ever. What is beyond the entries of one report is left
    for the next one.

    Args:
        sent: the report's field.
        counts: takes how many were ``clipped`` and ``dropped``.
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
        mended = journal.mend(entry)
        if mended is None:
            counts["dropped"] += 1
            continue
        counts["clipped"] += mended != entry
        kept.append(mended)
    return kept, numbered[-1][0] if numbered else 0


def _refuse_constant(word: str) -> None:
    raise ValueError(word)


def _parse_integer(digits: str) -> float:
    """Return a whole number; one that is out of every range, without reading its digits."""
    return int(digits) if len(digits) < 24 else math.inf
