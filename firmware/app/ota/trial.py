# What became of an update, and whether a release on trial is fit to stay. Pure: the attempt record,
# otadata, the journal and the reset cause go in, a decision comes out.

from micropython import const

from ota import otadata

_POWER_ON = const(1)
_WATCHDOG = const(3)

# What the journal tells of a trial: its own last words, or what was found out of it before the
# power failed.
_WITNESS = const(("crash", "self_test", "watchdog"))


# What a trial may lack, or end by, without the image being to blame: an access point reboots, an
# orchestrator is away, flash does not do as it is told, somebody at the USB port resets the chip
# (which has no cause of its own). The release is rolled back all the same.
_WIFI = const("wifi")
AWAY = "orchestrator away"  # also where somebody else answers in its place, who is named then
UNCONFIRMED = "otadata would not confirm"
_RESET_BY = const("reset cause %d")
_OUTSIDE = (_WIFI, UNCONFIRMED, _RESET_BY % 0)
_UNHEARD = const(", nothing more was noted")


# An attempt's end: update_status, code of stage "boot", detail, trial boots.
class Verdict:
    def __init__(self, status, code="", detail="", trials=0):
        self.status = status
        self.code = code
        self.detail = detail
        self.trials = trials

    # Is the image itself to blame, so that it must not be tried again? Never without a trial boot:
    # the orchestrator's limit of attempts bounds what a wrong acquittal costs, and a wrong
    # conviction has no end.
    def image_at_fault(self):
        if self.status != "rolled_back" or not self.trials:
            return False
        if self.detail in _OUTSIDE or self.detail.startswith(AWAY):
            return False
        return self.code in ("self_test", "crash", "watchdog")


# What the boot that just happened says about the attempt in `record`. None: nothing to say, the
# release is still on trial (or there was no attempt).
#   record   dict with status ("downloading", "verifying", "rebooting" or a final one), slot, armed,
#            back (see ota/returned.py)
#   entries  otadata, where the return may be noted, too
#   running  slot number, -1 for the factory app
#   cause    machine.reset_cause() of this boot
#   journal  entries written since the slot was armed
def diagnose_previous_attempt(record, entries, running, slots, cause, journal):
    status = record.get("status")
    if status in ("success", "failed", "rolled_back"):
        return None
    if status != "rebooting":
        return Verdict("failed", _code_of_reset(cause), "reset while " + str(status))
    slot = record.get("slot")
    entry = otadata.newest_entry_of(entries, slot, slots) if slots else None
    if running == slot:
        if otadata.is_on_trial(entries, running, slots):
            return None
        # Confirmed, and cut off before the record could say so.
        return Verdict("success", trials=max(entry.trial_marks, 1) if entry else 1)
    if not record.get("armed"):
        return _not_booted(cause, "not armed")
    back = record.get("back")
    if _is_return(back):
        cause, head = back
        return _diagnose_return(entry, cause, [said for said in journal if said[0] <= head])
    if entry and entry.return_cause is not None and entry.return_cause >= 0:
        found = _diagnose_return(entry, entry.return_cause, ())
        if found.code == "crash":
            # NVS took nothing: the words are lost that would tell a crash from a missing network.
            found.code = "not_booted"
            found.detail += _UNHEARD
        return found
    # Noted nowhere: whatever this boot knows may have happened to the old release.
    return _not_booted(cause, "nothing is known of a trial")


# Stage 0 gave the running release a trial. `other` is the slot of the one that crashed; it is the
# attempt's when that one had confirmed itself before.
def diagnose_rescue(record, other, journal):
    if not record.get("armed") or other != record.get("slot"):
        return Verdict("rolled_back", "not_booted", "another slot was rescued")
    return diagnose_crash(journal)


# The end of a release that had confirmed itself. Stage 0 wrote down what the last of its resets
# was; without that entry nothing tells a hang from a crash.
def diagnose_crash(journal):
    for _, _, stage, code, detail in reversed(journal):
        if stage == "boot" and code == "rescue":
            code = "watchdog" if detail.endswith("watchdog") else "crash"
            return Verdict("rolled_back", code, "rescued to " + detail, 1)
    return Verdict("rolled_back", "crash", "rescued", 1)


def _is_return(back):
    return isinstance(back, list) and len(back) == 2 and all(isinstance(n, int) for n in back)


def _not_booted(cause, detail):
    code = "power" if cause == _POWER_ON else "not_booted"
    return Verdict("rolled_back", code, detail)


def _code_of_reset(cause):
    return {_POWER_ON: "power", _WATCHDOG: "watchdog"}.get(cause, "crash")


# The old release runs again. What the trials wrote themselves is the best witness; the cause of
# the reset that ended the last one is the next best. An entry that is gone or still armed, and no
# word of any trial, mean that none came as far as Python, and say nothing against the image.
def _diagnose_return(entry, cause, journal):
    trials = 0
    if entry and entry.state in (otadata.ABORTED, otadata.INVALID):
        trials = entry.trial_marks + 1
    for _, _, stage, code, detail in reversed(journal):
        if stage == "boot" and code in _WITNESS:
            if cause == _WATCHDOG:
                break  # the last trial died in another way
            # The entry may be gone: power failed while the bootloader wrote that it was aborted.
            return Verdict("rolled_back", code, detail, trials or 1)
    if not trials:
        return _not_booted(cause, "no trial boot")
    if not entry.trial_marks and cause != _POWER_ON:
        return Verdict("rolled_back", "not_booted", "died before stage 0", trials)
    return Verdict("rolled_back", _code_of_reset(cause), _RESET_BY % cause, trials)


WAIT = const(0)
CONFIRM = const(1)
FAIL = const(2)


# One look at a release on trial: (WAIT, CONFIRM or FAIL, what is missing). Confirmed as soon as
# everything works; at the deadline without the orchestrator too, as long as it is the orchestrator
# that is away (`refused` is False) and the policy allows it: its outage must not undo a good
# release. One that refuses us, in a sealed answer, means that this release cannot speak to it.
#   ble      advertising as far as this board can: True, False
#   services the beacon's services run and no task has died
def check_health(ble, services, wifi, exchanged, refused, late, offline_ok):
    if ble and services and wifi and exchanged:
        return CONFIRM, ""
    if not ble:
        missing = "bluetooth"
    elif not services:
        missing = "services"
    elif not wifi:
        missing = _WIFI
    elif refused:
        missing = "refused by the orchestrator"
    else:
        missing = AWAY
        if late and offline_ok:
            return CONFIRM, missing
    return (FAIL if late else WAIT), missing
