"""Stops rollouts: in memory at once, in the database when it takes it.

A stop by an administrator or a gate holds at every worker from the moment when it is put on the
board (``stops``), whatever the database does. One transaction then reads the rollout again and
stores the stop on top of what is committed; this is repeated until it succeeds.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from sqlalchemy import Connection

from beacon_ota.errors import BeaconOtaError, UsageError
from beacon_ota.orchestrator.core.fleet_records import RolloutEntry
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.core.stop_board import ALL_ROLLOUTS, PRIMARY
from beacon_ota.orchestrator.db.connection import StorageError
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.rollout.stopping import apply_stops, is_stopped_by
from beacon_ota.orchestrator.rollout.types import Kind, Transition

log = logging.getLogger("beacon_ota.orchestrator")

_LOOK_S = 0.05
RETRY_INTERVAL_S = 1.0  # between two tries to store stops, in real (unscaled) seconds
DecideTransitions = Callable[[RolloutEntry, float], Sequence[Transition]]


class TransitionRecorder(Protocol):
    """The interface that records transitions in the database; the engine implements it."""

    service: Service

    def commit_transitions(
        self, entry: RolloutEntry, made: Sequence[Transition]
    ) -> Awaitable[None]:
        """Record transitions of an entry as it is seen (UsageError ``rollout_moved``)."""
        ...

    def stop_writer(
        self, rollout_id: str, changes: Sequence[Transition]
    ) -> tuple[Callable[[Connection], Any], Callable[[Any], None]]:
        """Return a function that records stops on top of the committed state, and its callback."""
        ...

    def wake(self) -> None:
        """Evaluate the rollouts soon."""
        ...


class StopManager:
    """The stops of one worker, and the task that stores them."""

    def __init__(self, engine: TransitionRecorder):
        self.engine, self.service = engine, engine.service
        self._storing: dict[str, asyncio.Task[None]] = {}
        self._tries: dict[str, asyncio.Future[None]] = {}  # resolved after the next try
        self._kicks: dict[str, asyncio.Event] = {}
        self._changed = asyncio.Event()  # something was stored

    def start(self) -> None:
        """Store the stops left by an earlier start, or by an earlier worker in this place."""
        board = self.service.stops
        if ALL_ROLLOUTS in board.to_store():
            now = self.service.clock.now()
            why = "the note of what was stopped cannot be read"
            everything = Transition(now, Kind.HALTED, None, None, "unstored", why, "orchestrator")
            known = board.to_store()
            held = [
                key
                for key, entry in self.service.fleet.rollouts.items()
                if not is_stopped_by(apply_stops(entry.stored, known.get(key, ())), everything)
            ]
            board.put_all(held, (everything,))
            board.drop(ALL_ROLLOUTS, board.to_store()[ALL_ROLLOUTS])
        self.service.sync_stops()
        for rollout_id in board.to_store():
            self.store_in_background(rollout_id)
        self.service.run_in_background(self._keep_noted())

    async def _keep_noted(self) -> None:
        """Keep the file equal to the stops that are not stored yet."""
        board = self.service.stops
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_INTERVAL_S):
                        await self._changed.wait()
                self._changed.clear()
                if not board.survives_restart:
                    await self._note()
        finally:
            for task in self._storing.values():
                task.cancel()
            if not board.survives_restart:
                board.write_note(board.encode())

    # ---- stops ----

    def is_pending(self, rollout_id: str) -> bool:
        """Tell whether a rollout is stopped and the database does not have it yet."""
        self.service.sync_stops()
        return bool(self.service.fleet.stops_of(rollout_id))

    async def stop_by_hand(self, rollout_id: str, decide: DecideTransitions) -> bool:
        """Stop a rollout by hand; the stop holds from the call on, before this returns.

        Args:
            decide: returns the transitions for an entry at a time, or refuses.

        Returns:
            Whether the stop is stored; if not, storing it is tried again until it succeeds.

        Raises:
            UsageError: ``rollout_not_active``; what ``decide`` raises.
        """
        self.service.sync_stops()
        entry = self.service.fleet.rollouts.get(rollout_id)
        if entry is None:
            raise UsageError("rollout_not_active", "the rollout is over", expected="active")
        try:
            made = decide(entry, self.service.clock.now())
        except UsageError:
            if not self.is_pending(rollout_id):
                raise
            made = ()  # a repeated stop, which will be stored
        self.stop_in_memory(rollout_id, made)
        if await self.await_stored(rollout_id):
            return True
        self._announce(rollout_id)
        return False

    def _announce(self, rollout_id: str) -> None:
        """Send followers a transient event; the stored event follows with the commit."""
        data = {"rollout": rollout_id}
        self.service.hub.broadcast_transient(
            self.service.clock.now(), "rollout.unstored", rollout_id, data
        )

    def stop_in_memory(self, rollout_id: str, made: Sequence[Transition]) -> None:
        """Stop a rollout in memory, at every worker."""
        if made:
            self.service.stops.put(rollout_id, made)
        self.service.sync_stops()

    async def await_stored(self, rollout_id: str) -> bool:
        """Try for a while to store the stops; then write them into the file.

        Returns:
            Whether the stops are stored.
        """
        loop = asyncio.get_running_loop()
        if rollout_id in self.service.stops.to_store():
            tried = self._tries.setdefault(rollout_id, loop.create_future())
            self.store_in_background(rollout_id)
            await asyncio.wait((tried,), timeout=LIMITS.stop_patience)
        else:  # another worker stores it
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LIMITS.stop_patience):
                    await self.wait_until_stored(rollout_id)
        stored = not self.is_pending(rollout_id)
        if not stored:
            await self._note()
        return stored

    def halt_release(self, firmware_id: str, by: str) -> int:
        """Halt a release's rollouts in memory, as it could not be deprecated; return how many."""
        self.service.sync_stops()
        now = self.service.clock.now()
        change = Transition(
            now, Kind.HALTED, None, None, "withdrawn", "the release is to be deprecated", by
        )
        halted = [
            key
            for key, entry in self.service.fleet.rollouts.items()
            if entry.rollout.plan.release.firmware_id == firmware_id
            and not is_stopped_by(entry.state, change)
        ]
        self.stop_all_in_memory(halted, change)
        return len(halted)

    def stop_all_in_memory(self, rollout_ids: Sequence[str], change: Transition) -> None:
        """Stop several rollouts in memory, and store the stops in the background."""
        self.service.stops.put_all(rollout_ids, (change,))
        self.service.sync_stops()
        for key in rollout_ids:
            self.store_in_background(key)

    async def wait_until_stored(self, rollout_id: str) -> None:
        """Wait until all stops of a rollout are stored, by any worker."""
        while self.is_pending(rollout_id):  # noqa: ASYNC110 - other processes set no event
            await asyncio.sleep(_LOOK_S)

    async def halt_automatically(self, entry: RolloutEntry, made: Sequence[Transition]) -> None:
        """Halt a rollout whose gate has tripped, in memory first; the caller holds the lock.

        Raises:
            UsageError: ``rollout_moved``: the rollout was moved elsewhere; decide again.
            StorageError: the halt holds in memory, and is stored later.
        """
        rollout_id = entry.rollout.plan.rollout_id
        stops = [change for change in made if change.kind is Kind.HALTED]
        self.stop_in_memory(rollout_id, stops)
        writing = asyncio.ensure_future(self.engine.commit_transitions(entry, made))
        try:
            await asyncio.wait((writing,), timeout=LIMITS.stop_patience)
            if not writing.done():
                await self._note()
            await writing
        except StorageError:
            await self._note()
            self._announce(rollout_id)
            self.store_in_background(rollout_id)
            raise
        except asyncio.CancelledError:
            await asyncio.shield(self._note())
            raise
        except UsageError:
            self._forget(rollout_id, stops)
            raise
        self._forget(rollout_id, stops)

    def _forget(self, rollout_id: str, changes: Sequence[Transition]) -> None:
        board = self.service.stops
        board.drop(rollout_id, changes)
        self.service.sync_stops()
        self._changed.set()

    # ---- storing ----

    async def _note(self) -> bool:
        board = self.service.stops
        return await asyncio.to_thread(board.write_note, board.encode())

    def store_in_background(self, rollout_id: str) -> None:
        """Try to store a rollout's stops now, and again until it succeeds, without waiting here."""
        self._kicks.setdefault(rollout_id, asyncio.Event()).set()
        task = self._storing.get(rollout_id)
        if task is None or task.done():
            self._storing[rollout_id] = asyncio.ensure_future(self._store(rollout_id))

    async def _store(self, rollout_id: str) -> None:
        told = False
        kick = self._kicks[rollout_id]
        try:
            while changes := self._to_store(rollout_id):
                kick.clear()
                stored = False
                try:
                    await self._try(rollout_id, changes)
                    stored = True
                except BeaconOtaError as error:
                    if not told:
                        log.error("rollout %s is stopped in memory only: %s", rollout_id, error)
                    told = True
                except Exception:
                    log.exception("rollout %s is stopped in memory only", rollout_id)
                if not stored:
                    await self._note()
                self._tell_tried(rollout_id)
                if not stored:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(RETRY_INTERVAL_S):
                            await kick.wait()
            if told:
                log.warning("that rollout %s is stopped is stored now", rollout_id)
        finally:
            self._tell_tried(rollout_id)
            self._storing.pop(rollout_id, None)
            self._kicks.pop(rollout_id, None)

    def _to_store(self, rollout_id: str) -> tuple[Transition, ...]:
        mine = self.service.stops.to_store().get(rollout_id, ())
        return tuple(change for change in mine if change.by != PRIMARY)

    def _tell_tried(self, rollout_id: str) -> None:
        tried = self._tries.pop(rollout_id, None)
        if tried is not None and not tried.done():
            tried.set_result(None)

    async def _try(self, rollout_id: str, changes: Sequence[Transition]) -> None:
        work, put = self.engine.stop_writer(rollout_id, changes)

        def then(done: Any) -> None:
            put(done)
            self._forget(rollout_id, changes)

        await asyncio.shield(self.service.db.write(work, then=then))
        self.engine.wake()


def stop_unstored() -> StorageError:
    """Return the refusal to go on with a rollout whose stop is not stored yet."""
    return StorageError(
        "stop_unstored",
        "the rollout was stopped, and the database has not taken that yet; nothing else can be "
        "done with it before",
    )
