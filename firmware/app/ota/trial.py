# Decides what became of an update, and whether a release on trial passes its health check. Pure
# functions of the attempt's record, otadata, the journal and the reset cause.

from micropython import const

from ota import otadata

_POWER_ON = const(1)
_WATCHDOG = const(3)

# Codes of journal entries that tell how a trial ended: written by the trial itself, or found out
# afterwards.
_WITNESS = const(("crash", "self_test", "watchdog"))


# Details of trials that fail through no fault of the image: an access point reboots, the
# orchestrator is away, flash fails, a person at the USB port resets the chip (cause 0). The release
# is rolled back all the same.
_WIFI = const("wifi")
AWAY = "orchestrator away"  # followed by the detail of an answer that was not authentic
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

    # Whether the image itself is at fault, so that it must not be tried again. Never without a
    # trial boot: a faulty image that is tried again costs no more than the orchestrator's limit of
    # attempts, but a good image that is denied stays denied for ever.
    def image_at_fault(self):
        if self.status != "rolled_back" or not self.trials:
            return False
        if self.detail in _OUTSIDE or self.detail.startswith(AWAY):
            return False
        return self.code in ("self_test", "crash", "watchdog")


# The Verdict on the attempt in `record`, from the state that this boot found. None when the release
# is still on trial, or the attempt was concluded before.
#   record   dict with status ("downloading", "verifying", "rebooting" or a final one), slot, armed,
#            back (see ota/returned.py)
#   entries  otadata, which may record the return, too
#   running  slot number, -1 for the factory app
#   slots    number of app slots, 0 without an A/B layout
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
        # Confirmed, but the power failed before the record was written.
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
            # NVS took nothing: the entries are lost that would tell a crash from a missing network.
            found.code = "not_booted"
            found.detail += _UNHEARD
        return found
    # The return was recorded nowhere: the reset cause may be that of the old release.
    return _not_booted(cause, "nothing is known of a trial")


# Stage 0 has given the running release a trial because the release in slot `other` kept crashing.
# That one belongs to the attempt if it was armed there, and had then confirmed itself.
def diagnose_rescue(record, other, journal):
    if not record.get("armed") or other != record.get("slot"):
        return Verdict("rolled_back", "not_booted", "another slot was rescued")
    return diagnose_crash(journal)


# The Verdict on a release that had confirmed itself and kept crashing. Stage 0 journalled its last
# reset; without that entry a hang cannot be told from a crash.
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


# The Verdict when the old release runs again. The entries that the trials journalled come first,
# then the cause of the reset that ended the last trial. If the otadata entry is gone or still armed
# and no trial journalled anything, no trial reached Python, and the image is not at fault.
def _diagnose_return(entry, cause, journal):
    trials = 0
    if entry and entry.state in (otadata.ABORTED, otadata.INVALID):
        trials = entry.trial_marks + 1
    for _, _, stage, code, detail in reversed(journal):
        if stage == "boot" and code in _WITNESS:
            if cause == _WATCHDOG:
                break  # the last trial ended in another way than this entry says
            # The otadata entry may be gone: power failed while the bootloader wrote ABORTED.
            return Verdict("rolled_back", code, detail, trials or 1)
    if not trials:
        return _not_booted(cause, "no trial boot")
    if not entry.trial_marks and cause != _POWER_ON:
        return Verdict("rolled_back", "not_booted", "died before stage 0", trials)
    return Verdict("rolled_back", _code_of_reset(cause), _RESET_BY % cause, trials)


WAIT = const(0)
CONFIRM = const(1)
FAIL = const(2)


# One health check of a release on trial: (WAIT, CONFIRM or FAIL, what is missing). The release is
# confirmed as soon as everything works. At the deadline it is also confirmed without the
# orchestrator, if that is away (not `refused`) and the policy allows it: an outage must not undo a
# good release. A sealed refusal means that this release cannot talk to the orchestrator.
#   ble      advertising as far as this board can: True, False
#   services the beacon's services run, and no task has died
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
