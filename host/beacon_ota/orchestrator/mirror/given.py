"""Writes down what the primary sends to a mirror, and acts on it.

Stops of the primary take effect here in memory first, so that they hold even if the disk takes
nothing. A rollout whose image is not here yet waits for it; its stops do not.
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

_STOPPED = {  # what a rollout that stands so was stopped by
    Status.PAUSED: Kind.PAUSED,
    Status.HALTED: Kind.HALTED,
    Status.ABORTED: Kind.ABORTED,
}


class GivenState:
    """What the primary gave last, as far as it is in force here.

    Attributes:
        moves: up to which move of the primary's rollouts this mirror acts.
        fault: what of the primary's word cannot be read here, in a sentence; "" when all can be.
        waiting: an answer that is not wholly taken yet; lacking: releases of it, by id, that wait
            for their images.
    """

    def __init__(self, service: Service, engine: MirrorEngine, images: Images):
        self.service, self.engine, self.images = service, engine, images
        self.moves = ""
        self.fault = ""
        self.waiting: PrimaryAnswer | None = None
        self.lacking: set[str] = set()
        self._sound_there: set[str] = set()  # releases, as the primary said last

    def note_sound(self, rows: list[Fields]) -> None:
        """Note which releases are whole at the primary; an answer that waited is superseded."""
        self._sound_there = {row["id"] for row in rows if _is_sound(row)}
        self.waiting = None

    def is_damaged_here(self) -> bool:
        """Tell whether an image is damaged here that is sound, as far as we know, elsewhere."""
        return any(
            one.row["damaged_at"] is not None and one.row["id"] in self._sound_there
            for one in self.service.fleet.releases.values()
        )

    async def apply(self, given: PrimaryAnswer) -> None:
        """Write down what the primary gives, and act on it; images that lack come later.

        A rollout that is here already is moved at once, whatever lacks: no halt waits for that.
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
        """Tell whether attempts of our own wait for their image: they are given only to who asks
        for everything, so that is asked for until they are taken.
        """
        assert given.state is not None
        return any(
            row["mirror"] is None and row["firmware_id"] in self.lacking
            for row in given.state["attempts"]
        )

    def _hold_stops(self, state: Fields) -> None:
        """Stop in memory what the primary has stopped, before that is written down, if it can be.

        What an earlier word of the primary stopped so, and this one does not, goes on.
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
        """What the primary has stopped is written down, and holds by itself."""
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
    """Write down what the primary gave; returns all rows as they are now."""
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
