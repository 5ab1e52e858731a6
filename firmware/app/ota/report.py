# Status reports: sent with the journal's undelivered entries, and answered with what the
# orchestrator wants known: journal acknowledgement, a new key, or that an attempt is over.

from micropython import const
from modules import unload
from net.http import HttpError
from wire.journal import printable
from wire.shapes import clip_text, is_hex

_DETAIL = const(160)  # bytes of an attempt's record, which has to fit what is read of it


# An attempt's record, None for what nothing can be told of: another release, older or newer than
# this one, may have left it.
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


# The detail of an attempt's end for its record. Strangers choose some of its words, and what they
# choose may take six bytes a character in JSON.
def attempt_detail(text):
    return clip_text(printable(text, _DETAIL), _DETAIL)


class Reporter:
    def __init__(self, beacon):
        self._beacon = beacon

    # The report of a status. `record` is the attempt's, None for an idle report. Reports are rare:
    # what writes them is loaded for each.
    def build(self, status, record=None, progress=None):
        from ota import status_report

        doc = status_report.build_report(self._beacon, status, record, progress)
        status_report = None
        unload("ota.status_report")
        return doc

    # True when the orchestrator took it, False when it says that the attempt is over. Raises
    # HttpError for everything else: nothing but 2xx says that a report was taken.
    async def send(self, doc):
        beacon = self._beacon
        call = beacon.api.call("POST", "/api/beacons/%s/ota_status" % beacon.api.id, doc)
        doc = None  # it is not kept beside what is sent
        status, answer, _ = await call
        call = None
        if status in (409, 410):
            return False
        if not 200 <= status < 300:
            if 400 <= status < 500 and status not in (401, 408, 429):
                beacon.journal.write("report", "rejected", "status %d" % status)
            raise HttpError("http", "status %d" % status, status in (401, 403), status)
        if answer:
            journal_ack = answer.get("journal_ack")
            if isinstance(journal_ack, int):
                beacon.journal.acknowledge(journal_ack)
            pad = answer.get("rekey")
            if is_hex(pad, 64):
                from ota import rekey

                rekey.apply_key(beacon, pad)
                rekey = None
                unload("ota.rekey")
        return True
