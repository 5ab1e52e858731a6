# Which slot boots next: the methods of Slots that change otadata, and what is asked of it once in a
# boot. What must never happen is refused here, whoever asks: arming on trial, arming a slot that
# otadata selects already (the port's set_boot would then overwrite the record of the old release).

from ota import otadata
from ota.image import image_digest
from ota.slots import FlashError


# Is another slot armed that has not booted yet?
def is_armed(slots):
    entries = slots.entries()
    a = otadata.active_index(entries)
    return (
        a >= 0 and entries[a].slot(slots.count) != slots.running and entries[a].state == otadata.NEW
    )


# Which trial boot of the running release this is: stage 0 burns a mark in each but the last.
def trial_number(slots):
    entries = slots.entries()
    entry = entries[otadata.active_index(entries)]
    return entry.trial_marks + (entry.state == otadata.PENDING)


# The slot that otadata's other entry speaks of: where the release before this one lies. None
# when it speaks of none.
def other_slot(slots):
    entries = slots.entries()
    entry = entries[1 - otadata.active_index(entries)]
    if not entry.intact or entry.slot(slots.count) == slots.running:
        return None
    return entry.slot(slots.count)


# Takes back the choice of a slot that is not running: an image that the bootloader would not
# boot, or one that was armed and given up. Afterwards otadata speaks for the running slot, or
# for nobody.
def disarm(slots):
    entries = slots.entries()
    a = otadata.active_index(entries)
    if slots.ota and a >= 0 and entries[a].slot(slots.count) != slots.running:
        slots.ota.ioctl(6, a)


# Erases whatever otadata says besides the choice of the running slot.
def erase_stale_entries(slots):
    disarm(slots)
    entries = slots.entries()
    a = otadata.active_index(entries)
    for i in (0, 1):
        if slots.ota and i != a and not entries[i].blank:
            slots.ota.ioctl(6, i)


# Makes `slot` the one that boots next, on trial. Blocks for as long as hashing the core takes.
def arm(slots, slot):
    if not slots.ota or slot == slots.running or slots.is_on_trial():
        raise FlashError("no_slot", "not while slot %d runs" % slots.running)
    # A fresh sector: set_boot keeps the label bytes it finds, and with them old trial marks.
    erase_stale_entries(slots)
    slots.parts[slot].set_boot()
    entries = slots.entries()
    a = otadata.active_index(entries)
    if a < 0 or entries[a].slot(slots.count) != slot or entries[a].trial_marks:
        raise FlashError("write", "otadata does not select slot %d" % slot)


# What `slot` holds boots by no way: it has no head any more, and otadata does not choose it.
def discard(slots, slot):
    try:
        if slot != slots.running:
            slots.parts[slot].ioctl(6, 0)
    finally:
        disarm(slots)


# Ends the trial for good. True only when otadata says so when read back.
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
    return await image_digest(slots.running_app if slot is None else slots.parts[slot])
