# What became of an update, and whether a release on trial is fit to stay. Pure: the attempt record,
# otadata, the journal and the reset cause go in, a decision comes out.

from micropython import const

from ota import otadata

_POWER_ON = const(1)
_WATCHDOG = const(3)

# What the journal tells of a trial: its own last words, or what was found out of it before the
# power failed.
_WITNESS = ("crash", "self_test", "watchdog")


AWAY = "orchestrator away"


# An attempt's end: update_status, code of stage "boot", detail, trial boots.
class Verdict:
    def __init__(self, status, code="", detail="", trials=0):
        self.status = status
        self.code = code
        self.detail = detail
        self.trials = trials

    # Is the image itself to blame, so that it must not be tried again? Not when all that it missed
    # was the orchestrator, whose part anybody at its address can play.
    def guilty(self):
        if self.code == "self_test" and self.detail.startswith(AWAY):
            return False
        return self.status == "rolled_back" and self.code in ("self_test", "crash", "watchdog")


# What the boot that just happened says about the attempt in `record`. None: nothing to say, the
# release is still on trial (or there was no attempt).
#   record   dict with status ("downloading", "verifying", "rebooting" or a final one), slot
#   entries  otadata
#   running  slot number, -1 for the factory app
#   cause    machine.reset_cause()
#   journal  entries written since the slot was armed
def verdict(record, entries, running, slots, cause, journal):
    status = record.get("status")
    if status in ("success", "failed", "rolled_back"):
        return None
    if status != "rebooting":
        return Verdict("failed", _cause(cause), "reset while " + str(status))
    slot = record.get("slot")
    entry = otadata.about(entries, slot, slots) if slots else None
    if running == slot:
        if otadata.on_trial(entries, running, slots):
            return None
        # Confirmed, and cut off before the record could say so.
        return Verdict("success", trials=max(entry.marks, 1) if entry else 1)
    return _back(entry, cause, journal)


def _cause(cause):
    return {_POWER_ON: "power", _WATCHDOG: "watchdog"}.get(cause, "crash")


# The old release runs again. What the trials wrote themselves is the best witness; the cause of
# the last reset is the next best. An entry that is gone or still armed means that a trial never
# came as far as Python, and says nothing against the image.
def _back(entry, cause, journal):
    trials = 0
    if entry and entry.state in (otadata.ABORTED, otadata.INVALID):
        trials = entry.marks + 1
    for _, _, stage, code, detail in reversed(journal):
        if stage == "boot" and code in _WITNESS:
            if cause == _WATCHDOG:
                break  # the last trial died in another way
            return Verdict("rolled_back", code, detail, trials)
    if not trials:
        code = "power" if cause == _POWER_ON else "not_booted"
        return Verdict("rolled_back", code, "no trial boot", 0)
    if not entry.marks and cause != _POWER_ON:
        return Verdict("rolled_back", "not_booted", "died before stage 0", trials)
    detail = "reset cause %d" % cause
    return Verdict("rolled_back", _cause(cause), detail, trials)


WAIT = const(0)
CONFIRM = const(1)
FAIL = const(2)


# One look at a release on trial: (WAIT, CONFIRM or FAIL, what is missing). Confirmed as soon as
# everything works; at the deadline without the orchestrator too, as long as it is the orchestrator
# that is away (`refused` is False) and the policy allows it: its outage must not undo a good
# release. One that refuses us, in a sealed answer, means that this release cannot speak to it.
#   ble      advertising as far as this board can: True, False
#   services the beacon's services run and no task has died
def health(ble, services, wifi, exchanged, refused, late, offline_ok):
    if ble and services and wifi and exchanged:
        return CONFIRM, ""
    if not ble:
        missing = "bluetooth"
    elif not services:
        missing = "services"
    elif not wifi:
        missing = "wifi"
    elif refused:
        missing = "refused by the orchestrator"
    else:
        missing = AWAY
        if late and offline_ok:
            return CONFIRM, missing
    return (FAIL if late else WAIT), missing
