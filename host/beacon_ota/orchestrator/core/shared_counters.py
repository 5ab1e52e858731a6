"""Counts what the processes of one machine have served, each in its own place of shared memory.

The metrics of any process are the sum over all. A process that replaces another one goes on from
its numbers, so that no counter ever goes back.
"""

import dataclasses
import fcntl
import json
import mmap
import os
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from beacon_ota.orchestrator.db.tables import Fields

_HALF = 32 * 1024
_SLOT = 2 * _HALF + 8
_HEAD = struct.Struct("<II")  # which half, and how much of it


@dataclass(slots=True)
class ServedCounts:
    """What this process has served since it started; the rest is counted from the tables."""

    polls: Counter = field(default_factory=Counter)  # by reason word
    reports: Counter = field(default_factory=Counter)  # by status
    fields: Counter = field(default_factory=Counter)  # of reports, that broke the contract, by name
    entries: Counter = field(default_factory=Counter)  # of journals: clipped, dropped
    refused: Counter = field(default_factory=Counter)  # 401s by code
    problems: Counter = field(default_factory=Counter)  # all refusals by code
    downloads: Counter = field(default_factory=Counter)  # by HTTP status, as text
    block_indexes: Counter = field(default_factory=Counter)  # sent, by HTTP status, as text
    bytes_sent: int = 0
    reading: int = 0  # downloads under way

    def dump(self) -> Fields:
        """Return the counts as JSON values."""
        found: Fields = {}
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            counter = isinstance(value, Counter)
            found[one.name] = {str(k): n for k, n in value.items()} if counter else value
        return found

    def add(self, found: Fields) -> "ServedCounts":
        """Return the sum with the dumped counts of another process."""
        total: Fields = {}
        for name, mine in self.dump().items():
            if isinstance(mine, dict):
                total[name] = Counter(mine) + Counter(found.get(name) or {})
            else:
                total[name] = mine + (found.get(name) or 0)
        return ServedCounts(**total)


class SharedCounters:
    """The counters of all processes, in shared memory. Create it before forking."""

    def __init__(self, places: int):
        self._places = places
        self._file = _file_for_locks()
        # Anonymous memory: with a file on a full disk, writing to the map would be fatal.
        self._map = mmap.mmap(-1, places * _SLOT)

    def write(self, place: int, counts: Fields) -> None:
        """Write the counts of a process; a kill in between leaves the previous counts."""
        data = json.dumps(counts).encode()
        if len(data) > _HALF:
            return
        with self._locked(place) as at:
            half = 1 - _HEAD.unpack_from(self._map, at)[0]
            start = at + 8 + half * _HALF
            self._map[start : start + len(data)] = data
            _HEAD.pack_into(self._map, at, half, len(data))

    def read(self, place: int) -> Fields:
        """Return the counts of a process."""
        with self._locked(place) as at:
            half, length = _HEAD.unpack_from(self._map, at)
            start = at + 8 + half * _HALF
            data = bytes(self._map[start : start + length])
        return json.loads(data) if data else {}

    def read_others(self, place: int) -> list[Fields]:
        """Return the counts of all processes but one."""
        return [self.read(other) for other in range(self._places) if other != place]

    @contextmanager
    def _locked(self, place: int) -> Iterator[int]:
        file = self._file
        fcntl.lockf(file, fcntl.LOCK_EX, 1, place)
        try:
            yield place * _SLOT
        finally:
            fcntl.lockf(file, fcntl.LOCK_UN, 1, place)


def _file_for_locks() -> int:
    """Return a file descriptor that processes can lock; on Linux of memory, which no disk fills."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("tallies")
    handle, path = tempfile.mkstemp()
    os.unlink(path)
    return handle
