"""Stops rollouts: in memory at once, in the database when it takes it.

A stop by hand, or a gate that trips, holds at every worker from the moment when it is put on the
board (``stops``), whatever the database does. It is stored over whatever is committed by then,
in one transaction that reads the rollout again, and tried until it is.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from sqlalchemy import Connection

from beacon_ota.errors import BeaconOtaError, UsageError
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.core.stops import ALL, PRIMARY
from beacon_ota.orchestrator.core.view import Entry
from beacon_ota.orchestrator.db.database import StorageError
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.rollout.stopping import is_kept, stopped
from beacon_ota.orchestrator.rollout.types import Kind, Transition

log = logging.getLogger("beacon_ota.orchestrator")

_LOOK_S = 0.05
AGAIN_S = 1.0  # of the wall clock, between two tries to store what is stopped
Decide = Callable[[Entry, float], Sequence[Transition]]


class Recorder(Protocol):
    """What records transitions in the database: the engine."""

    service: Service

    def commit(self, entry: Entry, made: Sequence[Transition]) -> Awaitable[None]:
        """Record transitions of an entry as it is seen (UsageError ``rollout_moved``)."""
        ...

    def stop_work(
        self, rollout_id: str, changes: Sequence[Transition]
    ) -> tuple[Callable[[Connection], Any], Callable[[Any], None]]:
        """Return what records stops over whatever is committed, and what puts that into memory."""
        ...

    def wake(self) -> None:
        """Look at the rollouts again soon."""
        ...


class Stopping:
    """The stops of one worker, and what stores them."""

    def __init__(self, engine: Recorder):
        self.engine, self.service = engine, engine.service
        self._storing: dict[str, asyncio.Task[None]] = {}
        self._tries: dict[str, asyncio.Future[None]] = {}  # resolved after the next try
        self._kicks: dict[str, asyncio.Event] = {}
        self._changed = asyncio.Event()  # something was stored

    def start(self) -> None:
        """Go on storing what an earlier start, or an earlier worker in our place, left."""
        board = self.service.stops
        if ALL in board.mine():
            now = self.service.clock.now()
            why = "the note of what was stopped cannot be read"
            everything = Transition(now, Kind.HALTED, None, None, "unstored", why, "orchestrator")
            known = board.mine()
            held = [
                key
                for key, entry in self.service.view.entries.items()
                if not is_kept(stopped(entry.stored, known.get(key, ())), everything)
            ]
            board.put_all(held, (everything,))
            board.drop(ALL, board.mine()[ALL])
        self.service.heed()
        for rollout_id in board.mine():
            self.store(rollout_id)
        self.service.run(self._keep_noted())

    async def _keep_noted(self) -> None:
        """Have the file say what is stopped and not stored, and nothing else."""
        board = self.service.stops
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(AGAIN_S):
                        await self._changed.wait()
                self._changed.clear()
                if not board.survives:
                    await self._note()
        finally:
            for task in self._storing.values():
                task.cancel()
            if not board.survives:
                board.note(board.text())

    # ---- stops ----

    def is_pending(self, rollout_id: str) -> bool:
        """Tell whether a rollout is stopped and the database does not have it yet."""
        self.service.heed()
        return bool(self.service.view.stops_of(rollout_id))

    async def stop(self, rollout_id: str, decide: Decide) -> bool:
        """Stop a rollout by hand; it holds when this is called, not when it returns.

        Args:
            decide: returns the transitions for an entry at a time, or refuses.

        Returns:
            Whether it is stored; else it is tried again until it is.

        Raises:
            UsageError: ``rollout_not_active``; what ``decide`` raises.
        """
        self.service.heed()
        entry = self.service.view.entries.get(rollout_id)
        if entry is None:
            raise UsageError("rollout_not_active", "the rollout is over", expected="active")
        try:
            made = decide(entry, self.service.clock.now())
        except UsageError:
            if not self.is_pending(rollout_id):
                raise
            made = ()  # said again: it is stopped, and stored as soon as that can be done
        self.hold(rollout_id, made)
        if await self.settle(rollout_id):
            return True
        self._announce(rollout_id)
        return False

    def _announce(self, rollout_id: str) -> None:
        """Tell who follows: the event of the database comes when it is stored."""
        data = {"rollout": rollout_id}
        self.service.hub.tell(self.service.clock.now(), "rollout.unstored", rollout_id, data)

    def hold(self, rollout_id: str, made: Sequence[Transition]) -> None:
        """Stop a rollout in memory, at every worker."""
        if made:
            self.service.stops.put(rollout_id, made)
        self.service.heed()

    async def settle(self, rollout_id: str) -> bool:
        """Try to store what is stopped, for a while; then note it beside the database.

        Returns:
            Whether it is stored.
        """
        loop = asyncio.get_running_loop()
        if rollout_id in self.service.stops.mine():
            tried = self._tries.setdefault(rollout_id, loop.create_future())
            self.store(rollout_id)
            await asyncio.wait((tried,), timeout=LIMITS.stop_patience)
        else:  # another worker's, who stores it
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LIMITS.stop_patience):
                    await self.until_stored(rollout_id)
        stored = not self.is_pending(rollout_id)
        if not stored:
            await self._note()
        return stored

    def withdraw(self, firmware_id: str, by: str) -> int:
        """Halt a release's rollouts in memory: it could not be deprecated. Returns how many."""
        self.service.heed()
        now = self.service.clock.now()
        change = Transition(
            now, Kind.HALTED, None, None, "withdrawn", "the release is to be deprecated", by
        )
        halted = [
            key
            for key, entry in self.service.view.entries.items()
            if entry.rollout.plan.release.firmware_id == firmware_id
            and not is_kept(entry.state, change)
        ]
        self.hold_all(halted, change)
        return len(halted)

    def hold_all(self, rollout_ids: Sequence[str], change: Transition) -> None:
        """Stop several rollouts in memory, and store that."""
        self.service.stops.put_all(rollout_ids, (change,))
        self.service.heed()
        for key in rollout_ids:
            self.store(key)

    async def until_stored(self, rollout_id: str) -> None:
        """Wait until nothing of a rollout's stops is left to store; whichever worker does."""
        while self.is_pending(rollout_id):  # noqa: ASYNC110 - other processes set no event
            await asyncio.sleep(_LOOK_S)

    async def automatic(self, entry: Entry, made: Sequence[Transition]) -> None:
        """Do what the gates say when one has tripped: in memory first; the caller holds ``moving``.

        Raises:
            UsageError: ``rollout_moved``: it was moved by somebody else; to be decided anew.
            StorageError: it holds in memory, and is stored later.
        """
        rollout_id = entry.rollout.plan.rollout_id
        stops = [change for change in made if change.kind is Kind.HALTED]
        self.hold(rollout_id, stops)
        writing = asyncio.ensure_future(self.engine.commit(entry, made))
        try:
            await asyncio.wait((writing,), timeout=LIMITS.stop_patience)
            if not writing.done():
                await self._note()
            await writing
        except StorageError:
            await self._note()
            self._announce(rollout_id)
            self.store(rollout_id)
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
        self.service.heed()
        self._changed.set()

    # ---- storing ----

    async def _note(self) -> bool:
        board = self.service.stops
        return await asyncio.to_thread(board.note, board.text())

    def store(self, rollout_id: str) -> None:
        """Store what is stopped, from now on and until it is; at once, if that waits."""
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
                        async with asyncio.timeout(AGAIN_S):
                            await kick.wait()
            if told:
                log.warning("that rollout %s is stopped is stored now", rollout_id)
        finally:
            self._tell_tried(rollout_id)
            self._storing.pop(rollout_id, None)
            self._kicks.pop(rollout_id, None)

    def _to_store(self, rollout_id: str) -> tuple[Transition, ...]:
        mine = self.service.stops.mine().get(rollout_id, ())
        return tuple(change for change in mine if change.by != PRIMARY)

    def _tell_tried(self, rollout_id: str) -> None:
        tried = self._tries.pop(rollout_id, None)
        if tried is not None and not tried.done():
            tried.set_result(None)

    async def _try(self, rollout_id: str, changes: Sequence[Transition]) -> None:
        work, put = self.engine.stop_work(rollout_id, changes)

        def then(done: Any) -> None:
            put(done)
            self._forget(rollout_id, changes)

        await asyncio.shield(self.service.db.write(work, then=then))
        self.engine.wake()


def unstored() -> StorageError:
    """Return the refusal to go on with a rollout whose stop is not stored yet."""
    return StorageError(
        "stop_unstored",
        "the rollout was stopped, and the database has not taken that yet; nothing else can be "
        "done with it before",
    )
