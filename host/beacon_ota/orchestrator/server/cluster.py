"""Keeps several processes on one PostgreSQL in step, and elects the leader.

Triggers write every change into the table ``changes`` and notify the listeners. A notice is only a
hint: each process reads the changes by number, in the order of the commits, also after a lost
connection. The leader holds an advisory lock for as long as its connection lives; it moves the
rollouts, delivers webhooks and cleans up. Two leaders for a moment do no harm: a move is made from
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

from beacon_ota.orchestrator.core.fleet_records import attempt_from_row
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.connection import WRITE_LOCK_ID, connect, describe_error
from beacon_ota.orchestrator.db.database import Database
from beacon_ota.orchestrator.db.tables import Fields, changes
from beacon_ota.orchestrator.db.tables.changes import ChangeBatch

log = logging.getLogger("beacon_ota.orchestrator")

LEADER_LOCK_ID = 0x6C656164  # number of the advisory lock that the leader holds
CHANNEL = "beacon_ota"
# Real seconds between two readings of changes without a notice, and two tries to lead.
POLL_INTERVAL_S = 1.0
RECONNECT_DELAY_S = 0.5  # between two tries to connect the listener
_NOTIFY_INTERVAL_S = 0.25
_NOTIFY_BACKLOG = 200  # transient events that wait for the next notice; more are dropped
_NOTICE_BYTES = 7000  # of a payload; PostgreSQL takes 8000


class Cluster:
    """The part of one process: follows the changes of the others, and forwards transient events.

    Args:
        dispatcher: the webhook dispatcher.
    """

    def __init__(self, service: Service, engine: Any, dispatcher: Any):
        self.service, self.engine, self.dispatcher = service, engine, dispatcher
        self.seq = 0
        self._read_lock = asyncio.Lock()
        self._next_read: asyncio.Task[None] | None = None
        self._stopping = threading.Event()
        self._outgoing: list[Fields] = []
        self._loop: asyncio.AbstractEventLoop

    # ---- life ----

    def note_position(self) -> None:
        """Remember the number of the last change, before any table is read."""
        self.seq = self.service.db.read_now(changes.newest_seq)

    def start(self) -> None:
        """Follow the changes after that number, in a thread and two tasks."""
        service = self.service
        self._loop = asyncio.get_running_loop()
        service.is_leader = False
        service.catch_up = self.catch_up
        service.hub.forward_to(self._queue_notice)
        self._thread = threading.Thread(target=self._run_listener, name="db-listener", daemon=True)
        self._thread.start()
        service.run_in_background(self._send_notices())
        service.run_in_background(self._stop_with_service())

    async def _stop_with_service(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self._stopping.set()

    # ---- following ----

    async def catch_up(self) -> None:
        """Return when the fleet state has every change committed before the call."""
        if self._next_read is None:
            self._next_read = asyncio.create_task(self._read_new_changes())
        await asyncio.shield(self._next_read)

    async def _read_new_changes(self) -> None:
        async with self._read_lock:
            self._next_read = None  # later callers wait for the next round
            more = True
            while more:
                db, hub = self.service.db, self.service.hub
                news = await db.read_in_order(
                    _read_changes,
                    db,
                    self.seq,
                    self.service.worker,
                    hub.has_subscribers,
                    then=self._apply_changes,
                )
                more = news.more

    def _apply_changes(self, news: ChangeBatch) -> None:
        """Bring fleet state, engine and dispatcher up to date with a batch of changes."""
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
            self.dispatcher.refresh()
        if news.kinds & {"events", "deliveries"}:
            self.dispatcher.wake()
        if news.kinds & {"rollouts", "firmwares", "beacons"}:
            self.engine.wake()

    # ---- things of the moment ----

    def _queue_notice(self, event: Fields) -> None:
        if len(self._outgoing) < _NOTIFY_BACKLOG:
            self._outgoing.append(event)

    async def _send_notices(self) -> None:
        while True:
            await asyncio.sleep(_NOTIFY_INTERVAL_S)
            transient, self._outgoing = self._outgoing, []
            if transient:
                try:
                    await self.service.db.write(_notify_workers, self.service.worker, transient)
                except Exception as error:
                    log.warning("progress is not told to the other workers: %s", error)

    def _on_notice(self, payload: str) -> None:
        """Handle a notice: "" for a commit, or the transient events of another process."""
        if not payload:
            asyncio.ensure_future(self._catch_up_logged())
            return
        transient = json.loads(payload)
        if transient["worker"] == self.service.worker:
            return
        for event in transient["events"]:
            node = self.service.fleet.beacons.get(event["data"].get("beacon", ""))
            if node is not None and "progress" in event["data"]:
                node.progress = event["data"]["progress"]
            if event["kind"] == "auth.refused":
                data = event["data"]
                self.service.fleet.contacts.mark_claimed(
                    event["subject"], event["at"], data["code"], data["address"]
                )
            self.service.hub.dispatch(event)

    async def _catch_up_logged(self) -> None:
        try:
            await self.catch_up()
        except Exception as error:
            log.warning("what the other workers did cannot be read: %s", error)

    # ---- the connection that listens and leads; a thread ----

    def _run_listener(self) -> None:
        """Hold the connection that listens and leads, and replace it when it is lost. A thread."""
        engine = connect(self.service.db.url, readonly=True, worker=self.service.worker)
        while not self._stopping.is_set():
            try:
                raw = engine.raw_connection()
                try:
                    self._follow_notices(raw.driver_connection)
                finally:
                    raw.invalidate()  # never back into the pool
            except Exception as error:
                log.warning("the database does not answer: %s", describe_error(error))
                self._call_in_loop(self._set_cut_off, True)
                self._stopping.wait(RECONNECT_DELAY_S)
            finally:
                self._call_in_loop(self._set_leading, False)
        engine.dispose()

    def _follow_notices(self, conn: Any) -> None:
        conn.autocommit = True
        conn.execute(f"LISTEN {CHANNEL}")
        self._call_in_loop(self._set_cut_off, False)
        leads = False
        while not self._stopping.is_set():
            if not leads:
                row = conn.execute("SELECT pg_try_advisory_lock(%s)", (LEADER_LOCK_ID,)).fetchone()
                leads = row[0]
                if leads:
                    self._call_in_loop(self._set_leading, True)
            else:
                conn.execute("SELECT 1")  # raises if the connection, and with it the lock, is lost
            self._call_in_loop(self._on_notice, "")
            end = time.monotonic() + POLL_INTERVAL_S
            while not self._stopping.is_set() and (left := end - time.monotonic()) > 0:
                seen: set[str] = set()
                for notice in conn.notifies(timeout=min(left, 0.25), stop_after=1):
                    seen.add(notice.payload)
                for payload in seen:
                    self._call_in_loop(self._on_notice, payload)

    def _call_in_loop(self, work: Any, *args: Any) -> None:
        if not self._stopping.is_set():
            try:
                self._loop.call_soon_threadsafe(work, *args)
            except RuntimeError:
                self._stopping.set()  # the loop is closed

    def _set_cut_off(self, off: bool) -> None:
        self.service.cut_off = off
        if off:
            self.engine.wake()

    def _set_leading(self, leads: bool) -> None:
        if leads != self.service.is_leader:
            log.info("worker %d %s", os.getpid(), "leads" if leads else "leads no more")
        self.service.is_leader = leads
        if leads:
            self.engine.wake()
            self.dispatcher.refresh()


def _read_changes(
    conn: Connection, db: Database, seq: int, worker: str, followed: bool
) -> ChangeBatch:
    """Read the new changes, between two commits of this process.

    When the answer to a commit of this process was lost, its changes are unknown here, too. Those
    are read like the changes of other processes, once the database has finished that transaction.
    """
    if not db.commit_in_doubt:
        return changes.read_batch(conn, seq, worker, followed)
    conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK_ID})")
    news = changes.read_batch(conn, seq, "", followed)
    db.commit_in_doubt = news.more
    return news


def _notify_workers(conn: Connection, worker: str, transient: list[Fields]) -> None:
    """Send transient events to the other processes, in notices of ``_NOTICE_BYTES`` at most."""
    pieces: list[list[str]] = [[]]
    size = 0
    for event in transient:
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
