# AES-128-CTR over the stock core's ECB: decrypts an encrypted release on its way into flash.
# The counter block is one 128-bit big-endian number, as everywhere else (SP 800-38A), and the
# stream can be entered at any byte, so that a resumed download goes on where it stopped.

from cryptolib import aes
from micropython import const

from . import xor

_ECB = const(1)
_BATCH = const(16)  # counter blocks made at a time: 256 bytes of keystream
_WRAP = 1 << 128


class Ctr:
    # `counter` is the initial counter block, 16 bytes.
    def __init__(self, key, counter):
        if len(key) != 16 or len(counter) != 16:
            raise ValueError("aes-ctr sizes")
        self._ecb = aes(key, _ECB)
        self._start = int.from_bytes(counter, "big")
        self._stream = bytearray(_BATCH << 4)
        # Sixteen 128-bit lanes in one big integer: lane i of `ones` is 1, of `steps` is i.
        # base * ones + steps is then a whole batch of counter blocks in two operations.
        ones = steps = 0
        for i in range(_BATCH):
            ones = ones << 128 | 1
            steps = steps << 128 | i
        self._ones = ones
        self._steps = steps

    # Encrypts or decrypts `buf` (writable) in place; its first byte is byte `offset` of the
    # stream.
    def apply(self, buf, offset=0):
        view = memoryview(buf)
        stream = memoryview(self._stream)
        size = len(view)
        base = (self._start + (offset >> 4)) % _WRAP
        skip = offset & 15
        at = 0
        while at < size:
            blocks = min(_BATCH, (skip + size - at + 15) >> 4, _WRAP - base)
            self._fill(base, blocks)
            n = min((blocks << 4) - skip, size - at)
            part = view[at : at + n]
            part[:] = xor(part, stream[skip : skip + n])
            at += n
            base = (base + blocks) % _WRAP
            skip = 0

    # The keystream of `blocks` counters from `base` on. Fewer lanes than a batch are the upper
    # ones of the same two integers, so that no lane ever carries into the one before.
    def _fill(self, base, blocks):
        ones = self._ones
        steps = self._steps
        if blocks < _BATCH:
            unused = (_BATCH - blocks) << 7
            ones >>= unused
            steps >>= unused
        self._ecb.encrypt((base * ones + steps).to_bytes(blocks << 4, "big"), self._stream)
