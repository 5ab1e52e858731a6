# The loops of device_loop.py on flash that costs nothing: what is left is the loop itself.

from mp import chip

SECTOR = 4096
chip.modules(chip.Chip(chip.layout(slot=1)))

from device_loop import bare, ours, race, server, stall  # noqa: E402, F401


# Flash that costs what moving the bytes costs; eight sectors of it, over and over.
class Flash:
    def __init__(self, size):
        self.size = size
        self.memory = memoryview(bytearray(8 * SECTOR))

    # Only the first page of all has to be blank afterwards: it is left out when the rest is
    # written.
    def ioctl(self, op, sector):
        if not sector:
            self.memory[:256] = b"\xff" * 256
        return 0

    def writeblocks(self, sector, buf, offset=0):
        at = sector % 8 * SECTOR + offset
        self.memory[at : at + len(buf)] = buf

    def readblocks(self, sector, buf, offset=0):
        at = sector % 8 * SECTOR + offset
        buf[:] = self.memory[at : at + len(buf)]

    def info(self):
        return (0, 0x11, 0, self.size + 2 * SECTOR, "ota_1", False)
