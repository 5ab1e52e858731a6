# Chooses the slot that boots next: the methods of Slots that change otadata, and those that are
# needed once in a boot. Two operations are always refused: arming a slot during a trial, and arming
# a slot that otadata selects already (the port's set_boot would overwrite the old release's entry).

from ota import image, otadata
from ota.slots import FlashError


# Whether another slot is armed and has not booted yet.
def is_armed(slots):
    entries = slots.entries()
    a = otadata.active_index(entries)
    return (
        a >= 0 and entries[a].slot(slots.count) != slots.running and entries[a].state == otadata.NEW
    )


# The number of this trial boot of the running release: stage 0 marks each but the last.
def trial_number(slots):
    entries = slots.entries()
    entry = entries[otadata.active_index(entries)]
    return entry.trial_marks + (entry.state == otadata.PENDING)


# The slot of otadata's other entry, which holds the release before this one; None without one.
def other_slot(slots):
    entries = slots.entries()
    entry = entries[1 - otadata.active_index(entries)]
    if not entry.intact or entry.slot(slots.count) == slots.running:
        return None
    return entry.slot(slots.count)


# Erases the entry that selects a slot which is not running: its image did not boot, or was armed
# and then given up. Afterwards otadata selects the running slot, or none.
def disarm(slots):
    entries = slots.entries()
    a = otadata.active_index(entries)
    if slots.ota and a >= 0 and entries[a].slot(slots.count) != slots.running:
        slots.ota.ioctl(6, a)


# Erases every otadata entry but the one that selects the running slot.
def erase_stale_entries(slots):
    disarm(slots)
    entries = slots.entries()
    a = otadata.active_index(entries)
    for i in (0, 1):
        if slots.ota and i != a and not entries[i].blank:
            slots.ota.ioctl(6, i)


# Makes `slot` boot next, on trial. Blocks while the port hashes the core.
def arm(slots, slot):
    if not slots.ota or slot == slots.running or slots.is_on_trial():
        raise FlashError("no_slot", "not while slot %d runs" % slots.running)
    # set_boot() keeps the label bytes that it finds, and with them old trial marks.
    erase_stale_entries(slots)
    slots.parts[slot].set_boot()
    entries = slots.entries()
    a = otadata.active_index(entries)
    if a < 0 or entries[a].slot(slots.count) != slot or entries[a].trial_marks:
        raise FlashError("write", "otadata does not select slot %d" % slot)


# Makes sure that the image in `slot` cannot boot: erases its head and its otadata entry.
def discard(slots, slot):
    try:
        if slot != slots.running:
            slots.parts[slot].ioctl(6, 0)
    finally:
        disarm(slots)


# Confirms the running release. True only when otadata reads back as VALID.
def confirm(slots):
    if not slots.is_on_trial():
        return False
    slots.running_app.mark_app_valid_cancel_rollback()
    entries = slots.entries()
    a = otadata.active_index(entries)
    return (
        a >= 0
        and entries[a].slot(slots.count) == slots.running
        and entries[a].state == otadata.VALID
    )


# SHA-256 of a slot's release image, of the running one's by default.
async def digest(slots, slot=None):
    return await image.digest(slots.running_app if slot is None else slots.parts[slot])
