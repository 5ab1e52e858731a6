# Makes the slot of a downloaded release bootable; the only module that writes an image's head.
# Callers have checked that the hash of the slot with the kept head is the signed one, and, before
# the head is written, that the orchestrator has acknowledged `rebooting`. An attempt that was
# cancelled before that can never boot, not even when stage 0 rescues a crashing release.

import machine
from wire.refused import Refused

from ota.image import digest, image_length
from ota.slots import SECTOR, FlashError


# A partition that reads as if the head were written already.
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


# Raises Refused unless the slot `part` holds the release with this SHA-256, read back from flash,
# and unless core and app fill it exactly. `head` is the image's first page, which is still blank in
# the slot; `size` is the whole image's.
async def check_image(part, size, head, checksum):
    slot = _CompletedSlot(part, head)
    found = await digest(slot, size)
    if found != checksum:
        raise Refused("checksum", "flash holds " + found[:16])
    _erase_behind(part, size)
    if image_length(slot) != size:
        raise Refused("image", "core and app do not fill the release")


# Erases the sector behind the image: leftovers of the previous release could pass for the app
# filesystem of a core that has none.
def _erase_behind(part, size):
    sector = (size + SECTOR - 1) // SECTOR
    if sector * SECTOR < part.info()[3]:
        try:
            part.ioctl(6, sector)
        except OSError as error:
            raise FlashError("erase", "sector %d: %s" % (sector, error))


# Writes the head in at most two tries; the second only clears bits that the first one left. A head
# that fails is erased, because a partial or unverified one must not stay.
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


# The last step of an attempt, which ends in a reset. No other task runs meanwhile, so later journal
# entries belong to the trial.
def arm_slot(beacon, attempt, slot, head):
    attempt.record["armed"] = True
    attempt.record["journal"] = beacon.journal.newest
    attempt.save_status("rebooting")
    try:
        try:
            write_head(beacon.slots.partition(slot), head)
        except FlashError:
            # This slot is not used again until the next power-on.
            beacon.store.try_put("bad_slot", beacon.store.number("bad_slot") | 1 << slot)
            raise
        change_otadata(beacon.slots.arm, slot)
    except Exception:
        _discard_slot(beacon.slots, slot)
        raise
    machine.reset()


# A release that is reported as failed must not boot at the next reset, nor by a rescue.
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
