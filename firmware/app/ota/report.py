# Sends status reports with the journal's undelivered entries, and handles their answers: the
# acknowledgement of the journal, a new key, or that an attempt is over.

from micropython import const
from modules import use
from net.http import HttpError
from wire.journal import printable
from wire.shapes import clip_text, is_hex

_DETAIL = const(160)  # bytes: an attempt's record has to fit the buffer in which it is read


# Reads an attempt's record. None when no report can be built from it: another release, older or
# newer, may have written it.
def load_record(store, key="attempt"):
    record = store.record(key)
    if not isinstance(record, dict):
        return None
    attempt_id = record.get("attempt_id")
    firmware_id = record.get("firmware_id")
    if not is_hex(attempt_id, 24) or not is_hex(firmware_id, 24):
        return None
    for name in ("version", "previous", "checksum"):
        if not isinstance(record.get(name), str):
            return None
    return record if isinstance(record.get("detail", ""), str) else None


# The detail of an attempt's end, as it is stored in the record. Strangers choose part of the text,
# and may choose characters that take six bytes in JSON.
def attempt_detail(text):
    return clip_text(printable(text, _DETAIL), _DETAIL)


class Reporter:
    def __init__(self, beacon):
        self._beacon = beacon

    # Builds the report of a status. `record` is the attempt's, None for an idle report. Reports are
    # rare, so the module that builds them is loaded for each.
    def build(self, status, record=None, progress=None):
        return use("ota.status_report", "build_report", self._beacon, status, record, progress)

    # Sends the report that build() makes. True when the orchestrator acknowledged it, False when it
    # answered that the attempt is over. Raises HttpError for every other answer: only 2xx
    # acknowledges a report.
    async def send(self, *report):
        beacon = self._beacon
        target = "/api/beacons/%s/ota_status" % beacon.api.id
        status, answer, _ = await beacon.api.call("POST", target, self.build, *report)
        if status in (409, 410):
            return False
        if not 200 <= status < 300:
            if 400 <= status < 500 and status not in (401, 408, 429):
                beacon.journal.write("report", "rejected", "status %d" % status)
            raise HttpError("http", "status %d" % status, status in (401, 403), status)
        if answer:
            ack = answer.get("journal_ack")
            if isinstance(ack, int):
                beacon.journal.acknowledge(ack)
            pad = answer.get("rekey")
            if is_hex(pad, 64):
                use("ota.rekey", "apply_key", beacon, pad)
        return True
