"""The orchestrator as one object: clock, database, images, view, followers, and what ties them.

The HTTP side calls its methods; every method that changes something waits for the commit.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection

from beacon_ota.errors import ReachError
from beacon_ota.orchestrator.blobs.local import BlobDamaged
from beacon_ota.orchestrator.blobs.object_store import open_blob_store
from beacon_ota.orchestrator.clock import Clock
from beacon_ota.orchestrator.core import credential_cache
from beacon_ota.orchestrator.core.audit_note import AuditHeadNote
from beacon_ota.orchestrator.core.credential_cache import CredentialCache
from beacon_ota.orchestrator.core.fleet_state import (
    BeaconState,
    FleetState,
    Release,
    attempt_from_row,
    progress_of,
)
from beacon_ota.orchestrator.core.hub import EventHub
from beacon_ota.orchestrator.core.replay import REPLAYS_FILE, ReplayGuard
from beacon_ota.orchestrator.core.shared_counters import SharedCounters
from beacon_ota.orchestrator.core.stop_board import StopBoard
from beacon_ota.orchestrator.db import tables
from beacon_ota.orchestrator.db.database import Database, StorageError, is_shared, sqlite_url
from beacon_ota.orchestrator.db.tables import (
    Fields,
    attempts,
    audit,
    beacons,
    changes,
    events,
    firmwares,
    keys,
    orphans,
    rollouts,
    sites,
    webhooks,
)
from beacon_ota.orchestrator.lease import Lease
from beacon_ota.orchestrator.rollout.decide import OUTCOMES, decide, may_continue
from beacon_ota.orchestrator.rollout.types import Attempt, Decision, Kind, Reason, Result, Status
from beacon_ota.orchestrator.settings import Settings

T = TypeVar("T")
log = logging.getLogger("beacon_ota.orchestrator")

ROLLBACK_GRACE_S = 120.0  # a beacon back on its old image may still tell why, in its own words
FLUSH_S = 3.0  # last-seen times are written this often
PRUNE_S = 600.0
PRUNE_ROWS = 10_000  # removed in one transaction
UNDER_WAY_S = 3600.0  # younger files without a row may be another process's upload


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
    bytes_sent: int = 0
    reading: int = 0  # downloads under way

    def dump(self) -> Fields:
        """Return it as JSON has it."""
        found: Fields = {}
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            counter = isinstance(value, Counter)
            found[one.name] = {str(k): n for k, n in value.items()} if counter else value
        return found

    def add(self, found: Fields) -> "ServedCounts":
        """Return the sum with what another process has dumped."""
        total: Fields = {}
        for name, mine in self.dump().items():
            if isinstance(mine, dict):
                total[name] = Counter(mine) + Counter(found.get(name) or {})
            else:
                total[name] = mine + (found.get(name) or 0)
        return ServedCounts(**total)


class Service:
    """The orchestrator without its sockets."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock | None = None,
        replays: ReplayGuard | None = None,
        stops: StopBoard | None = None,
    ):
        self.settings = settings
        self.clock = clock or Clock()
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.blobs = open_blob_store(settings.data, settings.images)
        self.mirror: Any = None  # the exchange with a primary, where there is one
        self.lease = Lease(settings.lease_s, self.clock) if settings.upstream else None
        self.worker = tables.new_id()
        self.shared = is_shared(settings.database or "sqlite")
        self.is_leader = True  # unless there are other processes, and one of those does
        self.db = Database(settings.database or sqlite_url(settings.data), worker=self.worker)
        self.hub = EventHub()
        self.counts = ServedCounts()
        self.shared_counters: tuple[SharedCounters, int] | None = None  # with our place in it
        self.started_at = self.clock.now()
        self.listening_since = self.started_at  # without interruption, as the clock has it
        self.audit_note = AuditHeadNote(settings.data)
        self.restored = not settings.upstream and self.db.read_now(
            self.audit_note.is_database_older
        )
        registered = self.db.read_now(beacons.count)
        self._own_replays = replays is None  # else they are of several processes
        self.replays = replays or ReplayGuard(
            settings.data / REPLAYS_FILE, self.started_at, fresh=not registered
        )
        self._own_stops = stops is None
        self.stops = stops or StopBoard(settings.data)
        self.fleet = FleetState(self.replays, zone=settings.zone, window=settings.window)
        self.fleet.put_stops(self.stops.current())  # before anything is read
        self.credentials = CredentialCache()
        self._remembering: asyncio.Future[None] | None = None
        self.unrecorded: dict[str, Result] = {}  # what open attempts came to, and was not stored
        self.cut_off = False  # the database is away, and nobody leads
        self.uploads = asyncio.Lock()  # from the check that a version is free to its row
        self._tasks: list[asyncio.Task[None]] = []
        self._synchronising = ThreadPoolExecutor(1, thread_name_prefix="replays")

    # ---- life ----

    async def start(self) -> None:
        """Read the database, remove what a crash left over, and begin the background work."""
        self.db.start()
        self.db.read_now(self._load)
        self.credentials.replace(*self.db.read_now(credential_cache.read_credentials))
        await self._sweep()
        self.run_in_background(self._flushing())
        self.run_in_background(self._pruning())
        self.run_in_background(self._checking())

    async def stop(self) -> None:
        """Finish what is under way; everything acknowledged is in the database already."""
        self.hub.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.flush_last_seen()
        self.share_counts()
        await self._note_audit()
        await self.db.stop()
        self.blobs.close()
        self._synchronising.shutdown()
        if self._own_replays:
            self.replays.close()
        if self._own_stops:
            self.stops.close()

    def sync_stops(self) -> None:
        """Have the view hold what any worker has stopped, stored or not."""
        stops = self.stops.current()
        if stops is not self.fleet.stops:
            self.fleet.put_stops(stops)

    async def catch_up(self) -> None:
        """Wait until the view holds what other processes have committed; here there are none."""

    async def _sweep(self) -> None:
        """Remove what a crash left over of uploads, and images that have long had no release.

        An image without a release is mostly the sign of a database that is not the one that these
        images belong to: a new one, or an older copy. So it stays for ``orphans.GRACE_S`` after it
        was first found, and an empty database removes none.
        """
        known = self.db.read_now(firmwares.list_blobs)
        others = self.shared or self.settings.images is not None
        age_s = UNDER_WAY_S if others else 0.0
        found = set(self.blobs.orphans(known, time.time() - age_s))
        due: set[str] = set()
        if found and known:
            due = await self.db.write(orphans.mark_orphans, found, self.clock.now())
        if found - due:
            log.warning(
                "%d image files belong to no release of this database; they are kept",
                len(found - due),
            )
        for digest in self.blobs.sweep(known | (found - due), age_s):
            log.warning("removed an image file that no release has referred to: %s", digest)

    def run_in_background(self, work: Awaitable[None]) -> None:
        """Run a task of the background for as long as the orchestrator runs."""
        self._tasks.append(asyncio.ensure_future(work))

    def _load(self, conn: Connection) -> None:
        view = self.fleet
        view.put_sites(sites.list_all(conn))
        for row in beacons.list_all(conn):
            view.put_beacon(dict(row._mapping))
        for row in firmwares.list_all(conn):
            view.put_release(row)

    def reload_fleet(self) -> None:
        """Read sites, beacons and releases again."""
        there = {row.id for row in self.db.read_now(beacons.list_all)}
        for beacon_id in set(self.fleet.beacons) - there:
            self.fleet.drop_beacon(beacon_id)
        self.db.read_now(self._load)

    # ---- changes, with their traces ----

    async def change_audited(
        self,
        actor: str,
        action: str,
        target: str,
        work: Callable[..., T],
        *args: Any,
        then: Callable[[T], object] | None = None,
        reason: str = "",
        event: bool = True,
        detail: Fields | None = None,
    ) -> T:
        """Do something that goes into the audit log, in the same transaction.

        Args:
            work: a store function; it raises to refuse, and then nothing is recorded.
        """
        now = self.clock.now()
        detail = detail or {}
        told: list[Fields] = []

        def both(conn: Connection) -> T:
            result = work(conn, *args)
            audit.append(conn, now, actor, action, target, reason, detail)
            if event:
                data = {**detail, "by": actor, **({"reason": reason} if reason else {})}
                told[:] = [events.add(conn, now, action, target, data)]
            return result

        def after(result: T) -> None:
            if then is not None:
                then(result)
            for one in told:
                self.hub.publish(one)

        return await self.db.write(both, then=after)

    async def adopt_key(self, node: BeaconState, key: bytes) -> None:
        """A beacon has used a key that it was given: earlier ones are of no use to anybody now.

        Another process may have noted it, seen a later one, or removed the beacon: that holds.
        """
        beacon_id, now = node.beacon.id, self.clock.now()

        def work(conn: Connection) -> tuple[Fields | None, Fields | None]:
            row = keys.record_use(conn, beacon_id, key)
            if row is None:
                return beacons.get(conn, beacon_id), None
            audit.append(conn, now, "orchestrator", "beacon.rekeyed", beacon_id, "", {})
            data = {"by": "orchestrator"}
            return row, events.add(conn, now, "beacon.rekeyed", beacon_id, data)

        def then(done: tuple[Fields | None, Fields | None]) -> None:
            row, event = done
            if row is None:
                self.fleet.drop_beacon(beacon_id)
            else:
                self.fleet.put_beacon(row)
            if event is not None:
                self.hub.publish(event)

        await asyncio.shield(self.db.write(work, then=then))

    # ---- attempts ----

    async def commit_offer(self, node: BeaconState, decision: Decision) -> Attempt | None:
        """Return the attempt of an offer; it is durable before the beacon hears of it.

        Args:
            decision: made just now: nothing was awaited since.

        Returns:
            None when it is to be decided again: what it was made upon has changed.
        """
        if decision.attempt_id is not None and node.offering is None:
            return self.fleet.open_attempts[decision.attempt_id]
        if node.offering is not None:  # the same beacon asked twice at once
            return await asyncio.shield(node.offering)
        assert decision.rollout_id and decision.firmware_id
        facts = node.beacon
        basis = self.fleet.basis_of(self.fleet.rollouts[decision.rollout_id])
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
            "offered_at": self.clock.now(),
        }
        attempt = attempt_from_row(row)
        self.fleet.put_attempt(attempt)  # at once, so that the building's count includes it
        node.offering = asyncio.get_running_loop().create_future()
        try:
            known = frozenset(a.id for a in before)
            upon = (facts.channel, facts.device_type)
            kept = await self.db.write(_offer, self.stops, basis, upon, row, again, known)
            if kept is None:
                self._take_back(attempt, before[-1] if again else None)
                node.offering.set_result(None)
                return None
            if kept["id"] != attempt.id:
                self.fleet.cancel_attempt(attempt)
                attempt = attempt_from_row(kept)
                self.fleet.put_attempt(attempt)
        except BaseException as error:
            self._take_back(attempt, before[-1] if again else None)
            node.offering.set_exception(error)
            node.offering.exception()
            raise
        else:
            node.offering.set_result(attempt)
            self.hub.broadcast_transient(
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
        """Return a decision as this orchestrator may make it: without its primary, no new offer.

        What a beacon has begun is finished: it was handed out in time.
        """
        if not decision.offered or self.lease is None or not self.lease.is_over():
            return decision
        attempt = self.fleet.open_attempts.get(decision.attempt_id or "")
        if attempt is not None and attempt.taken_at is not None:
            return decision
        return Decision(
            Reason.LEASE,
            decision.rollout_id,
            decision.firmware_id,
            decision.wave,
            decision.stage,
        )

    def _take_back(self, attempt: Attempt, expired: Attempt | None) -> None:
        """Forget an offer that was not committed; what it was to go on with stays as it was."""
        self.fleet.cancel_attempt(attempt)
        if expired is not None:
            self.fleet.put_attempt(expired)

    async def start_attempt(self, attempt: Attempt) -> bool:
        """Record that a beacon has begun: the first download of an attempt.

        Returns:
            Whether it may: False when the attempt has ended, or was called off.
        """
        now = self.clock.now()
        may, _row = await self.db.write(
            _take, self.stops, attempt.id, now, then=lambda done: self.put_attempt(done[1])
        )
        if may:
            self.hub.broadcast_transient(
                now, "attempt.taken", attempt.id, {"beacon": attempt.beacon_id}
            )
        return may

    def put_attempt(self, row: Fields | None) -> None:
        """Bring the view up to a committed row."""
        if row is None:
            return
        attempt = attempt_from_row(row)
        was_open = attempt.id in self.fleet.open_attempts
        node = self.fleet.beacons.get(attempt.beacon_id)
        before = () if node is None else node.attempts
        blames = attempt.blamed_at is not None and not any(
            one.id == attempt.id and one.blamed_at is not None for one in before
        )
        if attempt.result is not None:
            self.unrecorded.pop(attempt.id, None)
        self.fleet.put_attempt(attempt)
        failed = attempt.result in OUTCOMES and attempt.result is not Result.SUCCESS
        if (was_open and failed) or blames:
            self._withheld(attempt)

    def _withheld(self, attempt: Attempt) -> None:
        """Tell of a beacon that is offered a release no more: for its failures, or its verdict."""
        node = self.fleet.beacons.get(attempt.beacon_id)
        if node is None:
            return
        now = self.clock.now()
        lives = self.fleet.active_rollouts_for(node.beacon)
        decision = decide(lives, node.beacon, now, attempts=node.attempts)
        if (
            decision.reason not in (Reason.ATTEMPTS, Reason.BLAMED)
            or decision.firmware_id != attempt.firmware_id
        ):
            return
        release = self.fleet.releases[attempt.firmware_id]
        data = {
            "rollout": attempt.rollout_id,
            "firmware": attempt.firmware_id,
            "version": release.row["version"],
            "tries": decision.number,
            "why": decision.reason.value,
        }
        self.db.write(
            events.add, now, "beacon.withheld", attempt.beacon_id, data, then=self.hub.publish
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
        """End an attempt by what we concluded ourselves of how far it had come."""
        version = self.fleet.releases[attempt.firmware_id].row["version"]
        attempt_id, upon, now = attempt.id, progress_of(attempt), self.clock.now()
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
            self.put_attempt(row)
            for one in told:
                self.hub.publish(one)

        try:
            await self.db.write(work, then=after)
        except StorageError:
            self.note_unrecorded(attempt, result)
            raise

    def note_unrecorded(self, attempt: Attempt, result: Result) -> None:
        """An open attempt has failed, and the database did not take it: the gates count it."""
        if attempt.id in self.fleet.open_attempts and result is not Result.SUCCESS:
            self.unrecorded[attempt.id] = result
            self.fleet.on_change()

    # ---- the background ----

    async def flush_last_seen(self) -> None:
        """Write when beacons were last heard from, and what they run."""
        rows, refused = self.fleet.take_seen_rows(), self.fleet.take_refused_rows()
        if rows or refused:
            try:
                await self.db.write(beacons.record_seen, rows, refused)
            except StorageError:
                self.fleet.restore_rows(rows, refused)
                raise

    async def _flushing(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            await self._guarded(self.flush_last_seen())
            await self._guarded(self._reserve_replays())
            await self._guarded(self._remember())
            await self._note_audit()
            self.share_counts()

    async def _note_audit(self) -> None:
        """Note how far the audit log has come; not before what was restored is paused."""
        if not self.restored:
            await self._guarded(self.db.read_for_beacon(self.audit_note.write))

    def refresh_credentials_soon(self) -> None:
        """Somebody has shown a credential that is not remembered yet."""
        if self._remembering is None or self._remembering.done():
            self._remembering = asyncio.ensure_future(self._guarded(self._remember()))

    async def _remember(self) -> None:
        """Keep who may stop a rollout, for the time when the database cannot be asked."""
        self.credentials.replace(*await self.db.read(credential_cache.read_credentials))

    async def _reserve_replays(self) -> None:
        """Synchronise ahead of time what would otherwise hold up a beacon's request."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._synchronising, self.replays.reserve, self.clock.now())

    def share_counts(self) -> None:
        """Show the other processes of this machine what we have served."""
        if self.shared_counters is not None:
            tallies, place = self.shared_counters
            tallies.write(place, self.counts.dump())

    def total_counts(self) -> ServedCounts:
        """Return what all processes of this machine have served; of the others, a moment ago."""
        total = self.counts
        if self.shared_counters is not None:
            tallies, place = self.shared_counters
            for found in tallies.read_others(place):
                total = total.add(found)
        return total

    def resume_counts(self, tallies: SharedCounters, place: int) -> None:
        """Go on from what the process in this place has counted."""
        found = {**tallies.read(place), "reading": 0}
        self.counts = self.counts.add(found)
        self.shared_counters = (tallies, place)

    async def _pruning(self) -> None:
        while True:
            await asyncio.sleep(PRUNE_S)
            if not self.is_leader:
                continue
            await self._guarded(self.db.write(changes.prune_changes))
            await self._guarded(self._prune_beacons())
            await self._guarded(self.db.write(events.prune_events))
            await self._guarded(self.db.write(webhooks.prune_deliveries))

    async def _prune_beacons(self) -> None:
        """Remove what is beyond the bounds, in pieces: whoever reports or halts waits for one."""
        while await self.db.write(beacons.prune_history, PRUNE_ROWS) == PRUNE_ROWS:
            pass

    async def _checking(self) -> None:
        """Read every image once, so that damage is found before a beacon asks for it.

        What was damaged or missing may have been put back, under a database that was there first.
        """
        for firmware_id in list(self.fleet.releases):
            await asyncio.sleep(0.05)
            try:
                await asyncio.to_thread(
                    self.blobs.read_verified, self.fleet.releases[firmware_id].row["blob"]
                )
            except BlobDamaged as error:
                release = self.fleet.releases[firmware_id]
                if release.row["damaged_at"] is None:
                    await self._guarded(self.withdraw_damaged(release, error))
            except ReachError as error:
                log.warning("release %s cannot be checked: %s", firmware_id, error)
            else:
                release = self.fleet.releases[firmware_id]
                if release.row["damaged_at"] is not None:
                    await self._guarded(self._repaired(release))

    async def withdraw_damaged(self, release: Release, error: BlobDamaged) -> None:
        """Withdraw a release whose bytes are not what they were."""
        firmware_id = release.row["id"]
        log.error("release %s is withdrawn: %s", firmware_id, error)
        await self.change_audited(
            "orchestrator",
            "firmware.damaged",
            firmware_id,
            partial(firmwares.update_columns, damaged_at=self.clock.now()),
            firmware_id,
            then=lambda row: row and self.fleet.put_release(row),
            reason=error.code,
        )

    async def _repaired(self, release: Release) -> None:
        """Give a release back whose bytes are again what they were."""
        firmware_id = release.row["id"]
        log.warning("release %s is not damaged any more", firmware_id)
        self.blobs.evict(release.row["blob"])
        await self.change_audited(
            "orchestrator",
            "firmware.renewed",
            firmware_id,
            partial(firmwares.update_columns, damaged_at=None),
            firmware_id,
            then=lambda row: row and self.fleet.put_release(row),
            detail={"what": ["damaged_at"]},
        )

    async def _guarded(self, work: Awaitable[object]) -> None:
        """Wait for work of the background; a failure is logged, and tried again next time."""
        try:
            await work
        except asyncio.CancelledError:
            raise
        except (StorageError, OSError) as error:
            log.error("background work has to wait: %s", error)
        except Exception:
            log.exception("background work failed")


def may_attempt_continue(
    conn: Connection, stops: StopBoard, attempt_id: str
) -> tuple[bool, Fields | None]:
    """Tell whether an attempt may go on, by what is committed or stopped; and its row.

    So a halt, a quarantine or another device type holds that another process has committed, and
    this one has not heard of yet; and one that was made while this waited for the database.
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
        *(_STATUS[one.kind] for one in stops.stops_of(attempt.rollout_id)),
    ):
        if not may_continue(Status(status), basis.release_state, attempt, channel=channel):
            return False, row
    return True, row


_STATUS = {
    Kind.PAUSED: Status.PAUSED,
    Kind.HALTED: Status.HALTED,
    Kind.ABORTED: Status.ABORTED,
}


def _take(
    conn: Connection, stops: StopBoard, attempt_id: str, now: float
) -> tuple[bool, Fields | None]:
    may, row = may_attempt_continue(conn, stops, attempt_id)
    return may, attempts.start(conn, attempt_id, now) if may else row


def _offer(
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
        version: of its release.
        word: instead of its result.
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


@contextlib.asynccontextmanager
async def run_service(service: Service):
    """Run a service for the duration of a block."""
    await service.start()
    try:
        yield service
    finally:
        await service.stop()
