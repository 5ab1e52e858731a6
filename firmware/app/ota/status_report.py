# Builds status reports (docs/contracts.md, section 1) with the journal's undelivered entries.

import json

from micropython import const
from net import clock
from wire.journal import printable
from wire.shapes import clip_text

_BODY = const(8192)  # bytes that the orchestrator reads of a report: wire.report.MAX_BODY

# Fields that a report copies from the attempt's record under the same name.
_COPIED = const(
    (
        "attempt_id",
        "firmware_id",
        "stage",
        "code",
        "bytes",
        "duration_ms",
        "trials",
        "advertising_paused_ms",
        "acquitted",
    )
)

# What the record holds as the list `cost`; one text, because each name would take 64 bytes.
_COST = const("bytes_fetched sectors_kept sectors_written")


# The report of a status. `record` is the attempt's, None for an idle report.
def build_report(beacon, update_status, record, progress):
    version = beacon.version
    if record and update_status not in ("success", "rolled_back"):
        version = record["version"]
    now = clock.utc()
    doc = {
        "firmware_version": version,
        "update_status": update_status,
        "updated_at": now,
        "image_sha256": beacon.image_sha256,
        "reset_cause": beacon.reset_cause,
        "heap_free_min": beacon.measure_heap(),
    }
    if record:
        doc["previous_version"] = record["previous"]
        for name in _COPIED:
            if name in record:
                doc[name] = record[name]
        cost = record.get("cost")
        if isinstance(cost, list):
            doc.update(zip(_COST.split(), cost))
        if record.get("detail"):
            doc["detail"] = clip_text(printable(record["detail"], 200), 200)
    if progress is not None:
        doc["progress"] = progress
    if not now:
        doc["clock_unset"] = True
    if beacon.insecure:
        doc["insecure"] = True
    journal = _take_fitting(beacon.journal.entries_since(), _BODY - _size(doc))
    if journal:
        doc["journal"] = journal
    return doc


# Bytes of a value's JSON, with an allowance for the name and the commas around it.
def _size(value):
    return len(json.dumps(value).encode()) + 16


# The oldest entries that fit; the next report carries the others.
def _take_fitting(entries, room):
    found = []
    for entry in entries:
        room -= _size(entry)
        if room < 0:
            break
        found.append(entry)
    return found
