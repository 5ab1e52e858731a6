# The first boot of the old release after a trial: how the trial ended, and which journal entries
# can be its own. Noted before anything else of this boot can go wrong: a crash, a hang or a power
# cut from here on is the old release's own, and must not convict the one that was tried.
# ota/trial.py judges by it.
#
# Where NVS does not take the note, otadata does: in the label of the entry that the bootloader has
# rejected, by clearing bits alone. It says less (the reset cause, nothing of the journal), and it
# tells every later boot that it is not the first one.

from esp32 import Partition
from micropython import const

from ota import otadata

_OTA = const(0x10)
_SOFT = const(5)


# `cause` is machine.reset_cause(). After a restart of the interpreter alone the trial is still to
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


# What otadata says of a slot: (partition, sector, entry), the last one None for nothing.
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
