"""The attempts of beacons: offers, starts and ends, each committed before it takes effect.

1. An offer is in the fleet's state at once, so that its building's cap counts it, and durable
   before the beacon hears of it.
2. The transaction compares the facts of the decision with the committed ones; when they differ,
   or the rollout was stopped meanwhile, the offer is withdrawn.
3. The first end of an attempt stays. An end that the database does not take is kept in memory
   (``unrecorded``), where the gates count it.
"""

import asyncio

from sqlalchemy import Connection

from beacon_ota.orchestrator.clock import Clock
from beacon_ota.orchestrator.core.fleet_records import BeaconState, attempt_from_row, progress_of
from beacon_ota.orchestrator.core.fleet_state import FleetState
from beacon_ota.orchestrator.core.hub import EventHub
from beacon_ota.orchestrator.core.stop_board import StopBoard
from beacon_ota.orchestrator.db import tables
from beacon_ota.orchestrator.db.connection import StorageError
from beacon_ota.orchestrator.db.database import Database
from beacon_ota.orchestrator.db.tables import Fields, attempts, beacons, events, firmwares, rollouts
from beacon_ota.orchestrator.lease import Lease
from beacon_ota.orchestrator.rollout.decide import OUTCOMES, decide, may_continue
from beacon_ota.orchestrator.rollout.types import Attempt, Decision, Kind, Reason, Result, Status


class Attempts:
    """The attempts of a service's beacons.

    Args:
        lease: a mirror's lease; None at a primary.

    Attributes:
        unrecorded: by attempt id, ends that beacons reported and the database did not take.
    """

    def __init__(
        self,
        fleet: FleetState,
        stops: StopBoard,
        db: Database,
        hub: EventHub,
        clock: Clock,
        lease: Lease | None,
    ):
        self._fleet, self._stops, self._db = fleet, stops, db
        self._hub, self._clock, self._lease = hub, clock, lease
        self.unrecorded: dict[str, Result] = {}

    async def commit_offer(self, node: BeaconState, decision: Decision) -> Attempt | None:
        """Return the attempt of an offer; it is durable before the beacon hears of it.

        Args:
            decision: the decision; nothing may have been awaited since it was made.

        Returns:
            None when the facts of the decision have changed, and the caller must decide again.
        """
        if decision.attempt_id is not None and node.offering is None:
            return self._fleet.open_attempts[decision.attempt_id]
        if node.offering is not None:  # the same beacon asked twice at once
            return await asyncio.shield(node.offering)
        assert decision.rollout_id and decision.firmware_id
        facts = node.beacon
        basis = self._fleet.basis_of(self._fleet.rollouts[decision.rollout_id])
        before = [a for a in node.attempts if a.rollout_id == decision.rollout_id]
        again = bool(before) and before[-1].result is Result.EXPIRED
        row: Fields = {
            **dict.fromkeys(attempts.COLUMNS),
            "id": before[-1].id if again else tables.new_id(),
            "beacon_id": facts.id,
            "firmware_id": decision.firmware_id,
            "rollout_id": decision.rollout_id,
            "wave": decision.wave,
            "stage": decision.stage,
            "n": len(before) + (not again),
            "site": facts.site or None,
            "from_version": facts.version,
            "from_image": facts.image,
            "offered_at": self._clock.now(),
        }
        attempt = attempt_from_row(row)
        self._fleet.put_attempt(attempt)  # at once, so that the building's count includes it
        node.offering = asyncio.get_running_loop().create_future()
        try:
            known = frozenset(a.id for a in before)
            upon = (facts.channel, facts.device_type)
            kept = await self._db.write(
                _offer_unless_stopped, self._stops, basis, upon, row, again, known
            )
            if kept is None:
                self._withdraw_offer(attempt, before[-1] if again else None)
                node.offering.set_result(None)
                return None
            if kept["id"] != attempt.id:
                self._fleet.cancel_attempt(attempt)
                attempt = attempt_from_row(kept)
                self._fleet.put_attempt(attempt)
        except BaseException as error:
            self._withdraw_offer(attempt, before[-1] if again else None)
            node.offering.set_exception(error)
            node.offering.exception()
            raise
        else:
            node.offering.set_result(attempt)
            self._hub.broadcast_transient(
                row["offered_at"],
                "attempt.offered",
                attempt.id,
                {
                    "beacon": facts.id,
                    "firmware": decision.firmware_id,
                    "rollout": decision.rollout_id,
                },
            )
        finally:
            node.offering = None
        return attempt

    def within_lease(self, decision: Decision) -> Decision:
        """Return a decision within the lease: a mirror whose lease is over makes no new offers.

        A beacon may finish an attempt that was offered in time.
        """
        if not decision.offered or self._lease is None or not self._lease.is_over():
            return decision
        attempt = self._fleet.open_attempts.get(decision.attempt_id or "")
        if attempt is not None and attempt.taken_at is not None:
            return decision
        return Decision(
            Reason.LEASE,
            decision.rollout_id,
            decision.firmware_id,
            decision.wave,
            decision.stage,
        )

    def _withdraw_offer(self, attempt: Attempt, expired: Attempt | None) -> None:
        """Discard an offer that was not committed; an attempt that it renewed stays as it was."""
        self._fleet.cancel_attempt(attempt)
        if expired is not None:
            self._fleet.put_attempt(expired)

    async def start_attempt(self, attempt: Attempt) -> bool:
        """Record that a beacon has begun an attempt: its first download.

        Returns:
            Whether the beacon may go on: False when the attempt has ended, or was called off.
        """
        now = self._clock.now()
        may, _row = await self._db.write(
            _start, self._stops, attempt.id, now, then=lambda done: self.apply_row(done[1])
        )
        if may:
            self._hub.broadcast_transient(
                now, "attempt.taken", attempt.id, {"beacon": attempt.beacon_id}
            )
        return may

    def apply_row(self, row: Fields | None) -> None:
        """Bring the view up to a committed row."""
        if row is None:
            return
        attempt = attempt_from_row(row)
        was_open = attempt.id in self._fleet.open_attempts
        node = self._fleet.beacons.get(attempt.beacon_id)
        before = () if node is None else node.attempts
        blames = attempt.blamed_at is not None and not any(
            one.id == attempt.id and one.blamed_at is not None for one in before
        )
        if attempt.result is not None:
            self.unrecorded.pop(attempt.id, None)
        self._fleet.put_attempt(attempt)
        failed = attempt.result in OUTCOMES and attempt.result is not Result.SUCCESS
        if (was_open and failed) or blames:
            self._announce_withheld(attempt)

    def _announce_withheld(self, attempt: Attempt) -> None:
        """Record an event if a beacon's failures, or its verdict, end the offers of a release."""
        node = self._fleet.beacons.get(attempt.beacon_id)
        if node is None:
            return
        now = self._clock.now()
        lives = self._fleet.active_rollouts_for(node.beacon)
        decision = decide(lives, node.beacon, now, attempts=node.attempts)
        if (
            decision.reason not in (Reason.ATTEMPTS, Reason.BLAMED)
            or decision.firmware_id != attempt.firmware_id
        ):
            return
        release = self._fleet.releases[attempt.firmware_id]
        data = {
            "rollout": attempt.rollout_id,
            "firmware": attempt.firmware_id,
            "version": release.row["version"],
            "tries": decision.number,
            "why": decision.reason.value,
        }
        self._db.write(
            events.add, now, "beacon.withheld", attempt.beacon_id, data, then=self._hub.publish
        )

    async def conclude_attempt(
        self,
        attempt: Attempt,
        result: Result,
        *,
        stage: str | None = None,
        code: str | None = None,
        detail: str | None = None,
    ) -> None:
        """End an attempt with a result that the orchestrator concluded without a report."""
        version = self._fleet.releases[attempt.firmware_id].row["version"]
        attempt_id, upon, now = attempt.id, progress_of(attempt), self._clock.now()
        told: list[Fields] = []

        def work(conn: Connection) -> Fields | None:
            told.clear()
            settled, row = attempts.conclude(
                conn,
                attempt_id,
                now,
                str(result),
                progress=upon,
                stage=stage,
                code=code,
                detail=detail,
            )
            if settled and row is not None:
                told.append(record_outcome_event(conn, now, row, version))
            return row

        def after(row: Fields | None) -> None:
            self.apply_row(row)
            for one in told:
                self._hub.publish(one)

        try:
            await self._db.write(work, then=after)
        except StorageError:
            self.note_unrecorded(attempt, result)
            raise

    def note_unrecorded(self, attempt: Attempt, result: Result) -> None:
        """Note a failure that the database did not take, so that the gates count it."""
        if attempt.id in self._fleet.open_attempts and result is not Result.SUCCESS:
            self.unrecorded[attempt.id] = result
            self._fleet.on_change()


def may_attempt_continue(
    conn: Connection, stops: StopBoard, attempt_id: str
) -> tuple[bool, Fields | None]:
    """Tell whether an attempt may go on, by what is committed or stopped; and its row.

    This honours halts, quarantines and type changes that another process committed and that this
    one has not seen, and stops made while waiting for the database.
    """
    row = attempts.get(conn, attempt_id)
    basis = None if row is None else rollouts.read_basis(conn, row["rollout_id"])
    if row is None or basis is None:
        return False, row
    attempt = attempt_from_row(row)
    open_to = beacons.offer_scope(conn, row["beacon_id"])
    channel = None if open_to is None else open_to[0]
    if (
        open_to is not None
        and attempt.rebooting_at is None
        and open_to[1] != firmwares.device_type_of(conn, attempt.firmware_id)
    ):
        return False, row
    for status in (
        basis.status,
        *(_STATUS_OF_STOP[one.kind] for one in stops.stops_of(attempt.rollout_id)),
    ):
        if not may_continue(Status(status), basis.release_state, attempt, channel=channel):
            return False, row
    return True, row


_STATUS_OF_STOP = {
    Kind.PAUSED: Status.PAUSED,
    Kind.HALTED: Status.HALTED,
    Kind.ABORTED: Status.ABORTED,
}


def _start(
    conn: Connection, stops: StopBoard, attempt_id: str, now: float
) -> tuple[bool, Fields | None]:
    may, row = may_attempt_continue(conn, stops, attempt_id)
    return may, attempts.start(conn, attempt_id, now) if may else row


def _offer_unless_stopped(
    conn: Connection,
    stops: StopBoard,
    basis: rollouts.Basis,
    upon: tuple[str, str],
    row: Fields,
    again: bool,
    known: frozenset[str],
) -> Fields | None:
    """Record an offer, unless its rollout was stopped while it waited for the database."""
    if stops.stops_of(row["rollout_id"]):
        return None
    return attempts.offer_if_unchanged(conn, basis, upon, row, again, known)


def record_outcome_event(
    conn: Connection, at: float, row: Fields, version: str, word: str | None = None
) -> Fields:
    """Record the event of an attempt's end.

    Args:
        version: the version of the attempt's release.
        word: the name to use in place of the attempt's result.
    """
    data = {
        "beacon": row["beacon_id"],
        "rollout": row["rollout_id"],
        "firmware": row["firmware_id"],
        "version": version,
    }
    for name in ("failed_in", "code", "detail"):
        if row[name]:
            data[name] = row[name]
    return events.add(conn, at, f"attempt.{word or row['result']}", row["id"], data)
