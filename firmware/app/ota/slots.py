# The partitions an update works on. What must never happen is refused here, whoever asks: writing
# the slot that runs, arming on trial, arming a slot that otadata selects already (the port's
# set_boot would then overwrite the record of the old release).

import asyncio
from binascii import hexlify
from hashlib import sha256
from struct import unpack_from

from esp32 import Partition
from micropython import const

from ota import otadata

SECTOR = const(4096)
_OTA = const(0x10)
_MAGIC = const(0xE9)
_SEGMENTS = const(16)
_FACTORY = const(-1)


# The flash would not do as it was told: a code of stage "flash".
class FlashError(Exception):
    def __init__(self, code, detail):
        super().__init__(code, detail)
        self.code = code
        self.detail = detail


class Slots:
    def __init__(self):
        self._running = Partition(Partition.RUNNING)
        self._slots = []
        while len(self._slots) < 16:
            found = Partition.find(Partition.TYPE_APP, _OTA + len(self._slots))
            if not found:
                break
            self._slots.append(found[0])
        found = Partition.find(Partition.TYPE_DATA, 0)
        self._ota = found[0] if found and self._slots else None
        self.count = len(self._slots)
        # The number of the slot that runs, -1 for the factory app.
        kind = self._running.info()[1]
        self.running = kind - _OTA if kind >= _OTA else _FACTORY

    def entries(self):
        entries = []
        raw = bytearray(otadata.SIZE)
        for sector in (0, 1):
            if self._ota:
                self._ota.readblocks(sector, raw, 0)
            else:
                raw = b"\xff" * otadata.SIZE
            entries.append(otadata.Entry(raw))
        return entries

    def on_trial(self):
        return bool(self._ota) and otadata.on_trial(self.entries(), self.running, self.count)

    def info(self, slot):
        return self._slots[slot].info()

    def partition(self, slot):
        return self._slots[slot]

    # Is another slot armed that has not booted yet?
    def armed(self):
        entries = self.entries()
        a = otadata.active(entries)
        return (
            a >= 0
            and entries[a].slot(self.count) != self.running
            and entries[a].state == otadata.NEW
        )

    # Which trial boot of the running release this is: stage 0 burns a mark in each but the last.
    def trials(self):
        entries = self.entries()
        entry = entries[otadata.active(entries)]
        return entry.marks + (entry.state == otadata.PENDING)

    # The slot that otadata's other entry speaks of: where the release before this one lies. None
    # when it speaks of none.
    def other(self):
        entries = self.entries()
        entry = entries[1 - otadata.active(entries)]
        if not entry.intact or entry.slot(self.count) == self.running:
            return None
        return entry.slot(self.count)

    # The slots that a release of `size` bytes could go into, the best first: never the one that
    # runs, and none of those in the bitmap `bad`.
    def targets(self, size, bad):
        found = []
        for i in range(1, self.count + 1):
            slot = (self.running + i) % self.count
            if slot != self.running and not bad >> slot & 1 and self.room(slot) >= size:
                found.append(slot)
        return found

    def room(self, slot):
        return self._slots[slot].info()[3]

    # The largest release that fits anywhere.
    def max_room(self):
        return max([self.room(i) for i in range(self.count) if i != self.running] or [0])

    # Takes back the choice of a slot that is not running: an image that the bootloader would not
    # boot, or one that was armed and given up. Afterwards otadata speaks for the running slot, or
    # for nobody.
    def unarm(self):
        entries = self.entries()
        a = otadata.active(entries)
        if self._ota and a >= 0 and entries[a].slot(self.count) != self.running:
            self._ota.ioctl(6, a)

    # Erases whatever otadata says besides the choice of the running slot.
    def erase_stale(self):
        self.unarm()
        entries = self.entries()
        a = otadata.active(entries)
        for i in (0, 1):
            if self._ota and i != a and not entries[i].blank:
                self._ota.ioctl(6, i)

    # Makes `slot` the one that boots next, on trial. Blocks for as long as hashing the core takes.
    def arm(self, slot):
        if not self._ota or slot == self.running or self.on_trial():
            raise FlashError("no_slot", "not while slot %d runs" % self.running)
        # A fresh sector: set_boot keeps the label bytes it finds, and with them old trial marks.
        self.erase_stale()
        self._slots[slot].set_boot()
        entries = self.entries()
        a = otadata.active(entries)
        if a < 0 or entries[a].slot(self.count) != slot or entries[a].marks:
            raise FlashError("write", "otadata does not select slot %d" % slot)

    # What `slot` holds boots by no way: it has no head any more, and otadata does not choose it.
    def give_up(self, slot):
        try:
            if slot != self.running:
                self._slots[slot].ioctl(6, 0)
        finally:
            self.unarm()

    # Ends the trial for good. True only when otadata says so when read back.
    def confirm(self):
        if not self.on_trial():
            return False
        Partition.mark_app_valid_cancel_rollback()
        entries = self.entries()
        a = otadata.active(entries)
        return (
            a >= 0
            and entries[a].slot(self.count) == self.running
            and entries[a].state == otadata.VALID
        )

    # SHA-256 of a slot's release image as hex, "" when there is none. In steps of a sector, so
    # that the other tasks go on.
    async def digest(self, slot=None):
        part = self._running if slot is None else self._slots[slot]
        length = image_length(part)
        if not length:
            return ""
        buf = bytearray(SECTOR)
        sha = sha256()
        for at in range(0, length, SECTOR):
            part.readblocks(0, buf, at)
            sha.update(memoryview(buf)[: length - at] if length - at < SECTOR else buf)
            await asyncio.sleep_ms(0)
        return hexlify(sha.digest()).decode()


# The length of the release image in a slot: to the end of the app filesystem behind the core, or
# of the core when its app is frozen into it. 0 when there is no image.
def image_length(part):
    size = part.info()[3]
    head = bytearray(32)
    part.readblocks(0, head, 0)
    count, hashed = head[1], head[23]
    if head[0] != _MAGIC or count > _SEGMENTS:
        return 0
    at = 24
    for _ in range(count):
        part.readblocks(0, head, at)
        at += 8 + unpack_from("<I", head, 4)[0]
        if at > size - SECTOR:
            return 0
    core = (at + 16 & -16) + (32 if hashed else 0)
    tail = (core + SECTOR - 1) & -SECTOR
    if tail <= size - SECTOR:
        part.readblocks(0, head, tail)
        block, blocks = unpack_from("<II", head, 24)
        if head[8:16] == b"littlefs" and 0 < block * blocks <= size - tail:
            return tail + block * blocks
    return core if core <= size else 0
