# AES-128-CTR over the stock core's ECB: decrypts an encrypted release on its way into flash.
# The counter block is one 128-bit big-endian number, as everywhere else (SP 800-38A), and the
# stream can be entered at any byte, so that a resumed download goes on where it stopped.

from cryptolib import aes
from micropython import const

from . import xor

_ECB = const(1)
_BATCH = const(16)  # counter blocks at a time
_SIZE = const(256)  # bytes of them
_WRAP = 1 << 128


# Works on sixteen blocks whose counters differ in their last four bits only. From one batch to the
# next it is mostly sixteen bytes that change; the big number is written out once in sixteen times.
class Ctr:
    # `counter` is the initial counter block, 16 bytes.
    def __init__(self, key, counter):
        if len(key) != 16 or len(counter) != 16:
            raise ValueError("aes-ctr sizes")
        self._ecb = aes(key, _ECB)
        self._start = int.from_bytes(counter, "big")
        self._blocks = bytearray(_SIZE)
        self._stream = bytearray(_SIZE)
        self._first = -_BATCH  # counter at which the key stream there is begins

    # Encrypts or decrypts `buf` (writable) in place; its first byte is byte `offset` of the
    # stream.
    def apply(self, buf, offset=0):
        view = memoryview(buf)
        stream = memoryview(self._stream)
        counter = (self._start + (offset >> 4)) % _WRAP
        lane = counter & (_BATCH - 1)
        counter -= lane
        skip = lane << 4 | offset & 15
        at = 0
        while at < len(view):
            if counter != self._first:
                self._generate(counter)
            part = view[at : at + _SIZE - skip]
            part[:] = xor(part, stream[skip : skip + len(part)])
            at += len(part)
            skip = 0
            counter = (counter + _BATCH) % _WRAP

    def _generate(self, counter):
        blocks = self._blocks
        if counter & 0xFF and counter == self._first + _BATCH:
            for i in range(15, _SIZE, 16):
                blocks[i] += _BATCH
        else:
            block = counter.to_bytes(16, "big")
            for i in range(0, _SIZE, 16):
                blocks[i : i + 16] = block
                blocks[i + 15] |= i >> 4
        self._ecb.encrypt(blocks, self._stream)
        self._first = counter
