# Status reports as they are built: whatever the journal and an attempt's record hold, a report is
# no longer than the orchestrator reads.

import json

from ota.report import Reporter
from wire import report


class Journal:
    def __init__(self, entries):
        self._entries = entries

    def entries_since(self):
        return self._entries


class Beacon:
    version = "1.0.0-" + "a" * 58
    image_sha256 = "ab" * 32
    reset_cause = 2
    insecure = True

    def __init__(self, entries):
        self.journal = Journal(entries)

    def measure_heap(self):
        return 60000


RECORD = {
    "previous": "1.0.0",
    "version": "2.0.0",
    "attempt_id": "0" * 24,
    "firmware_id": "1" * 24,
    "stage": "boot",
    "code": "crash",
    "detail": "\x01" * 300,
    "bytes": 1 << 24,
    "duration_ms": 1 << 31,
}


def entries(detail):
    return [[n, 1800000000, detail, detail, detail] for n in range(1, 9)]


def built(found, record=None):
    doc = Reporter(Beacon(found)).build("failed" if record else "idle", record)
    assert len(json.dumps(doc).encode()) <= report.MAX_BODY
    return doc.get("journal")


def test_what_fits_is_sent():
    for detail in ("", "x" * 80, '"' * 80):
        assert built(entries(detail), RECORD) == entries(detail)
    assert built([]) is None


def test_what_does_not_fit_comes_later():
    for detail in ("\x01" * 80, "\U0001f512" * 80, '"\\' * 40 + "\u20ac" * 40):
        for record in (None, RECORD):
            found = built(entries(detail), record)
            assert found == entries(detail)[: len(found)] and 0 < len(found) <= 8
    assert len(built(entries("\x01" * 80))) < 8
