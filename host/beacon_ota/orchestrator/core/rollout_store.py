"""Commits the moves of rollouts, and keeps the rollouts in memory as they are committed.

1. The basis of a decision is read from the fleet's state together with the decision, on the event
   loop: nothing is awaited between the two.
2. The transaction compares the basis with the committed rows, and does nothing when they differ.
3. Then the rollout is read again (``rollout_moved``), and the engine decides again.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy import Connection

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.core.fleet_records import RolloutEntry, attempt_from_row
from beacon_ota.orchestrator.core.rollout_records import (
    dump_state,
    insert_rollout,
    load_state,
    record_transition,
    rollout_moved,
    transition_row,
)
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.tables import (
    Fields,
    attempts,
    firmwares,
    rollouts,
)
from beacon_ota.orchestrator.rollout import stopping
from beacon_ota.orchestrator.rollout.advance import (
    apply_transition,
)
from beacon_ota.orchestrator.rollout.plans import parse_plan
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.types import (
    Kind,
    RolloutState,
    Status,
    Transition,
)

_FINAL = (Kind.ABORTED, Kind.RETIRED)


class RolloutStore:
    """The rollouts of a service: in the database, and in the fleet's state."""

    def __init__(self, service: Service):
        self.service = service
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Evaluate the rollouts soon, as something has changed."""
        self._wake.set()

    def commit_transitions(
        self, entry: RolloutEntry, made: Sequence[Transition]
    ) -> Awaitable[None]:
        """Record transitions and apply them; the caller holds ``rollout_lock``.

        Args:
            entry: the entry on which ``made`` was decided; nothing was awaited since.

        Raises:
            UsageError: ``rollout_moved``: the rollout was moved elsewhere meanwhile.
        """
        return self._commit_transitions(entry, entry.stored, entry.revision, made)

    async def _commit_transitions(
        self, entry: RolloutEntry, state: RolloutState, revision: int, made: Sequence[Transition]
    ) -> None:
        rollout_id = entry.rollout.plan.rollout_id
        for change in made:
            state = apply_transition(state, change)
        told: list[Fields] = []

        def work(conn: Connection) -> bool:
            told.clear()
            moved = rollouts.update_if_unmoved(
                conn,
                rollout_id,
                revision,
                {
                    "status": state.status.value,
                    "state": dump_state(state),
                    "reason": state.reason,
                    "ended_at": made[-1].at if made and made[-1].kind in _FINAL else None,
                },
            )
            if not moved:
                return False
            rollouts.add_transitions(conn, [transition_row(rollout_id, change) for change in made])
            for change in made:
                told.append(record_transition(conn, rollout_id, change))
            return True

        def after(moved: bool) -> None:
            if moved:
                self._put_state(rollout_id, state, revision + 1)
                if made and made[-1].kind is Kind.RETIRED:
                    self.service.fleet.retire_rollout(rollout_id)
                for one in told:
                    self.service.hub.publish(one)

        if not await asyncio.shield(self.service.db.write(work, then=after)):
            raise self._reload_moved(entry)
        self.wake()

    def stop_writer(
        self, rollout_id: str, changes: Sequence[Transition]
    ) -> tuple[Callable[[Connection], Any], Callable[[Any], None]]:
        """Return a function that stores stops on top of the committed state, and its callback."""

        def work(conn: Connection) -> tuple[Fields | None, list[Fields]]:
            row = rollouts.get(conn, rollout_id)
            if row is None or row["ended_at"] is not None:
                return row, []
            state = load_state(row["state"])
            made = stopping.missing_stops(state, changes)
            if not made:
                return row, []
            state = stopping.apply_stops(state, changes)
            row |= {
                "status": state.status.value,
                "state": dump_state(state),
                "reason": state.reason,
                "ended_at": made[-1].at if made[-1].kind in _FINAL else None,
            }
            names = ("status", "state", "reason", "ended_at")
            values = {name: row[name] for name in names}
            rollouts.update_if_unmoved(conn, rollout_id, row["revision"], values)
            rollouts.add_transitions(conn, [transition_row(rollout_id, change) for change in made])
            row["revision"] += 1
            return row, [record_transition(conn, rollout_id, change) for change in made]

        return work, self._put_stopped

    def _put_stopped(self, done: tuple[Fields | None, list[Fields]]) -> None:
        row, told = done
        if row is not None:
            self._put_state(row["id"], load_state(row["state"]), row["revision"])
        for one in told:
            self.service.hub.publish(one)

    def _reload_moved(self, entry: RolloutEntry) -> UsageError:
        """Read a rollout again that was moved elsewhere; return the error to raise."""
        self.service.db.read_now(self._reload, entry)
        self.wake()
        return rollout_moved()

    async def create_rollout(
        self, row: Fields, rollout: Rollout, state: RolloutState, actor: str
    ) -> RolloutEntry:
        """Store a rollout and begin to watch it."""
        view = self.service.fleet
        before: list[Any] = []  # attempts at this release in rollouts that are over
        if not view.has_rollout_of(row["firmware_id"]):
            before = await self.service.db.read(attempts.list_for_releases, [row["firmware_id"]])

        made: list[RolloutEntry] = []

        def put(stored: Fields) -> None:
            made.append(view.put_rollout(rollout, state, 0, stored["created_at"]))
            for attempt in before:
                view.put_attempt(attempt_from_row(attempt._mapping))

        await self.service.change_audited(
            actor,
            "rollout.created",
            row["id"],
            insert_rollout,
            row,
            then=put,
            detail={"firmware": row["firmware_id"], "name": row["name"]},
        )
        self.wake()
        return made[0]

    def apply_row(self, row: Fields) -> None:
        """Take a rollout's row as another process has left it."""
        view = self.service.fleet
        state = load_state(row["state"])
        entry = view.rollouts.get(row["id"])
        if entry is not None:
            self._put_state(row["id"], state, row["revision"])
            if row["ended_at"] is not None and row["revision"] >= entry.revision:
                view.retire_rollout(row["id"])
        elif state.status is not Status.ABORTED and row["ended_at"] is None:
            before: list[Any] = []
            if not view.has_rollout_of(row["firmware_id"]):
                before = self.service.db.read_now(attempts.list_for_releases, [row["firmware_id"]])
            rollout = Rollout(parse_plan(json.loads(row["plan"])))
            view.put_rollout(rollout, state, row["revision"], row["created_at"])
            for attempt in before:
                view.put_attempt(attempt_from_row(attempt._mapping))

    def reload_rollouts(self) -> None:
        """Read all rollouts and their attempts again."""
        unwritten = self.service.fleet.drop_rollouts()
        self.service.db.read_now(self._load)
        for attempt in unwritten:
            if attempt.id not in self.service.fleet.open_attempts:
                self.service.fleet.put_attempt(attempt)

    def _load(self, conn: Connection) -> None:
        view = self.service.fleet
        for row in rollouts.list_under_way(conn):
            rollout = Rollout(parse_plan(json.loads(row["plan"])))
            state = load_state(row["state"])
            entry = view.put_rollout(rollout, state, row["revision"], row["created_at"])
            entry.retired = row["ended_at"] is not None
        used = {entry.rollout.plan.release.firmware_id for entry in view.rollouts.values()}
        for attempt in attempts.list_for_releases(conn, list(used)):
            view.put_attempt(attempt_from_row(attempt._mapping))

    def _reload(self, conn: Connection, entry: RolloutEntry) -> None:
        row = rollouts.get(conn, entry.rollout.plan.rollout_id)
        assert row is not None
        state = load_state(row["state"])
        self._put_state(row["id"], state, row["revision"], same=True)
        firmware = firmwares.get(conn, row["firmware_id"])
        if firmware is not None:
            self.service.fleet.put_release(firmware)

    def _put_state(
        self, rollout_id: str, state: RolloutState, revision: int, same: bool = False
    ) -> None:
        """Update a rollout in memory from the database, never to an older revision.

        Args:
            same: also update at an equal revision, as a mirror's own halt does not change it.
        """
        entry = self.service.fleet.rollouts.get(rollout_id)
        if entry is not None and revision + same > entry.revision:
            self.service.fleet.put_rollout(entry.rollout, state, revision, entry.created_at)
