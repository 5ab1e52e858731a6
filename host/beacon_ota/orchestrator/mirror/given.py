"""Stores the state that the primary sends to a mirror, and applies it.

Stops by the primary take effect here in memory first, so that they hold even if the disk is full.
A rollout whose image is not here yet waits for the image; its stops do not wait.
"""

import asyncio
import logging
from dataclasses import replace

from sqlalchemy import Connection

from beacon_ota.orchestrator.core.fleet_records import attempt_from_row
from beacon_ota.orchestrator.core.rollout_records import load_state
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.core.stop_board import PRIMARY
from beacon_ota.orchestrator.db.tables import (
    Fields,
    attempts,
    beacons,
    firmwares,
    outbox,
    rollouts,
    sites,
)
from beacon_ota.orchestrator.mirror.engine import MirrorEngine
from beacon_ota.orchestrator.mirror.images import Images
from beacon_ota.orchestrator.mirror.state import PrimaryAnswer
from beacon_ota.orchestrator.rollout.types import Kind, Status, Transition

log = logging.getLogger("beacon_ota.orchestrator")

_STOPPED = {  # by status, the kind of transition that led to it
    Status.PAUSED: Kind.PAUSED,
    Status.HALTED: Kind.HALTED,
    Status.ABORTED: Kind.ABORTED,
}


class GivenState:
    """The primary's last state, as far as it is in force here.

    Attributes:
        moves: the newest move of the primary's rollouts that is in force here.
        fault: a sentence that names the first row this release cannot read; "" when there is none.
        waiting: an answer of which releases still wait for their images; None when there is none.
        lacking: the ids of those releases.
    """

    def __init__(self, service: Service, engine: MirrorEngine, images: Images):
        self.service, self.engine, self.images = service, engine, images
        self.moves = ""
        self.fault = ""
        self.waiting: PrimaryAnswer | None = None
        self.lacking: set[str] = set()
        self._sound_there: set[str] = set()  # ids of sound releases, by the primary's last answer

    def note_sound(self, rows: list[Fields]) -> None:
        """Note which releases are sound at the primary; a waiting answer is superseded."""
        self._sound_there = {row["id"] for row in rows if _is_sound(row)}
        self.waiting = None

    def is_damaged_here(self) -> bool:
        """Tell whether an image is damaged here that is sound by the primary's last answer."""
        return any(
            one.row["damaged_at"] is not None and one.row["id"] in self._sound_there
            for one in self.service.fleet.releases.values()
        )

    async def apply(self, given: PrimaryAnswer) -> None:
        """Store the primary's state and apply it; missing images are fetched later.

        A rollout that is here already is moved at once, even if images are missing, so that no
        halt waits for a download.
        """
        state = given.state
        assert state is not None
        lacking: list[Fields] = []
        without: set[str] = set()
        for row in state["firmwares"]:
            if not _is_sound(row):
                if row["id"] not in self.service.fleet.releases:
                    without.add(row["id"])  # withdrawn before it was here: nothing to wait for
            elif await self.images.lacks(row):
                lacking.append(row)
                without.add(row["id"])
        fetched = self.images.fetched - without
        self._hold_stops(state)
        await asyncio.shield(
            self.service.db.write(_write_given, given, without, fetched, then=self._put_rows)
        )
        self.images.fetched -= fetched
        self.images.want(lacking)
        if (fault := given.fault()) != self.fault:
            if fault:
                log.warning("what the primary gives cannot all be read: %s", fault)
            self.fault = fault
        if given.moves:
            self.moves = given.moves
        self.lacking = {row["id"] for row in lacking}
        self.waiting = given if lacking else None

    def owes_attempts(self, given: PrimaryAnswer) -> bool:
        """Tell whether this mirror's own attempts wait for their image. The primary sends them only
        in answer to a request for everything, so the mirror repeats it until they are stored.
        """
        assert given.state is not None
        return any(
            row["mirror"] is None and row["firmware_id"] in self.lacking
            for row in given.state["attempts"]
        )

    def _hold_stops(self, state: Fields) -> None:
        """Apply the primary's stops in memory, before the state is stored or if it cannot be.

        A stop in memory that came from an earlier answer, and is not in this one, is dropped.
        """
        board = self.service.stops
        given = {row["id"]: load_state(row["state"]).status for row in state["rollouts"]}
        held = {
            key: one
            for key, those in board.to_store().items()
            for one in those
            if _is_of_primary(one)
        }
        for key, change in held.items():
            if _STOPPED.get(given.get(key, Status.ABORTED)) != change.kind:
                board.drop(key, (change,))
        now = self.service.clock.now()
        for key, entry in self.service.fleet.rollouts.items():
            kind = _STOPPED.get(given.get(key, Status.ABORTED))
            if kind is not None and entry.stored.status is not given.get(key, Status.ABORTED):
                board.put(key, (Transition(now, kind, None, None, by=PRIMARY),))
        self.service.sync_stops()

    def _drop_stops(self) -> None:
        """Drop the primary's stops from memory: the database has them now."""
        board = self.service.stops
        for key, those in board.to_store().items():
            board.drop(key, [one for one in those if _is_of_primary(one)])
        self.service.sync_stops()

    def _put_rows(self, rows: Fields) -> None:
        view = self.service.fleet
        view.put_sites(rows["sites"])
        for row in rows["beacons"]:
            view.put_beacon(row)
        for beacon_id in set(view.beacons) - {row["id"] for row in rows["beacons"]}:
            view.drop_beacon(beacon_id)
        for row in rows["firmwares"]:
            view.put_release(row)
        for row in rows["rollouts"]:
            entry = view.rollouts.get(row["id"])
            if entry is None:
                self.engine.apply_row(row)
            else:
                state = load_state(row["state"])
                view.put_rollout(entry.rollout, state, row["revision"], entry.created_at)
        for key in set(view.rollouts) - {row["id"] for row in rows["rollouts"]}:
            entry = view.rollouts[key]  # over, with nothing under way
            over = replace(entry.state, status=Status.ABORTED)
            view.put_rollout(entry.rollout, over, entry.revision, entry.created_at)
        for row in rows["attempts"]:
            view.put_attempt(attempt_from_row(row))
        self._drop_stops()


def _is_of_primary(change: Transition) -> bool:
    """Tell whether the primary made this stop."""
    return change.by == PRIMARY


def _is_sound(row: Fields) -> bool:
    return row["state"] != "deprecated" and row["damaged_at"] is None


def _write_given(
    conn: Connection, given: PrimaryAnswer, without: set[str], fetched: set[str]
) -> Fields:
    """Store the primary's state; return all rows as they are now."""
    assert given.state is not None
    outbox.import_state(conn, given.state, without, fetched, given.unread)
    if given.moves:
        outbox.set_moves(conn, given.moves)
    releases = [row["id"] for row in firmwares.list_all(conn)]
    return {
        "sites": sites.list_all(conn),
        "beacons": [dict(row._mapping) for row in beacons.list_all(conn)],
        "firmwares": firmwares.list_all(conn),
        "rollouts": rollouts.list_under_way(conn),
        "attempts": [dict(row._mapping) for row in attempts.list_for_releases(conn, releases)],
    }
