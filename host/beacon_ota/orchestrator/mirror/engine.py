"""The engine of a mirror: ends the attempts of its own beacons, and may halt a rollout.

Only the primary opens stages. A halt that is made here holds here at once; the primary is told of
it, with the failures behind it, when it can be reached.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.core.fleet_records import RolloutEntry
from beacon_ota.orchestrator.core.rollout_records import dump_state, load_state
from beacon_ota.orchestrator.db.connection import StorageError
from beacon_ota.orchestrator.db.tables import Fields, audit, events, outbox, rollouts
from beacon_ota.orchestrator.rollout.advance import advance, apply_transition, next_due_at
from beacon_ota.orchestrator.rollout.stopping import apply_stops
from beacon_ota.orchestrator.rollout.stopping import missing_stops as due_stops
from beacon_ota.orchestrator.rollout.types import (
    Attempt,
    Kind,
    Result,
    RolloutState,
    Status,
    Transition,
)

log = logging.getLogger("beacon_ota.orchestrator")

_FAILURES = ("failures_in_a_row", "failure_share")


class MirrorEngine(Engine):
    """The engine of a mirror: ends attempts of its beacons; may halt rollouts, not advance them."""

    async def _evaluate_rollout(self, entry: RolloutEntry) -> None:
        now = self.service.clock.now()
        self._check_for_clock_jump(now)
        if self.stop_manager.is_pending(entry.rollout.plan.rollout_id):
            return
        try:
            if entry.open_ids:
                await self._conclude_attempts(entry, now)
        except StorageError:
            await self._halt_in_memory(entry)
            raise
        if self._drop_if_over(entry) or entry.state.status is Status.ABORTED:
            return
        counts = self.count_outcomes(entry, now, self._unrecorded_ends(entry))
        for change in advance(entry.rollout, entry.state, counts, now):
            if self._is_own_halt(change):
                await self._halt_here(entry, change)
                await self._conclude_attempts(entry, now)
                break
        # Moves that only the primary makes are no reason to wake up; silent beacons are.
        entry.due = next_due_at(entry.rollout, entry.state, counts, now)
        if entry.due is not None and entry.due <= now:
            entry.due = None

    def _is_own_halt(self, change: Transition) -> bool:
        return change.kind is Kind.HALTED and change.reason in _FAILURES

    async def _halt_here(self, entry: RolloutEntry, change: Transition) -> None:
        """Halt a rollout here, in memory first (UsageError ``rollout_moved``, StorageError)."""
        await self.stop_manager.halt_automatically(entry, (change,))
        why = f"{change.reason}: {change.detail}"
        log.warning("rollout %s is halted here: %s", entry.rollout.plan.rollout_id, why)

    async def _commit_transitions(
        self, entry: RolloutEntry, state: RolloutState, revision: int, made: Sequence[Transition]
    ) -> None:
        """Record a halt made here; the rollout keeps the revision that the primary gave it."""
        rollout_id = entry.rollout.plan.rollout_id
        release = self.service.fleet.releases[entry.rollout.plan.release.firmware_id]
        basis = rollouts.Basis(revision, state.status.value, release.state)
        lost = sorted(self._lost(entry))
        told: list[Fields] = []

        def work(conn: Connection) -> bool:
            told.clear()
            if rollouts.read_basis(conn, rollout_id) != basis:
                return False
            told.extend(_record_halts(conn, rollout_id, state, made, lost))
            return True

        def after(halted: bool) -> None:
            if halted:
                self._put_state(rollout_id, apply_stops(state, made), revision, same=True)
            for one in told:
                self.service.hub.publish(one)

        if not await asyncio.shield(self.service.db.write(work, then=after)):
            raise self._reload_moved(entry)

    def stop_writer(
        self, rollout_id: str, changes: Sequence[Transition]
    ) -> tuple[Callable[[Connection], Any], Callable[[Any], None]]:
        entry = self.service.fleet.rollouts.get(rollout_id)
        presumed = self._presumed_lost.get(rollout_id, set())
        lost = sorted(presumed if entry is None else presumed | self._lost(entry))

        def work(conn: Connection) -> tuple[Fields | None, list[Fields]]:
            row = rollouts.get(conn, rollout_id)
            if row is None or row["ended_at"] is not None:
                return row, []
            told = _record_halts(conn, rollout_id, load_state(row["state"]), changes, lost)
            return rollouts.get(conn, rollout_id), told

        def put(done: tuple[Fields | None, list[Fields]]) -> None:
            row, told = done
            if row is not None:
                self._put_state(row["id"], load_state(row["state"]), row["revision"], same=True)
            for one in told:
                self.service.hub.publish(one)

        return work, put

    def _not_at_mirrors(
        self, entry: RolloutEntry, silent: list[Attempt], now: float
    ) -> list[Attempt]:
        return silent  # a halt here cannot wait for the primary

    async def review_halt(self, rollout_id: str, doubt: outbox.HaltReview) -> None:
        """Reconsider a halt made here, now that the primary has answered.

        The halt is lifted only if beacons that were given up here went on at another orchestrator,
        and the remaining failures would not have halted the rollout.

        Args:
            doubt: the attempts on which the halt rests, as read before the exchange. If one of
                them has ended since, the review waits until that end has been sent.
        """
        entry = self.service.fleet.rollouts.get(rollout_id)
        lost, why = doubt.lost, None
        if entry is not None and (lost & entry.open_ids):
            async with self.rollout_lock:
                await self._conclude_attempts(entry, self.service.clock.now())
        if entry is not None and doubt.open - entry.open_ids:
            return
        if entry is not None and lost - self._lost(entry):
            now = self.service.clock.now()
            going = replace(entry.state, status=Status.ACTIVE)
            counts = self.count_outcomes(entry, now, self._unrecorded_ends(entry))
            made = advance(entry.rollout, going, counts, now)
            trips = [one for one in made if one.kind is Kind.HALTED and one.reason in _FAILURES]
            if not trips:
                log.warning("rollout %s goes on here: nobody was lost", rollout_id)
                await self.service.db.write(outbox.lift_halt, rollout_id)
                return
            why = f"{trips[0].reason}: {trips[0].detail}"
        await self.service.db.write(outbox.queue_halt, rollout_id, why)

    @staticmethod
    def _lost(entry: RolloutEntry) -> set[str]:
        return {one.id for one in entry.attempts.values() if one.result is Result.LOST}


def _record_halts(
    conn: Connection,
    rollout_id: str,
    state: RolloutState,
    changes: Sequence[Transition],
    lost: list[str],
) -> list[Fields]:
    """Record halts made here, to be sent to the primary; return the events.

    Args:
        lost: attempts that were given up and on which a halt may rest.
    """
    told = []
    for change in due_stops(state, changes):
        state = apply_transition(state, change)
        why = f"{change.reason}: {change.detail}"
        values = {
            "status": state.status.value,
            "state": dump_state(state),
            "reason": state.reason,
        }
        outbox.record_halt(conn, rollout_id, why, values, lost)
        audit.append(conn, change.at, "mirror", "mirror.halted", rollout_id, why)
        told.append(events.add(conn, change.at, "mirror.halted", rollout_id, {"reason": why}))
    return told
