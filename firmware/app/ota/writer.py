# Writes a release into a slot, one sector at a time. A sector that holds its bytes already is kept.
# Any other is erased, programmed, read back and compared; it gets a second try. A second failure,
# or a failed erase, gives up the slot.
#
# The slot's first page, the image's head, is blank before any other sector is written, and stays
# blank until ota/bootable.py has hashed the slot and programs it. Until then neither the bootloader
# nor stage 0 takes the slot for an image. Nothing else would keep a half-written slot from booting:
# a core that did not change is complete there, and LittleFS has no checksum over the contents of
# its files.

from micropython import const

from ota.slots import SECTOR, FlashError

_PIECE = const(1024)  # read-back chunk, bytes: 4 flash reads a sector save 3 KB of heap
_PAGE = const(256)  # bytes that NOR flash programs at once


class Writer:
    # `part` is never the running slot (Slots.target_slots). `cost` is a list that counts bytes
    # fetched, sectors kept, and sectors written. `decrypt(buf, offset)` decrypts downloaded bytes
    # in place.
    def __init__(self, part, cost, decrypt=None):
        self.cost = cost
        cost[1] = 0
        self._decrypt = decrypt
        self.buf = bytearray(SECTOR)
        view = memoryview(self.buf)
        self._pieces = [view[at : at + _PIECE] for at in range(0, SECTOR, _PIECE)]
        self.head = bytearray(_PAGE)
        # Looked up once instead of for every sector, which makes an update noticeably faster.
        self._flash = part.ioctl, part.writeblocks, part.readblocks, bytearray(_PIECE)
        self.written = 0

    # Writes the next `size` bytes of the image, a whole sector or the image's last bytes: those in
    # `buf`, which were downloaded, or those that the partition `source` holds at the same place.
    # Afterwards flash has read back as what `buf` holds.
    def write(self, size, source=None):
        data = buf = self.buf
        sector = self.written // SECTOR
        cost = self.cost
        if source:
            source.readblocks(sector, buf)
        else:
            cost[0] += size
            if size < SECTOR or self._decrypt:
                self._prepare(size)
        start = 0
        if not sector:
            # The head is left out rather than programmed as blank: a page is programmed only once.
            page = memoryview(buf)[:_PAGE]
            self.head[:] = page
            page[:] = b"\xff" * _PAGE
            data = memoryview(buf)[_PAGE:]
            start = _PAGE
        erase, program, read, back = self._flash
        for tried in (0, 1, 2):
            code = "readback"
            try:
                if tried:
                    code = "erase"
                    erase(6, sector)
                    code = "write"
                    program(sector, data, start)
                    code = "readback"
                at = 0
                for piece in self._pieces:
                    read(sector, back, at)
                    if back != piece:
                        detail = "reads otherwise"
                        break
                    at += _PIECE
                else:
                    break
            except OSError as error:
                detail = error
            if tried == 2 or code == "erase":
                raise FlashError(code, "sector %d: %s" % (sector, detail))
        cost[2 if tried else 1] += 1
        self.written += size

    def _prepare(self, size):
        buf = self.buf
        for i in range(size, SECTOR):
            buf[i] = 0xFF
        if self._decrypt:
            self._decrypt(memoryview(buf)[:size], self.written)

    # Begins again with the first sector.
    def restart(self):
        self.cost[1] = self.written = 0
