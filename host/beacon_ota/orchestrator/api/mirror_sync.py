"""``/api/mirror``: the calls of a mirror at its primary: exchange of changes, images."""

import asyncio
import hashlib
import json
import logging
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from sqlalchemy import Connection
from starlette.responses import Response

from beacon_ota import __version__
from beacon_ota.errors import InputError, UsageError
from beacon_ota.orchestrator.api.access import authenticate_actor
from beacon_ota.orchestrator.api.answers import json_response
from beacon_ota.orchestrator.api.dependencies import EngineDep, ServiceDep
from beacon_ota.orchestrator.api.firmwares import image_response
from beacon_ota.orchestrator.beacon_api.device_types import publish_type_mismatch
from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.core.fleet_records import attempt_from_row
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.tables import (
    Fields,
    mirror_books,
    mirror_rows,
    mirror_watch,
    mirrors,
    tokens,
)
from beacon_ota.orchestrator.http.problems import Problem, not_found
from beacon_ota.orchestrator.mirror.state import PROTOCOL
from beacon_ota.orchestrator.rollout import advance

log = logging.getLogger("beacon_ota.orchestrator")
router = APIRouter(tags=["mirrors"])


class MirrorChange(BaseModel):
    """A change at a mirror; ``row`` is the present row, null if it was removed."""

    seq: Annotated[int, Field(ge=1, lt=1 << 62)]
    what: Annotated[str, Field(max_length=16)]
    row: dict[str, Any] | None


class Exchange(BaseModel):
    """The changes that a mirror sends, and the state that it has.

    Attributes:
        epoch: identifies the mirror's database.
        after: mark of the exchange before this one.
        mark: mark of this exchange.
        have: etag of the state that the mirror has.
        status: the mirror's own condition.
    """

    epoch: Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")]
    after: Annotated[str | None, Field(pattern=r"^([0-9a-f]{24})?$")] = None
    mark: Annotated[str, Field(pattern=r"^([0-9a-f]{24})?$")] = ""
    protocol: Annotated[int, Field(ge=0, lt=1 << 31)] = 1
    have: Annotated[str, Field(max_length=64)] = ""
    status: Annotated[dict[str, Any], Field(max_length=64)] = {}
    changes: Annotated[list[MirrorChange], Field(max_length=1000)] = []


async def authenticate_mirror(request: Request, service: ServiceDep) -> Fields:
    """Return the mirror whose token a request has.

    Raises:
        Problem: 403 ``not_a_mirror``; those of ``authenticate_actor``.
    """
    actor = await authenticate_actor(request)
    row = None
    if actor.role == tokens.MIRROR:
        row = await service.db.read(mirrors.get_by_token, actor.id)
    if row is None:
        raise Problem(403, "not_a_mirror", "this is for mirrors alone", found=actor.role)
    return row


Mirror = Annotated[Fields, Depends(authenticate_mirror)]


@router.post("/api/mirror/sync")
async def sync_mirror(
    exchange: Exchange, service: ServiceDep, engine: EngineDep, mirror: Mirror
) -> Response:
    """Apply a mirror's changes in order and once; return its new state if it has another."""
    now = service.clock.now()
    try:
        return await _exchange_state(exchange, service, engine, mirror, now)
    except (InputError, Incompatible) as error:
        await asyncio.shield(
            service.db.write(
                mirror_watch.record_refusal,
                mirror["id"],
                now,
                error.code,
                str(error),
                exchange.status,
            )
        )
        raise


class Incompatible(Problem):
    """The refusal of a mirror with another protocol (409 ``mirror_protocol``)."""

    def __init__(self, exchange: Exchange):
        reported = exchange.status.get("version")
        theirs = reported[:64] if isinstance(reported, str) else "unknown release"
        super().__init__(
            409,
            "mirror_protocol",
            f"the mirror ({theirs}) speaks another protocol than this primary ({__version__}):"
            " bring the older of the two up to the other",
            found=exchange.protocol,
            expected=PROTOCOL,
        )


async def _exchange_state(
    exchange: Exchange, service: Service, engine: Engine, mirror: Fields, now: float
) -> Response:
    if exchange.protocol != PROTOCOL:
        raise Incompatible(exchange)
    changes = [change.model_dump() for change in exchange.changes]
    page = mirror_books.BookPage(exchange.epoch, exchange.after, exchange.mark)
    position = await service.db.read(mirror_books.compare_page, mirror["id"], page)
    for change in changes:
        if change["what"] == "halts" and change["row"]:
            # Mirrors of the previous release do not name their halts.
            already_halted = exchange.after is None and change["seq"] <= position.seq
            if not already_halted:
                await _halt_everywhere(service, engine, mirror, change["row"])
    if any(change["what"] == "attempts" for change in changes):
        await service.flush_last_seen()  # last-seen times of this primary, which the merge compares
    applied = await asyncio.shield(
        service.db.write(
            mirrors.import_changes,
            mirror["id"],
            page,
            changes,
            now,
            exchange.status,
            then=lambda found: _apply_import(service, found),
        )
    )
    answer = {
        "protocol": PROTOCOL,
        "version": __version__,
        "seq": applied.seq,
        "again": applied.parted,
    }
    if applied.parted:
        log.warning("mirror %s tells what does not follow what it told before", mirror["name"])
        nothing = {"etag": "", "moves": "", "state": None}
        return json_response({**answer, "server_time": service.clock.now(), **nothing})
    fresh = position.new or not exchange.have
    moves, state = await service.db.read(_read_state, mirror, fresh)
    text = json.dumps(state, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    unchanged = digest == exchange.have
    # A mirror of the previous release sends no moves: it has applied the state that it has.
    if unchanged and "moves" not in exchange.status:
        await service.db.write(mirror_watch.record_confirmation, mirror["id"], moves)
    return json_response(
        {
            **answer,
            "server_time": service.clock.now(),
            "etag": digest,
            "moves": moves,
            "state": None if unchanged else state,
        }
    )


def _read_state(conn: Connection, mirror: Fields, fresh: bool) -> tuple[str, Fields]:
    """Return the newest entry of the audit log that the mirror's state includes, and that state."""
    return mirror_watch.newest_entry(conn), mirrors.export_state(conn, mirror, fresh)


@router.get("/api/mirror/images/{firmware_id}")
async def download_image(firmware_id: str, service: ServiceDep, mirror: Mirror) -> Response:
    """Send a release's image, whole or from an offset."""
    row = await service.db.read(mirrors.get_served_release, mirror, firmware_id)
    release = service.fleet.releases.get(firmware_id)
    if row is None or release is None:
        raise not_found("firmware", firmware_id)
    return await image_response(service, release)


def _apply_import(service: Service, done: mirrors.ImportResult) -> None:
    """Bring the fleet's state up to date with a mirror's changes, and publish their events."""
    for row in done.beacons:
        state = service.fleet.beacons.get(row["id"])
        former_type = "" if state is None else state.beacon.said_type
        node = service.fleet.put_beacon(row)
        if node.beacon.questioned and node.beacon.said_type != former_type:
            publish_type_mismatch(service, node, node.beacon.said_type)
    for row in done.attempts:
        service.fleet.put_attempt(attempt_from_row(row))
    for event in done.events:
        service.hub.publish(event)


async def _halt_everywhere(service: Service, engine: Engine, mirror: Fields, row: Fields) -> None:
    """Halt a rollout that a mirror has halted for itself; a halt that is known changes nothing."""
    row = mirror_rows.check_halt(row)
    if await service.db.read(mirror_books.knows_halt, row):
        return
    rollout_id = row["rollout_id"]
    entry = service.fleet.rollouts.get(rollout_id)
    if entry is None:
        return
    firmware_id = entry.rollout.plan.release.firmware_id
    if await service.db.read(mirrors.get_served_release, mirror, firmware_id) is None:
        return  # the mirror does not serve this release
    by, why = f"mirror {mirror['name']}", (row["reason"] or "")[:200]
    try:
        stored = await engine.stop_manager.stop_by_hand(
            rollout_id, lambda entry, now: advance.halt_rollout(entry.state, now, by, why)
        )
    except UsageError:
        stored = True  # halted already, or over
    # Recorded even if the rest of the exchange fails: an operator who resumes has seen this halt.
    if stored and (name := mirror_books.halt_name(row)) is not None:
        now = service.clock.now()
        await service.db.write(mirror_books.record_halt, mirror["id"], name, now)
