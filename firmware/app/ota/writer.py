# Writes a release into a slot, one sector at a time: erase, program, read back, compare. Only bytes
# that read back the same are hashed. A sector gets a second try; a second failure, or a failed
# erase, gives up the slot.
#
# The slot's first page, the image's head, is erased before any other part of the slot and stays
# blank until ota/bootable.py programs it. Until then neither the bootloader nor stage 0 takes the
# slot for an image. Nothing else would keep a half-written slot from booting: a core that did not
# change is complete there, and LittleFS has no checksum over the contents of its files.

import asyncio
from binascii import hexlify
from hashlib import sha256

from micropython import const

from ota.slots import SECTOR, FlashError

_PIECE = const(1024)  # read-back chunk, bytes: 4 flash reads a sector save 3 KB of heap
_PAGE = const(256)  # bytes that NOR flash programs at once


class Writer:
    # `part` is never the running slot (Slots.target_slots). `decrypt(buf, offset)` decrypts
    # downloaded bytes in place.
    def __init__(self, part, size, decrypt=None):
        self._part = part
        self.size = size
        self._decrypt = decrypt
        self._sha = sha256()
        self.buf = bytearray(SECTOR)
        view = memoryview(self.buf)
        self._pieces = [view[at : at + _PIECE] for at in range(0, SECTOR, _PIECE)]
        self.head = bytearray(_PAGE)
        # Looked up once instead of for every sector, which makes an update noticeably faster.
        self._flash = part.ioctl, part.writeblocks, part.readblocks, bytearray(_PIECE)
        self.written = 0

    # Writes the next `size` bytes of `buf`: a whole sector, or the image's last bytes. Every piece
    # is read back and compared, so afterwards flash holds what `buf` holds.
    def write(self, size):
        if size < SECTOR or self._decrypt:
            self._prepare(size)
        data = buf = self.buf
        sector = self.written // SECTOR
        start = 0
        if not sector:
            # The head is left out rather than programmed as blank: a page is programmed only once.
            page = memoryview(buf)[:_PAGE]
            self.head[:] = page
            page[:] = b"\xff" * _PAGE
            data = memoryview(buf)[_PAGE:]
            start = _PAGE
        erase, program, read, back = self._flash
        for last in (False, True):
            code = "erase"
            try:
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
            if last or code == "erase":
                raise FlashError(code, "sector %d: %s" % (sector, detail))
        if not sector:
            page[:] = self.head
        self._sha.update(buf if size == SECTOR else memoryview(buf)[:size])
        self.written += size

    def _prepare(self, size):
        buf = self.buf
        for i in range(size, SECTOR):
            buf[i] = 0xFF
        if self._decrypt:
            self._decrypt(memoryview(buf)[:size], self.written)

    # The server sends all of it again.
    def restart(self):
        self._sha = sha256()
        self.written = 0

    # Called before a download is resumed: hashes what is in flash again, with the kept head.
    async def rehash(self):
        self._sha = sha256()
        for at in range(0, self.written, SECTOR):
            self._part.readblocks(0, self.buf, at)
            if not at:
                memoryview(self.buf)[:_PAGE] = self.head
            self._sha.update(self.buf)
            await asyncio.sleep_ms(0)

    def digest(self):
        return hexlify(self._sha.digest()).decode()
