# Makes a slot bootable that a release was written to: the only place that writes an image's head.
# Whoever calls it has seen that the hash of what is in the slot, its kept head included, is the
# signed one; and for the head itself, that the orchestrator has let the beacon reboot. What was
# called off before that boots by no way, the rescue of a crashing release included.

import machine
from wire.refused import Refused

from ota.image import image_length
from ota.slots import SECTOR, FlashError


# A slot as it is going to be, for those who read partitions.
class _CompletedSlot:
    def __init__(self, part, head):
        self._part = part
        self._head = memoryview(head)
        self.info = part.info

    def readblocks(self, n, buf, off=0):
        self._part.readblocks(n, buf, off)
        at = n * SECTOR + off
        size = min(len(buf), len(self._head) - at)
        if size > 0:
            memoryview(buf)[:size] = self._head[at : at + size]


# Is all there but the head? `head` is the image's first page, which is blank in the slot `part`;
# `size` the whole image's.
def check_image(part, size, head):
    _erase_behind(part, size)
    if image_length(_CompletedSlot(part, head)) != size:
        raise Refused("image", "core and app do not fill the release")


# What the release before left behind the image could be its app filesystem, exactly where this
# one's would begin.
def _erase_behind(part, size):
    sector = (size + SECTOR - 1) // SECTOR
    if sector * SECTOR < part.info()[3]:
        try:
            part.ioctl(6, sector)
        except OSError as error:
            raise FlashError("erase", "sector %d: %s" % (sector, error))


# The second try only clears the bits that the first one left. A head that fails must not stay, in
# part or unread.
def write_head(part, head):
    back = bytearray(len(head))
    for _ in (0, 1):
        code = "write"
        try:
            part.writeblocks(0, head, 0)
            code = "readback"
            part.readblocks(0, back, 0)
            if back == head:
                return
            detail = "reads otherwise"
        except OSError as error:
            detail = error
    try:
        part.ioctl(6, 0)
    except OSError as error:
        print("flash:", error)
    raise FlashError(code, "head: %s" % detail)


# The last step of an attempt, for which everything else has been taken: ends in a reset. Nothing
# else runs meanwhile: what is journalled after this is the trial's.
def arm_slot(beacon, attempt, slot, head):
    attempt.record["armed"] = True
    attempt.record["journal"] = beacon.journal.newest
    attempt.save_status("rebooting")
    try:
        try:
            write_head(beacon.slots.partition(slot), head)
        except FlashError:
            # Not used again until the next power-on.
            beacon.store.try_put("bad_slot", beacon.store.number("bad_slot") | 1 << slot)
            raise
        change_otadata(beacon.slots.arm, slot)
    except Exception:
        _discard_slot(beacon.slots, slot)
        raise
    machine.reset()


# What is going to be told as failed must not boot by the next reset, nor by a rescue.
def _discard_slot(slots, slot):
    try:
        slots.discard(slot)
    except OSError as error:
        print("flash:", error)


def change_otadata(change, *args):
    try:
        change(*args)
    except OSError as error:
        if error.errno == -5379:  # ESP_ERR_OTA_VALIDATE_FAILED: the core is not bootable
            raise Refused("image", str(error))
        raise FlashError("write", "otadata: %s" % error)
