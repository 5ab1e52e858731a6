"""What several processes of one machine remember together of the beacons' requests.

A request that one process has answered must not be answered by another. A row of the database for
each would make every poll a commit; so the processes share memory, a table of rings. A beacon's
ring is found by its id; beacons that meet in one share it, which costs them nothing but room.
A ring is locked by the kernel for the microseconds of its use, so that a process that is killed
holds up nobody, and what was remembered outlives every one of them but the first.
"""

import fcntl
import hashlib
import mmap
import os
import struct
import tempfile
from pathlib import Path

from beacon_ota.orchestrator.gate import ENTRY, remembered
from beacon_ota.wire import auth

RING = 512  # bytes: u32 floor, u32 how many, then nonce and ts of each
ROOM = (RING - 8) // ENTRY
_HEAD = struct.Struct("<II")
_TS = struct.Struct("<I")
_LEAST, _MOST = 1 << 13, 1 << 21  # rings; untouched ones take no memory


class SharedNonces:
    """The table. Made before the processes part, and inherited.

    Args:
        started_at: UTC seconds; nothing signed before is accepted.
        beacons: how many there are; twice as many rings are made, within bounds.
    """

    def __init__(self, started_at: float, beacons: int):
        self.floor = int(started_at)
        self.rings = max(_LEAST, min(_MOST, 1 << (2 * beacons).bit_length()))
        memory = Path("/dev/shm")
        folder = memory if os.access(memory, os.W_OK) else None
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._file.truncate(self.rings * RING)
        self._fd = self._file.fileno()
        self._map = mmap.mmap(self._fd, self.rings * RING)

    def of(self, beacon_id: str) -> "SharedRing":
        """Return what is remembered of a beacon."""
        digest = hashlib.sha256(beacon_id.encode()).digest()
        return SharedRing(self, int.from_bytes(digest[:8], "big") % self.rings)


class SharedRing:
    """One ring; in use as :class:`beacon_ota.orchestrator.gate.Nonces`."""

    __slots__ = ("_at", "_index", "_table")

    def __init__(self, table: SharedNonces, index: int):
        self._table, self._index, self._at = table, index, index * RING

    @property
    def floor(self) -> int:
        """Nothing signed before this second is accepted."""
        return max(self._table.floor, _TS.unpack_from(self._table._map, self._at)[0])

    def use(self, nonce: str, ts: int, now: float) -> bool:
        """Take a nonce; False when it was used, or is too old to know."""
        table, at = self._table, self._at
        fcntl.lockf(table._fd, fcntl.LOCK_EX, 1, self._index)
        try:
            memory = table._map
            floor, count = _HEAD.unpack_from(memory, at)
            if ts < floor or ts < table.floor:
                return False
            wanted = bytes.fromhex(nonce)
            start = at + 8
            end = start + ENTRY * count
            if remembered(memory, wanted, start, end):
                return False
            if count == ROOM:
                floor, count = self._forget(floor, int(now) - auth.MAX_SKEW)
                if ts < floor:
                    _HEAD.pack_into(memory, at, floor, count)
                    return False
                end = start + ENTRY * count
            memory[end : end + ENTRY] = wanted + _TS.pack(ts)
            _HEAD.pack_into(memory, at, floor, count + 1)  # last: a kill leaves all or nothing
            return True
        finally:
            fcntl.lockf(table._fd, fcntl.LOCK_UN, 1, self._index)

    def _forget(self, floor: int, horizon: int) -> tuple[int, int]:
        """Make room: what the clock refuses anyway goes first, then the oldest quarter."""
        memory, start = self._table._map, self._at + 8
        entries = [bytes(memory[n : n + ENTRY]) for n in range(start, start + ENTRY * ROOM, ENTRY)]
        kept = [entry for entry in entries if _TS.unpack_from(entry, 8)[0] >= horizon]
        if len(kept) == ROOM:
            order = sorted(_TS.unpack_from(entry, 8)[0] for entry in kept)
            floor = max(floor, order[ROOM // 4] + 1)
            kept = [entry for entry in kept if _TS.unpack_from(entry, 8)[0] >= floor]
        # Killed in between, it refuses what is older than all this, and forgets nothing it accepts.
        newest = max(_TS.unpack_from(entry, 8)[0] for entry in entries)
        _HEAD.pack_into(memory, self._at, newest + 1, 0)
        memory[start : start + ENTRY * len(kept)] = b"".join(kept)
        _HEAD.pack_into(memory, self._at, floor, len(kept))
        return floor, len(kept)
