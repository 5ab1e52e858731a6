"""Ends attempts without a report: those called off, silent for too long, or never taken."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from beacon_ota.orchestrator.core.attempts import record_outcome_event
from beacon_ota.orchestrator.core.fleet_records import RolloutEntry, progress_of
from beacon_ota.orchestrator.core.rollout_store import RolloutStore
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.core.stop_manager import StopManager
from beacon_ota.orchestrator.db.connection import StorageError
from beacon_ota.orchestrator.db.tables import (
    Fields,
    attempts,
    former_beacons,
    mirror_books,
    rollouts,
)
from beacon_ota.orchestrator.rollout import decide, roaming
from beacon_ota.orchestrator.rollout.types import (
    Attempt,
    Result,
    Status,
)

_CALLED_OFF = (Status.HALTED, Status.ABORTED)
_REMOVED = "the beacon was removed"
_OTHER_BOARD = "its beacon is another board"


class AttemptEnd(NamedTuple):
    """The concluded end of an attempt."""

    result: Result
    upon: attempts.Progress
    detail: str | None = None


class AttemptConclusions(RolloutStore):
    """Concludes the attempts at a service's rollouts."""

    def __init__(self, service: Service):
        super().__init__(service)
        self.stop_manager = StopManager(self)
        self._sync_times: Sequence[tuple[str, float]] = ()  # of mirrors: when each told everything
        self._presumed_lost: dict[str, set[str]] = {}  # by a halt in memory: attempt ids

    def _unrecorded_ends(self, entry: RolloutEntry) -> dict[str, Attempt]:
        """Return the ends of attempts that the database has not taken, by attempt id."""
        now = self.service.clock.now()
        return {
            key: dataclasses.replace(attempt, result=result, ended_at=now)
            for key, result in self.service.attempts.unrecorded.items()
            if key in entry.open_ids
            and (attempt := self.service.fleet.open_attempts.get(key)) is not None
        }

    def _find_silent(self, entry: RolloutEntry, now: float) -> dict[str, Attempt]:
        """Return the attempts of beacons that have sent nothing for the gate's silence period."""
        view, since = self.service.fleet, self.service.listening_since
        mine = [one for key in entry.open_ids if not (one := view.open_attempts[key]).is_remote]
        found = {}
        lost = decide.lost_attempts(entry.rollout, mine, now, listening_since=since)
        for attempt in self._not_at_mirrors(entry, lost, now) if lost else ():
            node = view.beacons.get(attempt.beacon_id)
            silence = entry.rollout.gates[attempt.wave].report_timeout_s
            if node is not None and now - (node.last_seen or 0.0) >= silence:
                found[attempt.id] = dataclasses.replace(attempt, result=Result.LOST, ended_at=now)
        return found

    async def _conclude_attempts(self, entry: RolloutEntry, now: float) -> None:
        """End the attempts that are called off, silent for too long, or never taken."""
        view = self.service.fleet
        mine = [one for key in entry.open_ids if not (one := view.open_attempts[key]).is_remote]
        release = view.releases[entry.rollout.plan.release.firmware_id]
        ends: dict[str, AttemptEnd] = {}
        since = self.service.listening_since
        for attempt in decide.expired_attempts(entry.rollout, mine, now, listening_since=since):
            ends[attempt.id] = AttemptEnd(Result.EXPIRED, progress_of(attempt))
        silent = decide.lost_attempts(entry.rollout, mine, now, listening_since=since)
        for attempt in self._not_at_mirrors(entry, silent, now) if silent else ():
            node = view.beacons.get(attempt.beacon_id)
            others = () if node is None else node.attempts
            if roaming.moved_on(roaming.row_of(attempt), map(roaming.row_of, others), now):
                ends[attempt.id] = AttemptEnd(
                    Result.STOPPED, progress_of(attempt), roaming.DETAIL_MOVED_ON
                )
                continue
            # Only the report was lost: the beacon has polled from the new image since.
            runs = (
                node is not None
                and not node.beacon.on_trial
                and node.beacon.image == release.row["checksum"]
                and node.beacon.version_at > (attempt.taken_at or now)
            )
            result, detail = (
                (Result.SUCCESS, roaming.DETAIL_RUNNING) if runs else (Result.LOST, None)
            )
            ends[attempt.id] = AttemptEnd(result, progress_of(attempt), detail)
        called_off = entry.state.status in _CALLED_OFF
        # Attempts on which a halt in memory was based keep the result assumed then: a silent
        # beacon is lost, and a beacon whose failure was not stored reports it again.
        rollout_id = entry.rollout.plan.rollout_id
        presumed = self._presumed_lost.get(rollout_id)
        gone = presumed & self._find_silent(entry, now).keys() if presumed else ()
        for attempt in decide.revocable_attempts(mine):
            if attempt.id in self.service.attempts.unrecorded or (
                attempt.id in ends and attempt.id in gone
            ):
                continue
            node = view.beacons.get(attempt.beacon_id)
            if called_off or (node and decide.is_blocked_from(release.state, node.beacon)):
                ends[attempt.id] = AttemptEnd(Result.STOPPED, progress_of(attempt))
        for attempt in mine:
            node = view.beacons.get(attempt.beacon_id)
            if node is None:  # nobody will hear from it
                ends[attempt.id] = AttemptEnd(Result.STOPPED, progress_of(attempt), _REMOVED)
            elif attempt.rebooting_at is None and decide.is_other_board(
                node.beacon, release.row["device_type"]
            ):
                ends[attempt.id] = AttemptEnd(Result.STOPPED, progress_of(attempt), _OTHER_BOARD)
        if ends:
            await self._record_ends(entry, ends, now)
        if not self.stop_manager.is_pending(rollout_id):
            self._presumed_lost.pop(rollout_id, None)

    def _not_at_mirrors(
        self, entry: RolloutEntry, silent: list[Attempt], now: float
    ) -> list[Attempt]:
        """Return the silent attempts about which no mirror can still have news to send.

        A beacon may have gone on at its site's mirror while the mirror is cut off. Such an attempt
        stays open for as long as a stage waits for any beacon.
        """
        with contextlib.suppress(StorageError):  # nor can a mirror tell anything meanwhile
            self._sync_times = self.service.db.read_now(mirror_books.read_sync_times)
        even = self._sync_times
        found = []
        for attempt in silent:
            gate = entry.rollout.gates[attempt.wave]
            began = attempt.taken_at or now
            node = self.service.fleet.beacons.get(attempt.beacon_id)
            site = "" if node is None else node.beacon.site
            until = min(began + gate.report_timeout_s, now)
            if now >= began + gate.stage_timeout_s or all(
                even_at >= until
                for where, even_at in even
                if former_beacons.site_covers(where, site)
            ):
                found.append(attempt)
        return found

    async def _record_ends(
        self, entry: RolloutEntry, ends: "dict[str, AttemptEnd]", now: float
    ) -> None:
        """Record the ends that were just concluded.

        Raises:
            UsageError: ``rollout_moved``.
        """
        rollout_id = entry.rollout.plan.rollout_id
        version = entry.rollout.plan.release.version
        basis = self.service.fleet.basis_of(entry)
        told: list[Fields] = []

        def work(conn: Connection) -> list[Fields] | None:
            told.clear()
            if rollouts.read_basis(conn, rollout_id) != basis:
                return None
            rows = []
            for attempt_id, (result, upon, detail) in ends.items():
                settled, row = attempts.conclude(
                    conn, attempt_id, now, str(result), progress=upon, detail=detail
                )
                if row is not None:
                    rows.append(row)
                    if settled and result is not Result.EXPIRED:
                        told.append(record_outcome_event(conn, now, row, version))
            return rows

        def after(rows: list[Fields] | None) -> None:
            for row in rows or ():
                self.service.attempts.apply_row(row)
            for one in told:
                self.service.hub.publish(one)

        if await self.service.db.write(work, then=after) is None:
            raise self._reload_moved(entry)
