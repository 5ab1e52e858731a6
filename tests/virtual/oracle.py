"""The slot choice of ESP-IDF 5.x as a short program over two sectors: what the model must equal.

It was compared with ESP-IDF's own functions on some hundred thousand random cases.
"""

import struct
import zlib

SECTOR = 0x1000
NEW, PENDING, VALID, INVALID, ABORTED, UNDEFINED = 0, 1, 2, 3, 4, 0xFFFFFFFF
M = 0xFFFFFFFF


def crc(seq):
    return zlib.crc32(struct.pack("<I", seq), M) & M


class Cut(Exception):
    pass


class Sectors:
    """The two sectors of otadata; ``cut`` operations may begin before the power fails."""

    def __init__(self, content, cut=-1):
        self.d, self.ops, self.cut = bytearray(content), [], cut

    def _op(self, *op):
        if len(self.ops) == self.cut:
            raise Cut
        self.ops.append(op)

    def erase(self, i):
        self._op("erase", i)
        self.d[i * SECTOR : (i + 1) * SECTOR] = b"\xff" * SECTOR

    def write(self, i, data):
        self._op("program", i)
        for k, x in enumerate(data):
            self.d[i * SECTOR + k] &= x

    def entry(self, i):
        return list(struct.unpack_from("<I20sII", self.d, i * SECTOR))

    def put(self, i, e):
        self.erase(i)
        self.write(i, struct.pack("<I20sII", *e))


def rejected(e):
    return e[0] == M or e[2] in (INVALID, ABORTED)


def good(e):
    return not rejected(e) and e[3] == crc(e[0])


def slot(e, n):
    return ((e[0] - 1) & M) % n


def active(es):
    g = [good(e) for e in es]
    if all(g):
        return 0 if es[0][0] >= es[1][0] else 1
    return 0 if g[0] else 1 if g[1] else -1


def boot(f, n, factory, ok, rollback=True, has_otadata=True):
    """Return the slot that boots, -1 for factory, None for a reset loop; ``ok`` can boot."""
    init, idx = False, -1
    if has_otadata:
        es = [f.entry(0), f.entry(1)]
        if rollback:
            for i in (0, 1):
                if es[i][2] == PENDING:
                    es[i][2] = ABORTED
                    f.put(i, es[i])
        if (rejected(es[0]) and rejected(es[1])) or n == 0:
            if not factory:
                idx = 0
                init = all(e[0] == M or e[3] != crc(e[0]) for e in es)
        else:
            a = active(es)
            if a >= 0:
                idx = slot(es[a], n)
                if rollback and es[a][2] == NEW:
                    es[a][2] = PENDING
                    f.put(a, es[a])
    for j in list(range(idx, -2, -1)) + list(range(idx + 1, n)):
        if (j == -1 and not factory) or j >= n:
            continue
        if j in ok:
            if j >= 0 and init:
                f.put(0, [j + 1, b"\xff" * 20, VALID, crc(j + 1)])
            return j
    return None


def set_boot(f, n, ok, sub, rollback=True, has_otadata=True):
    """Return an esp_err_t; ``sub`` 0 is factory, 0x10 + k is slot k."""
    if (-1 if sub == 0 else sub - 0x10) not in ok:
        return 0x1503
    if not has_otadata:
        return 0x105
    if sub == 0:
        f.erase(0)
        f.erase(1)
        return 0
    s = sub & 15
    if s >= n:
        return 0x102
    es = [f.entry(0), f.entry(1)]
    a = active(es)
    if a < 0:
        i, seq = 0, s + 1
    else:
        cur, base = es[a][0], (s + 1) % n
        i, seq = 1 - a, base if cur <= base else base + -(-(cur - base) // n) * n
    e = es[i]
    e[0], e[2], e[3] = seq, NEW if rollback else UNDEFINED, crc(seq)
    f.put(i, e)
    return 0


def mark_valid(f, n, has_otadata=True):
    if not has_otadata:
        return 0x105
    es = [f.entry(0), f.entry(1)]
    a = active(es)
    if a < 0 or n == 0:
        return -1
    if es[a][2] != VALID:
        es[a][2], es[a][3] = VALID, crc(es[a][0])
        f.put(a, es[a])
    return 0


def boot_partition(f, n, factory):
    """Return the subtype that otadata selects, or None."""
    es = [f.entry(0), f.entry(1)]
    a = -1 if n == 0 else active(es)
    if a >= 0:
        return 0x10 + slot(es[a], n)
    return 0 if factory else (0x10 if n else None)
