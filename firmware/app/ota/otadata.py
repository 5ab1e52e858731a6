# The two entries by which the bootloader chooses a slot, read as it reads them. Pure: bytes in,
# decisions out; ota/slots.py does the flash.

from binascii import crc32
from struct import pack, unpack_from

from micropython import const

SIZE = const(32)
NEW = const(0)
PENDING = const(1)
VALID = const(2)
INVALID = const(3)
ABORTED = const(4)

_BLANK = const(0xFFFFFFFF)
_LABEL = const(4)
_MARKS = const(2)  # label bytes that stage 0 burns, one per trial before the last
BACK = const(8)  # and those of ota/returned.py: a reset cause and its complement


# One entry. `good`: the CRC is right and nothing rejects it, so the bootloader may follow it.
class Entry:
    def __init__(self, raw):
        self.blank = raw == b"\xff" * SIZE
        self.seq = unpack_from("<I", raw)[0]
        self.state, crc = unpack_from("<II", raw, 24)
        self.intact = self.seq != _BLANK and crc == crc32(pack("<I", self.seq), _BLANK)
        self.usable = self.intact and self.state not in (INVALID, ABORTED)
        self.trial_marks = sum(raw[_LABEL + i] != 0xFF for i in range(_MARKS))
        cause, check = raw[BACK], raw[BACK + 1]
        # What ended the last trial: None when nothing is written there, -1 when power failed in it.
        self.return_cause = (
            None if cause & check == 0xFF else cause if cause ^ check == 0xFF else -1
        )

    def slot(self, slots):
        return (self.seq - 1 & _BLANK) % slots


# The sector of the entry that counts, -1 for none.
def active_index(entries):
    best = -1
    for i, entry in enumerate(entries):
        if entry.usable and (best < 0 or entry.seq > entries[best].seq):
            best = i
    return best


# The entry that speaks of a slot, whatever its state: where a failed trial has left its traces.
# Of two, the one with the larger number is the younger.
def newest_entry_of(entries, slot, slots):
    found = None
    for entry in entries:
        if entry.intact and entry.slot(slots) == slot and (not found or entry.seq > found.seq):
            found = entry
    return found


# Is the release in slot `running` on trial? Stage 0 turns PENDING back to NEW, so both mean it.
def is_on_trial(entries, running, slots):
    a = active_index(entries)
    return a >= 0 and entries[a].slot(slots) == running and entries[a].state in (NEW, PENDING)
