"""Runs the real orchestrator inside this process: decisions, database, beacon API.

The orchestrator runs in the event loop of the virtual beacons, so that a flash operation and a
request never overlap: its state at the start of an operation is well defined. A copy of its
database can be given to another orchestrator, which goes on as after a kill.
"""

import hashlib
import hmac
import json
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, select

from beacon_ota.campaign.rig.http_server import FaultyHttpServer, HttpRequest
from beacon_ota.orchestrator.beacon_api.app import BeaconApp
from beacon_ota.orchestrator.clock import Clock
from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.core.rollout_records import dump_state
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db import schema
from beacon_ota.orchestrator.db.tables import Fields, beacons, new_id
from beacon_ota.orchestrator.db.tables.tokens import Actor
from beacon_ota.orchestrator.releases.upload import accept_upload
from beacon_ota.orchestrator.rollout.advance import initial_state
from beacon_ota.orchestrator.rollout.plan_types import Release
from beacon_ota.orchestrator.rollout.plans import dump_plan, parse_plan
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.settings import Settings
from beacon_ota.virtual.reactor import Reactor
from beacon_ota.wire import auth, auth_header

T = TypeVar("T")

POLL_S = 5.0
ACTOR = Actor("campaign", "campaign", "admin")
# One attempt per beacon, at any hour, without gates.
ONE_ATTEMPT_PLAN: dict[str, Any] = {
    "preset": "all-at-once",
    "window": "00:00-24:00",
    "retry": {"limit": 1, "pauses": ["1s"]},
    "gate": {"healthy_share": 0, "failure_share": 1, "in_a_row": 1000},
}


class InProcessOrchestrator:
    """An orchestrator over a folder; made and used from outside the event loop.

    Args:
        folder: for its data, on a fast disk.
        scale: speed of its clock relative to real time.
    """

    def __init__(self, folder: Path, scale: float):
        self.folder, self.scale = folder, scale
        self.http_server = FaultyHttpServer()
        self._reactor = Reactor.shared()
        self._service: Service | None = None
        self._engine: Engine | None = None
        self.now: float | None = None  # where its clock goes on

    # Life

    def open(self, database: bytes | None = None, now: float | None = None) -> None:
        """Start; with ``database``, with what a :meth:`copy_database` kept and at that time."""
        self._reactor.run(self.start(database, now))

    def close(self) -> None:
        """Stop. Its clock goes on from here when it is opened again."""
        self._reactor.run(self.stop())

    async def start(self, database: bytes | None = None, now: float | None = None) -> None:
        """Like :meth:`open`, in the loop."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if database is not None:
            for name in ("beacon-ota.db-wal", "beacon-ota.db-shm"):
                (self.folder / name).unlink(missing_ok=True)
            (self.folder / "beacon-ota.db").write_bytes(database)
        settings = Settings(self.folder, POLL_S, insecure=True)
        service = Service(settings, Clock(self.scale, now or self.now))
        await service.start()
        self._service, self._engine = service, Engine(service)
        self._engine.start()
        self.http_server.app = BeaconApp(service, _answer_not_found)
        self.http_server.sign_answer = self._sign_answer
        await self.http_server.listen()

    async def stop(self) -> None:
        """Like :meth:`close`, in the loop."""
        await self.http_server.close()
        self.http_server.app = None
        if self._service is not None:
            self.now = self._service.clock.now()
            await self._service.stop()
            self._service = self._engine = None

    def __enter__(self) -> "InProcessOrchestrator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def service(self) -> Service:
        """The running service (RuntimeError while it is closed)."""
        if self._service is None:
            raise RuntimeError("the orchestrator is not running")
        return self._service

    def run_in_loop(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run a coroutine in the event loop and return its result."""

        async def run() -> T:
            return await work()

        return self._reactor.run(run())

    async def copy_database(self) -> bytes:
        """Return the database as a kill would leave it now; call it in the loop."""
        await self.service.flush_last_seen()
        with sqlite3.connect(self.folder / "beacon-ota.db") as source:
            copy = sqlite3.connect(":memory:")
            source.backup(copy)
        source.close()
        try:
            return copy.serialize()
        finally:
            copy.close()

    # The administrator's side

    def register_beacon(self, beacon_id: str, key: bytes, device_type: str) -> None:
        """Register a beacon."""
        row = {
            "id": beacon_id,
            "key": key,
            "device_type": device_type,
            "tags": "[]",
            "channel": "stable",
            "created_at": self.service.clock.now(),
        }

        def work(conn: Connection) -> Fields:
            beacons.add(conn, row)
            found = beacons.get(conn, beacon_id)
            assert found is not None
            return found

        async def change() -> None:
            view = self.service.fleet
            await self.service.change_audited(
                ACTOR.name, "beacon.created", beacon_id, work, then=view.put_beacon
            )

        self._reactor.run(change())

    def upload_release(
        self, image: bytes, version: str, device_type: str, manifest: str | None = None
    ) -> str:
        """Upload a release; return its id."""
        fields = {"device_type": device_type, "version": version, "channel": "stable"}
        if manifest is not None:
            fields["manifest"] = manifest
        kind, body = _encode_form(fields, image)

        async def take() -> str:
            return (await accept_upload(self.service, ACTOR, kind, _iter_pieces(body))).row["id"]

        return self._reactor.run(take())

    def roll_out(self, firmware_id: str, plan: Mapping[str, Any] = ONE_ATTEMPT_PLAN) -> str:
        """Start a rollout to all beacons; return its id."""
        return self._reactor.run(self._roll_out(firmware_id, plan))

    async def _roll_out(self, firmware_id: str, plan: Mapping[str, Any]) -> str:
        service, engine = self.service, self._engine
        assert engine is not None
        row = service.fleet.releases[firmware_id].row
        rollout_id = new_id()
        release = Release(firmware_id, row["version"], row["device_type"], row["checksum"])
        rollout = Rollout(parse_plan(dict(plan), rollout_id=rollout_id, release=release))
        now = service.clock.now()
        state = initial_state(rollout, now)
        made: Fields = {
            "id": rollout_id,
            "firmware_id": firmware_id,
            "name": row["version"],
            "status": state.status.value,
            "plan": json.dumps(dump_plan(rollout.plan)),
            "state": dump_state(state),
            "revision": 0,
            "created_at": now,
            "created_by": ACTOR.name,
        }
        entry = await engine.create_rollout(made, rollout, state, ACTOR.name)
        async with engine.rollout_lock:
            await engine.evaluate_rollout(entry)
        return rollout_id

    # Looking

    def firmware_row(self, version: str) -> Fields:
        """Return a release's row (KeyError when there is none)."""
        for row in self.table_rows(schema.firmwares):
            if row["version"] == version:
                return row
        raise KeyError(version)

    def attempt_rows(self, firmware_id: str | None = None) -> list[Fields]:
        """Return attempts, oldest first: of one release, or all."""
        rows = self.table_rows(schema.attempts)
        rows.sort(key=lambda row: row["offered_at"])
        return [row for row in rows if firmware_id in (None, row["firmware_id"])]

    def journal_entries(self, beacon_id: str) -> list[list[Any]]:
        """Return the journal entries it has of a beacon: seq, at, stage, code, detail."""
        rows = [r for r in self.table_rows(schema.journal) if r["beacon_id"] == beacon_id]
        rows.sort(key=lambda row: row["seq"])
        return [[r["seq"], r["utc"], r["stage"], r["code"], r["detail"]] for r in rows]

    def table_rows(self, table: Any) -> list[Fields]:
        """Return all rows of a table."""

        def read(conn: Connection) -> list[Fields]:
            return [dict(row._mapping) for row in conn.execute(select(table))]

        async def look() -> list[Fields]:
            return await self.service.db.read(read)

        return self._reactor.run(look())

    def _sign_answer(self, request: HttpRequest, status: int, body: bytes) -> tuple[str, str]:
        """Sign an answer that the HTTP server makes up, as the orchestrator does."""
        found = auth_header.parse_header(request.headers.get("authorization", ""))
        mac = ""
        node = None if found is None else self.service.fleet.beacons.get(found[0])
        if found is not None and node is not None:
            text = auth.answer_text(found[2], status, hashlib.sha256(body).hexdigest())
            mac = hmac.digest(node.key, text, "sha256").hex()
        return "X-Beacon-Mac", mac


async def _answer_not_found(scope, receive, send) -> None:
    """Answer 404 to requests outside of the beacon API."""
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def _encode_form(fields: Mapping[str, str], image: bytes) -> tuple[str, bytes]:
    edge = "campaign-form-edge"
    parts = []
    for name, value in fields.items():
        head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        parts.append(head.encode() + value.encode() + b"\r\n")
    head = (
        f'--{edge}\r\nContent-Disposition: form-data; name="binary"; filename="release.bin"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    parts.append(head.encode() + image + f"\r\n--{edge}--\r\n".encode())
    return f"multipart/form-data; boundary={edge}", b"".join(parts)


async def _iter_pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 1 << 16):
        yield body[at : at + (1 << 16)]


@cache
def empty_database() -> bytes:
    """Return an empty database of the newest schema, cached, because a migration takes a second."""
    from beacon_ota.orchestrator.db.connection import connect
    from beacon_ota.orchestrator.db.schema_version import migrate_if_due

    with tempfile.TemporaryDirectory() as folder:
        engine = connect(f"sqlite:///{folder}/beacon-ota.db")
        migrate_if_due(engine)
        engine.dispose()
        return (Path(folder) / "beacon-ota.db").read_bytes()
