# Records the return of the old release after a trial: the reset cause, and the number of the newest
# journal entry, which is the last that can belong to the trial. This is the first thing that such a
# boot does: a later crash, hang or power cut is the old release's own, and must not count against
# the release that was tried. ota/trial.py uses the record.
#
# If NVS does not take the record, the reset cause goes into otadata, into the label of the entry
# that the bootloader has rejected, by clearing bits only. That says nothing about the journal, but
# it tells every later boot that it is not the first one.

from esp32 import Partition
from micropython import const

from ota import otadata

_OTA = const(0x10)
_SOFT = const(5)


# `cause` is machine.reset_cause(). After a mere restart of the interpreter the trial is still to
# come.
def record_return(store, journal, cause):
    record = store.record("attempt")
    if not isinstance(record, dict) or record.get("status") != "rebooting":
        return
    if not record.get("armed") or "back" in record or cause == _SOFT:
        return
    slot = record.get("slot")
    if Partition(Partition.RUNNING).info()[1] - _OTA == slot:
        return
    try:
        ota, sector, entry = _find_entry(slot)
        if entry and entry.return_cause is not None:
            return
    except OSError as error:
        print("attempt: otadata:", error)
        entry = None
    record["back"] = [cause, journal.newest]
    try:
        store.put("attempt", record)
    except OSError as error:
        print("attempt: return not noted:", error)
        if entry and entry.state in (otadata.ABORTED, otadata.INVALID):
            _write_return(ota, sector, cause)


# The otadata entry of a slot: (partition, sector, entry); the entry is None when there is none.
def _find_entry(slot):
    count = 0
    while count < 16 and Partition.find(Partition.TYPE_APP, _OTA + count):
        count += 1
    found = Partition.find(Partition.TYPE_DATA, 0)
    if not found or not count:
        return None, 0, None
    entries = []
    for sector in (0, 1):
        raw = bytearray(otadata.SIZE)
        found[0].readblocks(sector, raw, 0)
        entries.append(otadata.Entry(raw))
    entry = otadata.newest_entry_of(entries, slot, count)
    return found[0], entries.index(entry) if entry else 0, entry


def _write_return(ota, sector, cause):
    try:
        ota.writeblocks(sector, bytes((cause, cause ^ 0xFF)), otadata.BACK)
    except OSError as error:
        print("attempt: otadata:", error)
