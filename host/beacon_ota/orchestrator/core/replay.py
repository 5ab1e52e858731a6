"""The replay guard: no signed request is accepted twice, whatever the clocks do.

Every beacon has a slot in a file that the orchestrator's processes map into memory. It holds the
nonces of the beacon's last requests in the order of their arrival. When a new nonce takes the place
of an old one, the time at which the old request was signed is marked as *forgotten*: in slices of
8 s for the last 4½ hours; anything older as one span from earliest to latest. A request that is
neither remembered nor from a forgotten time is certainly new. So the memory is bounded, and the
clock may be set back: requests from a time from which none was accepted are accepted at once.

The file outlives the processes: a kill and a restart lose nothing of it. After a reset of the
machine the file may lack the last requests. The guard therefore writes down in advance, and
synchronises, up to which time it may accept requests (``reserved``); after a reset, everything
signed before that time counts as forgotten.

A request from a forgotten time is refused as one whose clock is off. The refusal has a time to sign
with instead: usually now, or later when the clock was set back to a forgotten time; then a request
from that later time is accepted, too.

Every change is ordered so that a process that is killed in between leaves a file that refuses too
much, never too little: a time is marked before its nonce is overwritten, and a request counts only
when its entry is complete. Numbers that matter are single aligned words.
"""

import contextlib
import hashlib
import mmap
import os
import struct
import threading
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from beacon_ota.errors import ReachError
from beacon_ota.orchestrator.folder import data_unusable
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.wire.auth_header import MAX_SKEW

REPLAYS_FILE = "replays"  # in the data folder
_MAGIC = b"BOTARPL1"
_HEAD = 64  # bytes: magic, boot (16), inode (u64), then words
_BOOT, _INODE, _SLOTS, _WRITTEN, _RESERVED, _LOST, _LAYOUT, _CLOCK = 8, 24, 32, 36, 40, 44, 48, 52
_WORD = struct.Struct("@I")  # native: one store
_LONG = struct.Struct("@Q")
_USED, _TOP, _LOW, _HIGH, _MARKS = 16, 20, 24, 28, 32  # in a slot, after the digest of the id
_SLICE_S = 8
_SLICES = 2048  # marked one by one: four and a half hours
_ENTRY = 12  # nonce, second (u32)
_ENTRIES = _MARKS + _SLICES // 8
_SLOT = -(-(_ENTRIES + _ENTRY * LIMITS.nonces) // 64) * 64
_GROW = 64  # slots at least
_AHEAD_S = 60  # of reserved time, renewed when half of it is left
_LAST = 0xFFFFFFFF - _SLICE_S
_TABLE = 1 << 40  # the byte whose lock is for all slots


class ReplayVerdict(Enum):
    """The guard's verdict on a request with a valid signature."""

    NEW = "new"  # and remembered from now on
    USED = "used"
    SKEWED = "skewed"  # its time is off, or forgotten


class ReplayGuard:
    """The slots. One object, made before any process is forked, and inherited.

    Args:
        path: of the file; made when it is not there.
        now: UTC seconds.
        fresh: no request was accepted before, as no beacon is registered yet.
        shared: several processes use it.
        boot: names the machine's present run; what was written in another may be incomplete.

    Raises:
        UsageError: ``data_unusable``.
    """

    def __init__(
        self, path: Path, now: float, *, fresh: bool, shared: bool = False, boot: str | None = None
    ):
        self._shared = shared
        self._known: dict[bytes, int] = {}  # digest of an id -> where its slot begins
        self._seen = 0  # slots that are in there
        self._thread = threading.Lock()  # reserving happens beside the event loop
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
            size = max(os.fstat(self._fd).st_size, _HEAD)
            _take_blocks(self._fd, size)
            self._map = mmap.mmap(self._fd, size)
        except OSError as error:
            raise data_unusable(path, error) from None
        self._begin(hashlib.sha256((boot or _boot_id()).encode()).digest()[:16], now, fresh)

    def slot_for(self, beacon_id: str) -> "ReplaySlot":
        """Return a beacon's slot; it is allocated with the beacon's first request."""
        return ReplaySlot(self, beacon_id)

    def reserve(self, now: float) -> None:
        """Write down durably that requests of the next minute may be accepted; may wait."""
        if int(now) + _AHEAD_S // 2 > self._word(_RESERVED):
            self._reserve(int(now))

    def close(self) -> None:
        """Close the file."""
        with self._thread:
            self._map.close()
            os.close(self._fd)

    # ---- the file ----

    def _begin(self, run: bytes, now: float, fresh: bool) -> None:
        """Load the file; times at which it may lack requests count as forgotten."""
        memory = self._map
        inode = os.fstat(self._fd).st_ino
        known = memory[: len(_MAGIC)] == _MAGIC
        same_file = known and _LONG.unpack_from(memory, _INODE)[0] == inode
        whole = len(memory) >= _HEAD + _SLOT * self._word(_SLOTS) and self._word(_LAYOUT) == _SLOT
        if same_file and whole and memory[_BOOT:_INODE] == run:
            return
        lost = 0
        if known:
            lost = max(self._word(_WRITTEN), self._word(_RESERVED), self._word(_LOST))
        if not same_file and not fresh:  # lost, or a copy: the accepted requests are unknown
            lost = max(lost, int(now) - 1)
        _WORD.pack_into(memory, _LOST, min(max(lost, 0), _LAST))
        memory.flush()
        _WORD.pack_into(memory, _SLOTS, 0)
        _LONG.pack_into(memory, _INODE, inode)
        _WORD.pack_into(memory, _LAYOUT, _SLOT)
        memory[_BOOT:_INODE] = run
        memory[: len(_MAGIC)] = _MAGIC
        memory.flush()
        os.fsync(self._fd)

    def _word(self, at: int) -> int:
        return _WORD.unpack_from(self._map, at)[0]

    def _reserve(self, second: int) -> None:
        with self._thread, self._locked(_TABLE):
            until = min(second + _AHEAD_S, _LAST)
            if until <= self._word(_RESERVED):
                return
            _WORD.pack_into(self._map, _WRITTEN, until)
            try:
                self._map.flush(0, min(mmap.PAGESIZE, len(self._map)))
            except OSError as error:
                raise _no_room(error) from None
            _WORD.pack_into(self._map, _RESERVED, until)  # last, as other processes rely on it

    def _find(self, digest: bytes) -> int:
        """Return where a beacon's slot begins; it is made when there is none."""
        while (at := self._known.get(digest)) is None:
            with self._thread:
                with self._locked(_TABLE):
                    at = self._look_up_or_make(digest)
                if at is not None:
                    break
                # Under no lock: whoever closes a map closes its file descriptor, too, and with
                # any of them all locks that the process has on the file are gone.
                self._map = mmap.mmap(self._fd, os.fstat(self._fd).st_size)
        return at

    def _look_up_or_make(self, digest: bytes) -> int | None:
        """Return where a slot is, made if need be; None when the map is too small to see it."""
        count = self._word(_SLOTS)
        self._extend(count + 1)
        if len(self._map) < _HEAD + _SLOT * (count + 1):
            return None
        for index in range(self._seen, count):  # made by other processes
            begin = _HEAD + _SLOT * index
            self._known[self._map[begin : begin + 16]] = begin
        self._seen = count
        at = self._known.get(digest)
        if at is None:
            at = _HEAD + _SLOT * count
            self._map[at : at + _SLOT] = digest + bytes(_SLOT - len(digest))
            _WORD.pack_into(self._map, _SLOTS, count + 1)
            self._known[digest] = at
            self._seen = count + 1
        return at

    def _extend(self, slots: int) -> None:
        """Extend the file to a number of slots."""
        if os.fstat(self._fd).st_size >= _HEAD + _SLOT * slots:
            return
        size = _HEAD + _SLOT * (slots + max(_GROW, slots // 4))
        try:
            _take_blocks(self._fd, size)
        except OSError as error:
            raise _no_room(error) from None

    @contextlib.contextmanager
    def _locked(self, place: int) -> Iterator[None]:
        if not self._shared:
            yield
            return
        import fcntl

        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, place)
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, place)


class ReplaySlot:
    """The memory of one beacon's requests."""

    __slots__ = ("_at", "_digest", "_guard")

    def __init__(self, guard: ReplayGuard, beacon_id: str):
        self._guard = guard
        self._digest = hashlib.sha256(beacon_id.encode()).digest()[:16]
        self._at = 0

    def accept(self, nonce: str, ts: int, now: float) -> ReplayVerdict:
        """Accept a request with a valid signature, once.

        Args:
            nonce: 16 hex digits; ts: when it says it was signed, UTC seconds.

        Raises:
            ReachError: ``storage``: the guard's file cannot be extended or synchronised.
        """
        guard = self._guard
        at = self._at = self._at or guard._find(self._digest)
        if not 0 <= ts <= _LAST:
            return ReplayVerdict.SKEWED
        if guard._word(_CLOCK) < now <= _LAST:
            _WORD.pack_into(guard._map, _CLOCK, int(now))
        if abs(now - ts) > MAX_SKEW and not self._is_told(ts, now):
            return ReplayVerdict.SKEWED
        with guard._locked(at):
            memory = guard._map
            wanted = bytes.fromhex(nonce)
            used = _WORD.unpack_from(memory, at + _USED)[0]
            start = at + _ENTRIES
            if _is_remembered(memory, wanted, start, start + _ENTRY * min(used, LIMITS.nonces)):
                return ReplayVerdict.USED
            if self._is_forgotten(memory, ts):
                return ReplayVerdict.SKEWED
            if ts > guard._word(_RESERVED):
                guard._reserve(ts)
            entry = start + _ENTRY * (used % LIMITS.nonces)
            if used >= LIMITS.nonces:
                self._forget(memory, _WORD.unpack_from(memory, entry + 8)[0])
            memory[entry : entry + _ENTRY] = wanted + _WORD.pack(ts)
            used += 1
            if used >= 1 << 31:
                used = LIMITS.nonces + used % LIMITS.nonces
            _WORD.pack_into(memory, at + _USED, used)  # last: a kill leaves all or nothing
        return ReplayVerdict.NEW

    def time_to_sign(self, now: float) -> int:
        """Return the first second, from now on, at which a request of this beacon is accepted."""
        guard = self._guard
        at = self._at = self._at or guard._find(self._digest)
        memory = guard._map
        second = max(min(max(int(now), 0), _LAST), guard._word(_LOST) + 1)
        top = _WORD.unpack_from(memory, at + _TOP)[0]
        while self._is_forgotten(memory, second):
            number = second // _SLICE_S
            if number > top - _SLICES:
                second = (number + 1) * _SLICE_S
            else:
                second = _WORD.unpack_from(memory, at + _HIGH)[0] + 1
        return second

    def _is_told(self, ts: int, now: float) -> bool:
        """Tell whether a request was signed at the later time that a refusal has named.

        A beacon that sends many requests uses up later and later times. The bound keeps them close
        to the latest time that the clock has ever shown, because after a reset of the machine all
        beacons must sign later than any of them did before.
        """
        later = self.time_to_sign(now)
        known = max(now, self._guard._word(_CLOCK), self._guard._word(_LOST))
        return later > now and 0 <= ts - later <= MAX_SKEW and ts <= known + 2 * MAX_SKEW

    def _is_forgotten(self, memory: mmap.mmap, ts: int) -> bool:
        """Tell whether a request from this second may have been accepted, and is forgotten."""
        if ts <= self._guard._word(_LOST):
            return True
        at = self._at
        top = _WORD.unpack_from(memory, at + _TOP)[0]
        number = ts // _SLICE_S
        if number > top:
            return False
        if number > top - _SLICES:
            place = number % _SLICES
            return bool(memory[at + _MARKS + place // 8] >> place % 8 & 1)
        low = _WORD.unpack_from(memory, at + _LOW)[0]
        return 0 < low <= ts <= _WORD.unpack_from(memory, at + _HIGH)[0]

    def _forget(self, memory: mmap.mmap, ts: int) -> None:
        """Mark a second as one from which a request was accepted."""
        at = self._at
        top = _WORD.unpack_from(memory, at + _TOP)[0]
        number = ts // _SLICE_S
        if number > top:
            # First note the slice that falls out, with all before it; then reuse its place.
            for old in range(max(top - _SLICES + 1, 0), min(number - _SLICES, top) + 1):
                if memory[at + _MARKS + old % _SLICES // 8] >> old % 8 & 1:
                    self._widen(memory, old * _SLICE_S, (old + 1) * _SLICE_S - 1)
            _WORD.pack_into(memory, at + _TOP, number)
            for new in range(max(top, number - _SLICES) + 1, number + 1):
                place = new % _SLICES
                memory[at + _MARKS + place // 8] &= ~(1 << place % 8) & 0xFF
        elif number <= top - _SLICES:
            self._widen(memory, ts, ts)
            return
        place = number % _SLICES
        memory[at + _MARKS + place // 8] |= 1 << place % 8

    def _widen(self, memory: mmap.mmap, first: int, last: int) -> None:
        """Extend the forgotten span before the marked hours to include these seconds."""
        low = _WORD.unpack_from(memory, self._at + _LOW)[0] or _LAST
        high = _WORD.unpack_from(memory, self._at + _HIGH)[0]
        _WORD.pack_into(memory, self._at + _HIGH, max(high, last))
        _WORD.pack_into(memory, self._at + _LOW, max(min(low, first), 1))


def _is_remembered(memory: mmap.mmap, nonce: bytes, start: int, end: int) -> bool:
    """Tell whether one of the entries from ``start`` to ``end`` begins with a nonce."""
    found = memory.find(nonce, start, end)
    while found >= 0:
        if (found - start) % _ENTRY == 0:
            return True
        found = memory.find(nonce, found + 1, end)
    return False


def _take_blocks(fd: int, size: int) -> None:
    """Have a file of this size; without blocks of its own a full disk would kill who writes."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:
        os.ftruncate(fd, size)


def _no_room(error: OSError) -> ReachError:
    why = error.strerror or str(error)
    return ReachError("storage", f"a beacon's request cannot be remembered: {why}")


def _boot_id() -> str:
    """Return an id of the machine's present run; a new one each time where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return os.urandom(16).hex()
