"""Holds stops that are not in the database yet: in memory that all workers share, and in a file.

A stop (pause, halt, abort) must not wait for a full disk, a lock or an unreachable database. It is
put here first, and then holds at every worker of this orchestrator. If the database does not take
it in time, the stop is also written into a file of the data folder, whose blocks were reserved at
an earlier start, so that a full disk takes it. The next start reads the file before it answers any
request.

Each worker writes only to its own place, so that no worker waits for the lock of a killed one; all
workers read all places. A place has two halves that are written in turn, so that a reader, also of
the file after a power cut, always finds one that is complete. The file has the same bytes.
"""

import contextlib
import json
import logging
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from beacon_ota.orchestrator.rollout.stopping import STOPS, apply_stops
from beacon_ota.orchestrator.rollout.types import Kind, RolloutState, Transition

log = logging.getLogger("beacon_ota.orchestrator")

STOPS_FILE = "stops"  # in the data folder; not part of a backup
ALL_ROLLOUTS = "*"  # in place of a rollout's id: all rollouts are halted
PRIMARY = "primary"  # author of stops that a mirror received from its primary
_HALF = 256 * 1024
_PLACE = 2 * _HALF
_HEAD = struct.Struct("<IIQ")  # CRC-32 of what follows it; length of the text; number
_TURN = struct.Struct("@Q")
_ROOM = _HALF - _HEAD.size
_TEXT = 200  # characters of a reason or a detail
_ID = 64
_UNREADABLE = "the note of what was stopped cannot be read"
_NO_ROOM = "more was stopped than there is room to note"
Stops = Mapping[str, tuple[Transition, ...]]


class StopBoard:
    """The stops of all workers, in shared memory. Create it before forking."""

    def __init__(self, folder: Path, places: int = 1):
        self._path = folder / STOPS_FILE
        self._places = places
        self._place = 0
        self._owns = places == 1  # no other process writes to this place
        self._fd: int | None = None
        self._heads = -(-places * _TURN.size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._map = mmap.mmap(-1, self._heads + places * _PLACE)
        self._number = 0
        self._mine: dict[str, tuple[Transition, ...]] = {}
        self._noted = 0  # the number of the note in the file
        self._in_file = False  # the file has stops of this place
        self._failing = False  # the last note could not be written
        self._noting = threading.Lock()
        self._rows: dict[str, bytes] = {}  # the stops as JSON
        self._full = False  # the stops do not fit, so all rollouts are halted
        self._seen: tuple[bytes, Stops] = (b"", {})
        left = self._reserve()
        if left:
            log.warning("%d rollouts were stopped and not stored before this start", len(left))
            self._mine = dict(left)
            self._write()
            self.write_note(self.encode())
        self._clear_others()

    # ---- what holds ----

    def current(self) -> Stops:
        """Return the stops not stored yet, by rollout; the same object until they change.

        May be called from any thread, including the database's writer.
        """
        turns, found = self._seen
        now = self._map[: self._places * _TURN.size]
        if now != turns:
            found = self._read()
            self._seen = (now, found)
        return found

    def stops_of(self, rollout_id: str) -> tuple[Transition, ...]:
        """Return the stops of one rollout."""
        return stops_of_rollout(self.current(), rollout_id)

    def apply_to(self, rollout_id: str, state: RolloutState) -> RolloutState:
        """Return a committed state as it holds here."""
        return apply_stops(state, self.stops_of(rollout_id))

    def to_store(self) -> Stops:
        """Return the stops that this place has to store."""
        return dict(self._mine)

    @property
    def survives_restart(self) -> bool:
        """Whether the file has exactly the stops that this place has to store."""
        return self._noted == self._number or not (self._mine or self._in_file)

    # ---- what changes ----

    def adopt_place(self, place: int) -> None:
        """Take a worker's place, and the stops that its predecessor there had not stored."""
        self._place, self._owns = place, True
        self._number, text = self._newest(self._map, self._heads + place * _PLACE) or (0, b"")
        self._mine, self._rows = dict(_parse(text)), {}
        self._noted, self._in_file = -1, True  # unknown

    def put(self, rollout_id: str, changes: Iterable[Transition]) -> None:
        """Stop a rollout, at once and at every worker."""
        self.put_all((rollout_id,), changes)

    def put_all(self, rollout_ids: Iterable[str], changes: Iterable[Transition]) -> None:
        """Stop several rollouts, all at once."""
        added = tuple(_bounded(change) for change in changes if change.kind in STOPS)
        for rollout_id in rollout_ids:
            held = self._mine.get(rollout_id, ())
            self._rows.pop(rollout_id, None)
            self._mine[rollout_id] = held + tuple(one for one in added if one not in held)
        self._write()

    def drop(self, rollout_id: str, changes: Iterable[Transition]) -> None:
        """Remove stops that are stored, as the database has them now."""
        gone = [_bounded(change) for change in changes]
        left = tuple(one for one in self._mine.get(rollout_id, ()) if one not in gone)
        self._rows.pop(rollout_id, None)
        if left:
            self._mine[rollout_id] = left
        elif self._mine.pop(rollout_id, None) is None:
            return
        self._write()

    def encode(self) -> tuple[int, bytes]:
        """Return the argument for :meth:`write_note`: number and text."""
        return self._number, self._packed()

    def write_note(self, text: tuple[int, bytes]) -> bool:
        """Write this place's stops into the file; blocks until the disk has them, in any thread.

        Returns:
            False when the file cannot be written.
        """
        number, packed = text
        with self._noting:
            if number <= self._noted:
                return True
            if self._fd is None:
                return False
            at = self._place * _PLACE + number % 2 * _HALF
            try:
                _whole(self._fd, _half(number, packed), at)
                os.fsync(self._fd)
            except OSError as error:
                if not self._failing:
                    log.error("what was stopped cannot be noted: %s", error.strerror)
                self._failing = True
                return False
            self._failing = False
            self._noted, self._in_file = number, bool(packed)
            return True

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    # ---- memory ----

    def _write(self) -> None:
        self._number += 1
        text = self._packed()
        half = _half(self._number, text)
        start = self._heads + self._place * _PLACE + self._number % 2 * _HALF
        self._map[start : start + len(half)] = half
        _TURN.pack_into(self._map, self._place * _TURN.size, self._number)

    def _packed(self) -> bytes:
        """Return this place's stops as text that fits into half of the place."""
        self._full = False
        text = _text(self._mine, self._rows)
        if len(text) > _ROOM:
            bare = {
                key: tuple(Transition(one.at, one.kind, by=one.by) for one in those)
                for key, those in self._mine.items()
            }
            text = _text(bare)
        if len(text) > _ROOM:
            self._full = True
            text = _text({ALL_ROLLOUTS: (_everything(_NO_ROOM),)})
        return text

    def _read(self) -> Stops:
        found: dict[str, tuple[Transition, ...]] = {}
        for place in range(self._places):
            if self._owns and place == self._place and not self._full:
                _merge(found, self._mine.copy().items())
                continue
            newest = None
            for _ in range(100):  # again while its worker writes
                newest = self._newest(self._map, self._heads + place * _PLACE)
                if newest is not None:
                    break
            if newest is None:
                newest = (0, _text({ALL_ROLLOUTS: (_everything(_UNREADABLE),)}))
            _merge(found, _parse(newest[1]))
        return found

    def _newest(self, data: Any, at: int) -> tuple[int, bytes] | None:
        """Return number and text of a place's newest complete half; None when there is none."""
        found = [_whole_half(data, start) for start in (at, at + _HALF)]
        whole = [half for half in found if half is not None]
        newest = max(whole, default=None)
        if len(whole) < len(found) and newest is not None and not newest[0]:
            return None  # the first one ever was begun
        return newest

    # ---- the file ----

    def _reserve(self) -> Stops:
        """Open the file, make it as large as it will ever be, and return what it holds."""
        found: dict[str, tuple[Transition, ...]] = {}
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            size = os.fstat(self._fd).st_size
            for place in range(-(-size // _PLACE)):
                data = os.pread(self._fd, _PLACE, place * _PLACE)
                newest = self._newest(data, 0)
                if newest is None and data.strip(b"\0"):
                    newest = (0, _text({ALL_ROLLOUTS: (_everything(_UNREADABLE),)}))
                number, text = newest or (0, b"")
                _merge(found, _parse(text))
                self._go_on(place, number)
            wanted = self._places * _PLACE
            if size < wanted:
                for place in range(size // _PLACE, self._places):
                    _whole(self._fd, bytes(_PLACE), place * _PLACE)
                os.fsync(self._fd)
        except OSError as error:
            log.error("no room to note what is stopped (%s): %s", self._path, error.strerror)
        return found

    def _go_on(self, place: int, number: int) -> None:
        """Continue a place's numbering from the file, as the note with the highest number wins."""
        if place < self._places and number:
            half = _half(number, b"")
            start = self._heads + place * _PLACE + number % 2 * _HALF
            self._map[start : start + len(half)] = half
            _TURN.pack_into(self._map, place * _TURN.size, number)
        if place == self._place:
            self._number = self._noted = number

    def _clear_others(self) -> None:
        """Empty the places of an earlier start, once this place holds their stops."""
        if self._fd is None or not self.survives_restart:
            return
        cleared = False
        with contextlib.suppress(OSError):
            size = os.fstat(self._fd).st_size
            for place in range(1, size // _PLACE):
                if os.pread(self._fd, _PLACE, place * _PLACE).strip(b"\0"):
                    _whole(self._fd, bytes(_PLACE), place * _PLACE)
                    cleared = True
            if cleared:
                os.fsync(self._fd)


def stops_of_rollout(stops: Stops, rollout_id: str) -> tuple[Transition, ...]:
    """Return the stops of one rollout: its own, and then those of all rollouts."""
    return stops.get(rollout_id, ()) + stops.get(ALL_ROLLOUTS, ()) if stops else ()


def _half(number: int, text: bytes) -> bytes:
    tail = struct.pack("<IQ", len(text), number) + text
    return struct.pack("<I", zlib.crc32(tail)) + tail


def _whole_half(data: Any, at: int) -> tuple[int, bytes] | None:
    """Return number and text of a half; (0, nothing) of one that was never written."""
    head = data[at : at + _HEAD.size]
    if len(head) < _HEAD.size:
        return None
    crc, length, number = _HEAD.unpack(head)
    if not (crc or length or number):
        return (0, b"")
    if length > _ROOM:
        return None
    tail = data[at + 4 : at + _HEAD.size + length]
    return (number, tail[_HEAD.size - 4 :]) if zlib.crc32(tail) == crc else None


def _whole(fd: int, data: bytes, at: int) -> None:
    while data:
        done = os.pwrite(fd, data, at)
        data, at = data[done:], at + done


def _text(stops: Stops, rows: dict[str, bytes] | None = None) -> bytes:
    """Return stops as JSON.

    Args:
        rows: keeps each rollout's part while it stays as it is.
    """
    known = {} if rows is None else rows
    for key in known.keys() - stops.keys():
        del known[key]
    for key, changes in stops.items():
        if key not in known:
            row = [[c.at, c.kind.value, c.wave, c.stage, c.reason, c.detail, c.by] for c in changes]
            known[key] = json.dumps([key, row], separators=(",", ":")).encode()
    return b"[" + b",".join(known.values()) + b"]" if known else b""


def _parse(text: bytes) -> Iterator[tuple[str, tuple[Transition, ...]]]:
    """Yield the stops in a text; an unreadable text with a valid checksum halts all rollouts."""
    if not text:
        return
    try:
        for key, changes in json.loads(text):
            yield str(key)[:_ID], tuple(_change(*fields) for fields in changes)
    except (ValueError, TypeError, RecursionError):
        yield ALL_ROLLOUTS, (_everything(_UNREADABLE),)


def _change(at: Any, kind: Any, wave: Any, stage: Any, *words: Any) -> Transition:
    found = Kind(kind)
    if found not in STOPS or not isinstance(at, int | float):
        raise ValueError(kind)
    if not all(part is None or isinstance(part, int) for part in (wave, stage)):
        raise ValueError(wave)
    reason, detail, by = (str(word) for word in words)
    return _bounded(Transition(float(at), found, wave, stage, reason, detail, by))


def _bounded(change: Transition) -> Transition:
    return Transition(
        change.at,
        change.kind,
        change.wave,
        change.stage,
        change.reason[:_TEXT],
        change.detail[:_TEXT],
        change.by[:_TEXT],
    )


def _everything(why: str) -> Transition:
    return Transition(0.0, Kind.HALTED, None, None, "unstored", why, "orchestrator")


def _merge(
    found: dict[str, tuple[Transition, ...]], more: Iterable[tuple[str, tuple[Transition, ...]]]
) -> None:
    for key, changes in more:
        held = found.get(key, ())
        found[key] = held + tuple(one for one in changes if one not in held)
