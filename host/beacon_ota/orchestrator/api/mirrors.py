"""``/api/mirrors``: distribution points on sites; and what they call, ``/api/mirror``."""

import asyncio
import hashlib
import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection
from starlette.responses import Response

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator import store
from beacon_ota.orchestrator.api.access import Admin, On, Viewer, actor_of
from beacon_ota.orchestrator.api.answers import answer, page
from beacon_ota.orchestrator.api.firmwares import Image
from beacon_ota.orchestrator.api.rollouts import Moving
from beacon_ota.orchestrator.clock import iso
from beacon_ota.orchestrator.engine import Engine
from beacon_ota.orchestrator.problems import Problem, missing
from beacon_ota.orchestrator.rollout import advance as moves
from beacon_ota.orchestrator.serve import load
from beacon_ota.orchestrator.service import Service
from beacon_ota.orchestrator.store import Fields, mirrors, sites, tokens
from beacon_ota.orchestrator.view import attempt_of

router = APIRouter(tags=["mirrors"])

LOST_S = 60.0  # without a word: the uplink is down


class NewMirror(BaseModel):
    """A mirror to make, with its own token."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=50, pattern=r"^[A-Za-z0-9._-]+$")]
    site: Annotated[str, Field(max_length=200, description='a path; "" is everything')]


class Change(BaseModel):
    """Something that changed at a mirror; ``row`` as it is now, null when it is gone."""

    seq: Annotated[int, Field(ge=1, lt=1 << 62)]
    what: Annotated[str, Field(max_length=16)]
    row: dict[str, Any] | None


class Exchange(BaseModel):
    """What a mirror tells, and what it has."""

    epoch: Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")]
    have: Annotated[str, Field(max_length=64)] = ""
    status: Annotated[dict[str, Any], Field(max_length=16)] = {}
    changes: Annotated[list[Change], Field(max_length=1000)] = []


def shown(row: Fields, now: float) -> Fields:
    """Return a mirror as the API shows it."""
    said = row["status"]
    seen = row["seen_at"]
    return {
        "mirror_id": row["id"],
        "name": row["name"],
        "site": row["site"],
        "created_at": iso(row["created_at"]),
        "created_by": row["created_by"],
        "seen_at": iso(seen),
        "connected": seen is not None and now - seen < LOST_S,
        "silent_s": None if seen is None else round(max(now - seen, 0.0), 1),
        "taken": row["seq"],
        "backlog": said.get("backlog"),
        "lag_s": said.get("lag_s"),
        "releases": said.get("releases", []),
        "version": said.get("version"),
        "url": said.get("url"),
    }


@router.get("/api/mirrors")
async def listing(service: On, actor: Viewer) -> Response:
    """List mirrors: what each serves, when it was last heard from, how far it lags."""
    now = service.clock.now()
    rows = await service.db.read(mirrors.every)
    return page("mirrors", [shown(row, now) for row in rows])


@router.post("/api/mirrors", status_code=201)
async def create(new: NewMirror, service: On, actor: Admin) -> Response:
    """Make a mirror; its token is shown this once."""
    now = service.clock.now()

    def work(conn: Connection) -> tuple[Fields, str]:
        if new.site and sites.get(conn, new.site) is None:
            raise Problem(422, "site_unknown", "there is no such site", found=new.site)
        if any(one["name"] == new.name for one in mirrors.every(conn)):
            raise UsageError("mirror_taken", "there is a mirror of this name", found=new.name)
        made, token = tokens.create(conn, f"mirror {new.name}", tokens.MIRROR, now)
        row = {
            "id": store.new_id(),
            "name": new.name,
            "site": new.site,
            "token_id": made["id"],
            "created_at": now,
            "created_by": actor.name,
        }
        return mirrors.add(conn, row), token

    detail = {"site": new.site}
    row, token = await service.change(actor.name, "mirror.created", new.name, work, detail=detail)
    return answer({**shown(row, now), "token": token}, 201)


@router.delete("/api/mirrors/{mirror_id}", status_code=204)
async def remove(mirror_id: str, service: On, engine: Moving, actor: Admin) -> Response:
    """Give a mirror up: its token works no more, and what was under way there is ours to settle."""
    now = service.clock.now()

    def work(conn: Connection) -> list[Fields]:
        row = mirrors.get(conn, mirror_id)
        if row is None or row["removed_at"] is not None:
            raise missing("mirror", mirror_id)
        tokens.revoke(conn, row["token_id"], now)
        return mirrors.remove(conn, mirror_id, now)

    def after(rows: list[Fields]) -> None:
        for row in rows:
            service.view.put_attempt(attempt_of(row))

    await service.change(actor.name, "mirror.removed", mirror_id, work, then=after)
    engine.wake()
    return Response(status_code=204)


# ---- the mirror's side ----


async def mirror_of(request: Request, service: On) -> Fields:
    """Return the mirror that asks.

    Raises:
        Problem: those of a token; ``not_a_mirror``.
    """
    actor = await actor_of(request)
    row = None
    if actor.role == tokens.MIRROR:
        row = await service.db.read(mirrors.by_token, actor.id)
    if row is None:
        raise Problem(403, "not_a_mirror", "this is for mirrors alone", found=actor.role)
    return row


Mirror = Annotated[Fields, Depends(mirror_of)]


@router.post("/api/mirror/sync")
async def sync(told: Exchange, service: On, engine: Moving, mirror: Mirror) -> Response:
    """Take over what a mirror tells, in order and once; give it what it needs, if that is new."""
    now = service.clock.now()
    changes = [change.model_dump() for change in told.changes]
    known = mirror["seq"] if mirror["epoch"] == told.epoch else 0
    for change in changes:
        if change["what"] == "halts" and change["seq"] > known and change["row"]:
            await _halt(service, engine, mirror, change["row"])
    done = await asyncio.shield(
        service.db.write(
            mirrors.take,
            mirror["id"],
            told.epoch,
            changes,
            now,
            told.status,
            then=lambda found: _taken(service, found),
        )
    )
    fresh = mirror["epoch"] != told.epoch or not told.have
    state = await service.db.read(mirrors.state, mirror, fresh)
    text = json.dumps(state, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    same = digest == told.have
    return answer(
        {
            "seq": done.seq,
            "server_time": service.clock.now(),
            "etag": digest,
            "state": None if same else state,
        }
    )


@router.get("/api/mirror/images/{firmware_id}")
async def image(firmware_id: str, service: On, mirror: Mirror) -> Response:
    """Send a release's bytes, whole or from an offset."""
    row = await service.db.read(mirrors.serves, mirror, firmware_id)
    release = service.view.releases.get(firmware_id)
    if row is None or release is None:
        raise missing("firmware", firmware_id)
    return Image(service, release, await load(service, release))


def _taken(service: Service, done: mirrors.Told) -> None:
    for row in done.beacons:
        service.view.put_beacon(row)
    for row in done.attempts:
        service.view.put_attempt(attempt_of(row))
    for event in done.events:
        service.hub.publish(event)


async def _halt(service: Service, engine: Engine, mirror: Fields, row: Fields) -> None:
    """Halt everywhere what a mirror has halted for itself; again is nothing."""
    rollout_id = str(row.get("rollout_id"))
    entry = service.view.entries.get(rollout_id)
    if entry is None:
        return
    firmware_id = entry.rollout.plan.release.firmware_id
    if await service.db.read(mirrors.serves, mirror, firmware_id) is None:
        return  # none of its beacons could have told it
    by, why = f"mirror {mirror['name']}", str(row.get("reason", ""))[:200]
    try:
        await engine.move(
            rollout_id, lambda entry, now: moves.halt(entry.state, now, by, why), tries=3
        )
    except UsageError as error:  # it is halted, or over
        if error.code == "rollout_moved":
            raise
