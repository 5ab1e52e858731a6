# The first boot of the old release after a trial: how the trial ended, and which journal entries
# can be its own. Noted before anything else of this boot can go wrong: a crash, a hang or a power
# cut from here on is the old release's own, and must not convict the one that was tried.
# ota/trial.py judges by it.

from esp32 import Partition
from micropython import const

_OTA = const(0x10)
_SOFT = const(5)


# `cause` is machine.reset_cause(). After a restart of the interpreter alone the trial is still to
# come.
def note(store, journal, cause):
    record = store.record("attempt")
    if not isinstance(record, dict) or record.get("status") != "rebooting":
        return
    if not record.get("armed") or "back" in record or cause == _SOFT:
        return
    if Partition(Partition.RUNNING).info()[1] - _OTA == record.get("slot"):
        return
    record["back"] = [cause, journal.head()]
    try:
        store.put("attempt", record)
    except OSError as error:
        print("attempt: return not noted:", error)
