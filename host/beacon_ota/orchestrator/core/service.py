"""The orchestrator without sockets: clock, database, images, fleet state, hub, background tasks.

The HTTP side calls its methods; every method that changes something waits for the commit.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection

from beacon_ota.errors import ReachError
from beacon_ota.orchestrator.blobs.local import BlobDamaged
from beacon_ota.orchestrator.blobs.object_store import open_blob_store
from beacon_ota.orchestrator.clock import Clock
from beacon_ota.orchestrator.core import credential_cache
from beacon_ota.orchestrator.core.attempts import Attempts
from beacon_ota.orchestrator.core.audit_note import AuditHeadNote
from beacon_ota.orchestrator.core.credential_cache import CredentialCache
from beacon_ota.orchestrator.core.fleet_records import BeaconState, Release
from beacon_ota.orchestrator.core.fleet_state import FleetState
from beacon_ota.orchestrator.core.hub import EventHub
from beacon_ota.orchestrator.core.replay import REPLAYS_FILE, ReplayGuard
from beacon_ota.orchestrator.core.shared_counters import ServedCounts, SharedCounters
from beacon_ota.orchestrator.core.stop_board import StopBoard
from beacon_ota.orchestrator.db import tables
from beacon_ota.orchestrator.db.connection import StorageError, is_shared, sqlite_url
from beacon_ota.orchestrator.db.database import Database
from beacon_ota.orchestrator.db.tables import (
    Fields,
    audit,
    beacons,
    changes,
    events,
    firmwares,
    keys,
    orphans,
    sites,
    webhooks,
)
from beacon_ota.orchestrator.lease import Lease
from beacon_ota.orchestrator.settings import Settings

T = TypeVar("T")
log = logging.getLogger("beacon_ota.orchestrator")

ROLLBACK_GRACE_S = 120.0  # a beacon back on its old image may still tell why, in its own words
FLUSH_S = 3.0  # last-seen times are written this often
PRUNE_S = 600.0
PRUNE_ROWS = 10_000  # removed in one transaction
UNDER_WAY_S = 3600.0  # younger files without a row may be another process's upload


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
        self.mirror: Any = None  # the exchange with the primary, at a mirror
        self.lease = Lease(settings.lease_s, self.clock) if settings.upstream else None
        self.worker = tables.new_id()
        self.shared = is_shared(settings.database or "sqlite")
        self.is_leader = True  # False while another process is the leader
        self.db = Database(settings.database or sqlite_url(settings.data), worker=self.worker)
        self.hub = EventHub()
        self.counts = ServedCounts()
        self.shared_counters: tuple[SharedCounters, int] | None = None  # with this process's place
        self.started_at = self.clock.now()
        self.listening_since = self.started_at  # without interruption, as the clock has it
        self.audit_note = AuditHeadNote(settings.data)
        self.restored = not settings.upstream and self.db.read_now(
            self.audit_note.is_database_older
        )
        registered = self.db.read_now(beacons.count)
        self._own_replays = replays is None  # otherwise shared with other processes
        self.replays = replays or ReplayGuard(
            settings.data / REPLAYS_FILE, self.started_at, fresh=not registered
        )
        self._own_stops = stops is None
        self.stops = stops or StopBoard(settings.data)
        self.fleet = FleetState(self.replays, zone=settings.zone, window=settings.window)
        self.fleet.put_stops(self.stops.current())  # before anything is read
        self.credentials = CredentialCache()
        self._remembering: asyncio.Future[None] | None = None
        self.attempts = Attempts(self.fleet, self.stops, self.db, self.hub, self.clock, self.lease)
        self.cut_off = False  # no database, hence no leader
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
        """Apply the stops of all workers to the view, stored or not."""
        stops = self.stops.current()
        if stops is not self.fleet.stops:
            self.fleet.put_stops(stops)

    async def catch_up(self) -> None:
        """Wait until the view holds what other processes have committed; here there are none."""

    async def _sweep(self) -> None:
        """Remove what a crash left over of uploads, and images that have long had no release.

        An image without a release usually means that the database is not the one to which the
        images belong, but a new one or an older copy. So the image stays for ``orphans.GRACE_S``
        after it was first found, and an empty database removes none.
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
        """Drop the keys older than the one the beacon used.

        If another process has recorded this key or a later one, or removed the beacon, that holds.
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

    # ---- the background ----

    async def flush_last_seen(self) -> None:
        """Write when beacons were last heard from, and what they run."""
        contacts = self.fleet.contacts
        rows, refused = contacts.take_seen_rows(), contacts.take_refused_rows()
        if rows or refused:
            try:
                await self.db.write(beacons.record_seen, rows, refused)
            except StorageError:
                contacts.restore_rows(rows, refused)
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
        """Note the newest audit entry; after a restore, only once the rollouts are paused."""
        if not self.restored:
            await self._guarded(self.db.read_for_beacon(self.audit_note.write))

    def refresh_credentials_soon(self) -> None:
        """Read the credentials again soon, as a request has used one that is not in the cache."""
        if self._remembering is None or self._remembering.done():
            self._remembering = asyncio.ensure_future(self._guarded(self._remember()))

    async def _remember(self) -> None:
        """Cache the credentials that may stop a rollout while the database does not answer."""
        self.credentials.replace(*await self.db.read(credential_cache.read_credentials))

    async def _reserve_replays(self) -> None:
        """Reserve replay time in advance, so that no beacon's request waits for the disk."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._synchronising, self.replays.reserve, self.clock.now())

    def share_counts(self) -> None:
        """Share this process's counts with the other processes of this machine."""
        if self.shared_counters is not None:
            tallies, place = self.shared_counters
            tallies.write(place, self.counts.dump())

    def total_counts(self) -> ServedCounts:
        """Return the counts of all processes of this machine; those of others are a moment old."""
        total = self.counts
        if self.shared_counters is not None:
            tallies, place = self.shared_counters
            for found in tallies.read_others(place):
                total = total.add(found)
        return total

    def resume_counts(self, tallies: SharedCounters, place: int) -> None:
        """Go on from the counts of the previous process in this place."""
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
        """Remove rows beyond the bounds, in pieces: a report or a halt waits for one at most."""
        while await self.db.write(beacons.prune_history, PRUNE_ROWS) == PRUNE_ROWS:
            pass

    async def _checking(self) -> None:
        """Read every image once, so that damage is found before a beacon asks for it.

        An image that was damaged or missing may have been put back after the database was restored.
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
        """Withdraw a release whose image is damaged."""
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
        """Restore a release whose image is intact again."""
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
        """Await background work; a failure is logged, and the work is tried again next time."""
        try:
            await work
        except asyncio.CancelledError:
            raise
        except (StorageError, OSError) as error:
            log.error("background work has to wait: %s", error)
        except Exception:
            log.exception("background work failed")


@contextlib.asynccontextmanager
async def run_service(service: Service):
    """Run a service for the duration of a block."""
    await service.start()
    try:
        yield service
    finally:
        await service.stop()
