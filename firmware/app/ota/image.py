# Measures and hashes the release image in a slot.

import asyncio
from binascii import hexlify
from hashlib import sha256
from struct import unpack_from

from micropython import const

_SECTOR = const(4096)
_MAGIC = const(0xE9)
_SEGMENTS = const(16)
_TURN = const(32768)  # bytes after which other tasks may run


# The length of the release image in a slot: to the end of the app filesystem behind the core, or
# of the core when its app is frozen into it. With `core`, of the core alone. 0 when there is no
# image.
def image_length(part, core=False):
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
        if at > size - _SECTOR:
            return 0
    end = (at + 16 & -16) + (32 if hashed else 0)
    tail = (end + _SECTOR - 1) & -_SECTOR
    if not core and tail <= size - _SECTOR:
        part.readblocks(0, head, tail)
        block, blocks = unpack_from("<II", head, 24)
        if head[8:16] == b"littlefs" and 0 < block * blocks <= size - tail:
            return tail + block * blocks
    return end if end <= size else 0


# SHA-256 in hex of a slot's release image, or of its first `length` bytes; "" when there is none.
# Other tasks run after every few sectors.
async def digest(part, length=None):
    if length is None:
        length = image_length(part)
    if not length:
        return ""
    buf = bytearray(_SECTOR)
    sha = sha256()
    for at in range(0, length, _SECTOR):
        part.readblocks(0, buf, at)
        sha.update(memoryview(buf)[: length - at] if length - at < _SECTOR else buf)
        if not at % _TURN:
            await asyncio.sleep_ms(0)
    return hexlify(sha.digest()).decode()
