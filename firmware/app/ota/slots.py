# The partitions that an update uses. The running slot is never offered for writing. The methods
# that change otadata, or are needed once in a boot, are in ota/boot_slot.py, which an idle beacon
# does not hold in memory.

from esp32 import Partition
from micropython import const

from ota import otadata

SECTOR = const(4096)
_OTA = const(0x10)
_FACTORY = const(-1)


# A flash operation failed; `code` is one of stage "flash".
class FlashError(Exception):
    def __init__(self, code, detail):
        super().__init__(code, detail)
        self.code = code
        self.detail = detail


class Slots:
    def __init__(self):
        self.running_app = Partition(Partition.RUNNING)
        self.parts = []
        while len(self.parts) < 16:
            found = Partition.find(Partition.TYPE_APP, _OTA + len(self.parts))
            if not found:
                break
            self.parts.append(found[0])
        found = Partition.find(Partition.TYPE_DATA, 0)
        self.ota = found[0] if found and self.parts else None
        self.count = len(self.parts)
        # The number of the running slot, -1 for the factory app.
        kind = self.running_app.info()[1]
        self.running = kind - _OTA if kind >= _OTA else _FACTORY

    # The functions of ota/boot_slot.py as methods; their callers unload that module afterwards.
    def __getattr__(self, name):
        from ota import boot_slot

        found = getattr(boot_slot, name)
        return lambda *args: found(self, *args)

    def entries(self):
        entries = []
        raw = bytearray(otadata.SIZE)
        for sector in (0, 1):
            if self.ota:
                self.ota.readblocks(sector, raw, 0)
            else:
                raw = b"\xff" * otadata.SIZE
            entries.append(otadata.Entry(raw))
        return entries

    def is_on_trial(self):
        return bool(self.ota) and otadata.is_on_trial(self.entries(), self.running, self.count)

    def partition(self, slot):
        return self.parts[slot]

    # The slots that can take a release of `size` bytes, the best first: never the running one, and
    # none of the bitmap `bad`.
    def target_slots(self, size, bad):
        found = []
        for i in range(1, self.count + 1):
            slot = (self.running + i) % self.count
            if slot != self.running and not bad >> slot & 1 and self.capacity(slot) >= size:
                found.append(slot)
        return found

    def capacity(self, slot):
        return self.parts[slot].info()[3]

    # Bytes of the largest release that fits into a slot.
    def max_capacity(self):
        return max([self.capacity(i) for i in range(self.count) if i != self.running] or [0])
