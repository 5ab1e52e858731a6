"""Several processes on one PostgreSQL: each follows what the others commit; one of them leads.

The database writes down what changed (triggers, ``changes``) and wakes who listens. A notice is a
hint, no more: what is missing is read by its number, in the order of the commits, also after the
connection was lost. The leader holds a lock for as long as its connection lives; it moves the
rollouts, delivers webhooks and sweeps. Two that lead for a moment do no harm: a move is made from
a revision, an attempt has one result.
"""

import asyncio
import json
import logging
import os
import threading
import time
from typing import Any

from sqlalchemy import Connection, text

from beacon_ota.orchestrator.core.fleet_state import attempt_from_row
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.database import WRITE_LOCK_ID, Database, connect, describe_error
from beacon_ota.orchestrator.db.tables import Fields, changes
from beacon_ota.orchestrator.db.tables.changes import ChangeBatch

log = logging.getLogger("beacon_ota.orchestrator")

LEADING = 0x6C656164  # the advisory lock of the one that leads
CHANNEL = "beacon_ota"
LOOK_S = 1.0  # of the wall clock, between two looks at what no notice told of, and at the lead
_AGAIN_S = 0.5  # between two tries at a connection
_TELL_S = 0.25
_TELL_ROOM = 200  # things of the moment that wait to be told; what is beyond was not that urgent
_NOTICE_BYTES = 7000  # PostgreSQL takes 8000


class Cluster:
    """One process's part: its copy follows, and its followers hear of everybody's events."""

    def __init__(self, service: Service, engine: Any, telling: Any):
        self.service, self.engine, self.telling = service, engine, telling
        self.seq = 0
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        self._stopping = threading.Event()
        self._told: list[Fields] = []
        self._loop: asyncio.AbstractEventLoop

    # ---- life ----

    def begin(self) -> None:
        """Note where the changes are, before anything is read that they would change."""
        self.seq = self.service.db.read_now(changes.newest_seq)

    def start(self) -> None:
        """Follow from there."""
        service = self.service
        self._loop = asyncio.get_running_loop()
        service.is_leader = False
        service.catch_up = self.catch_up
        service.hub.forward_to(self._tell)
        self._thread = threading.Thread(target=self._listen, name="db-listener", daemon=True)
        self._thread.start()
        service.run_in_background(self._telling())
        service.run_in_background(self._closing())

    async def _closing(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self._stopping.set()

    # ---- following ----

    async def catch_up(self) -> None:
        """Return when everything committed before the call is in the view."""
        if self._next is None:
            self._next = asyncio.create_task(self._round())
        await asyncio.shield(self._next)

    async def _round(self) -> None:
        async with self._turn:
            self._next = None  # who asks from now on is served by the next one
            more = True
            while more:
                db, hub = self.service.db, self.service.hub
                news = await db.read_in_order(
                    _read, db, self.seq, self.service.worker, hub.has_subscribers, then=self._take
                )
                more = news.more

    def _take(self, news: ChangeBatch) -> None:
        if news.lost:
            log.warning("too far behind the others; everything is read again")
            self.service.reload_fleet()
            self.engine.reload_rollouts()
        self.seq = news.seq
        view = self.service.fleet
        rows = news.rows
        if news.sites is not None:
            view.put_sites(news.sites)
        for row in rows.get("firmwares", {}).values():
            if row is not None:
                view.put_release(row)
        for beacon_id, row in rows.get("beacons", {}).items():
            if row is None:
                view.drop_beacon(beacon_id)
            else:
                view.put_beacon(row)
        for row in rows.get("rollouts", {}).values():
            if row is not None:
                self.engine.apply_row(row)
        for row in rows.get("attempts", {}).values():
            if row is not None:
                view.put_attempt(attempt_from_row(row))
        for row in rows.get("events", {}).values():
            if row is not None:
                self.service.hub.dispatch({**row, "data": json.loads(row["data"])})
        if "webhooks" in news.kinds:
            self.telling.refresh()
        if news.kinds & {"events", "deliveries"}:
            self.telling.wake()
        if news.kinds & {"rollouts", "firmwares", "beacons"}:
            self.engine.wake()

    # ---- things of the moment ----

    def _tell(self, event: Fields) -> None:
        if len(self._told) < _TELL_ROOM:
            self._told.append(event)

    async def _telling(self) -> None:
        while True:
            await asyncio.sleep(_TELL_S)
            told, self._told = self._told, []
            if told:
                try:
                    await self.service.db.write(_notify, self.service.worker, told)
                except Exception as error:
                    log.warning("progress is not told to the other workers: %s", error)

    def _hear(self, payload: str) -> None:
        """A notice: something was committed, or others tell of the moment."""
        if not payload:
            asyncio.ensure_future(self._guarded())
            return
        told = json.loads(payload)
        if told["worker"] == self.service.worker:
            return
        for event in told["events"]:
            node = self.service.fleet.beacons.get(event["data"].get("beacon", ""))
            if node is not None and "progress" in event["data"]:
                node.progress = event["data"]["progress"]
            if event["kind"] == "auth.refused":
                data = event["data"]
                self.service.fleet.mark_claimed(
                    event["subject"], event["at"], data["code"], data["address"]
                )
            self.service.hub.dispatch(event)

    async def _guarded(self) -> None:
        try:
            await self.catch_up()
        except Exception as error:
            log.warning("what the other workers did cannot be read: %s", error)

    # ---- the connection that listens and leads; a thread ----

    def _listen(self) -> None:
        engine = connect(self.service.db.url, readonly=True, worker=self.service.worker)
        while not self._stopping.is_set():
            try:
                raw = engine.raw_connection()
                try:
                    self._follow(raw.driver_connection)
                finally:
                    raw.invalidate()  # what listens and leads is nobody else's
            except Exception as error:
                log.warning("the database does not answer: %s", describe_error(error))
                self._call(self._cut, True)
                self._stopping.wait(_AGAIN_S)
            finally:
                self._call(self._lead, False)
        engine.dispose()

    def _follow(self, conn: Any) -> None:
        conn.autocommit = True
        conn.execute(f"LISTEN {CHANNEL}")
        self._call(self._cut, False)
        leads = False
        while not self._stopping.is_set():
            if not leads:
                row = conn.execute("SELECT pg_try_advisory_lock(%s)", (LEADING,)).fetchone()
                leads = row[0]
                if leads:
                    self._call(self._lead, True)
            else:
                conn.execute("SELECT 1")  # nobody leads over a connection that is gone
            self._call(self._hear, "")
            end = time.monotonic() + LOOK_S
            while not self._stopping.is_set() and (left := end - time.monotonic()) > 0:
                seen: set[str] = set()
                for notice in conn.notifies(timeout=min(left, 0.25), stop_after=1):
                    seen.add(notice.payload)
                for payload in seen:
                    self._call(self._hear, payload)

    def _call(self, work: Any, *args: Any) -> None:
        if not self._stopping.is_set():
            try:
                self._loop.call_soon_threadsafe(work, *args)
            except RuntimeError:
                self._stopping.set()  # the loop is gone

    def _cut(self, off: bool) -> None:
        self.service.cut_off = off
        if off:
            self.engine.wake()

    def _lead(self, leads: bool) -> None:
        if leads != self.service.is_leader:
            log.info("worker %d %s", os.getpid(), "leads" if leads else "leads no more")
        self.service.is_leader = leads
        if leads:
            self.engine.wake()
            self.telling.refresh()


def _read(conn: Connection, db: Database, seq: int, worker: str, followed: bool) -> ChangeBatch:
    """Read what is new, between two commits of ours.

    When the answer to one of those was lost, its changes are as unknown here as another process's:
    they are read like those, once the database has come to its end with it.
    """
    if not db.commit_in_doubt:
        return changes.read_batch(conn, seq, worker, followed)
    conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK_ID})")
    news = changes.read_batch(conn, seq, "", followed)
    db.commit_in_doubt = news.more
    return news


def _notify(conn: Connection, worker: str, told: list[Fields]) -> None:
    """Tell the other processes, as much at a time as a notice holds."""
    pieces: list[list[str]] = [[]]
    size = 0
    for event in told:
        line = json.dumps(event, separators=(",", ":"))
        if size + len(line) > _NOTICE_BYTES:
            pieces.append([])
            size = 0
        if len(line) < _NOTICE_BYTES:
            pieces[-1].append(line)
            size += len(line) + 1
    for lines in pieces:
        if lines:
            payload = f'{{"worker":"{worker}","events":[{",".join(lines)}]}}'
            conn.execute(
                text("SELECT pg_notify(:channel, :payload)"),
                {"channel": CHANNEL, "payload": payload},
            )
