"""``/api/mirrors``: distribution points on sites; and what they call, ``/api/mirror``."""

import asyncio
import hashlib
import json
import logging
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection
from starlette.responses import Response

from beacon_ota import __version__
from beacon_ota.errors import InputError, UsageError
from beacon_ota.orchestrator.api.access import Admin, On, Viewer, actor_of
from beacon_ota.orchestrator.api.answers import answer, page
from beacon_ota.orchestrator.api.firmwares import Image
from beacon_ota.orchestrator.api.rollouts import Moving
from beacon_ota.orchestrator.beacon_api.device_types import tell_of_question
from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.core.fleet_state import attempt_from_row
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db import tables
from beacon_ota.orchestrator.db.tables import (
    Fields,
    mirror_books,
    mirror_rows,
    mirror_watch,
    mirrors,
    sites,
    tokens,
)
from beacon_ota.orchestrator.http.problems import Problem, missing
from beacon_ota.orchestrator.mirror.state import PROTOCOL
from beacon_ota.orchestrator.releases.serve import load
from beacon_ota.orchestrator.rollout import advance as moves

log = logging.getLogger("beacon_ota.orchestrator")
router = APIRouter(tags=["mirrors"])

LOST_S = mirror_watch.LOST_S


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
    after: Annotated[str | None, Field(pattern=r"^([0-9a-f]{24})?$")] = None
    mark: Annotated[str, Field(pattern=r"^([0-9a-f]{24})?$")] = ""
    protocol: Annotated[int, Field(ge=0, lt=1 << 31)] = 1
    have: Annotated[str, Field(max_length=64)] = ""
    status: Annotated[dict[str, Any], Field(max_length=64)] = {}
    changes: Annotated[list[Change], Field(max_length=1000)] = []


def shown(row: Fields, now: float, needed: int = 0) -> Fields:
    """Return a mirror as the API shows it.

    Args:
        needed: the number of the entry that it must have come to (``mirror_watch.settled``).
    """
    said, watch = row["status"], row["watch"]
    seen = row["seen_at"]
    verdict = mirror_watch.judge_mirror(row, now, needed)
    since = watch.get("since") if watch.get("health") == verdict.word else None
    if verdict.word == "silent":
        since = seen
    return {
        "mirror_id": row["id"],
        "name": row["name"],
        "site": row["site"],
        "created_at": format_iso(row["created_at"]),
        "created_by": row["created_by"],
        "seen_at": format_iso(seen),
        "connected": seen is not None and now - seen < LOST_S,
        "silent_s": None if seen is None else round(max(now - seen, 0.0), 1),
        "health": verdict.word,
        "problem": verdict.why or None,
        "unhealthy_since": None
        if verdict.well
        else format_iso(since if since is not None else now),
        "taken": row["seq"],
        "backlog": said.get("backlog"),
        "lag_s": said.get("lag_s"),
        "releases": said.get("releases", []),
        "version": said.get("version"),
        "url": said.get("url"),
        "applied": watch.get("moves"),
        "error": said.get("error"),
        "refused": watch.get("refused"),
        "skew_s": said.get("skew_s"),
        "lease_s": said.get("lease_s"),
        "hands_out_until": format_iso(mirror_watch.lease_ends_at(row)),
    }


def every_shown(conn: Connection, now: float) -> list[Fields]:
    """Return the mirrors in use as the API shows them, by name."""
    rows = mirrors.list_all(conn)
    needed = mirror_watch.settled(conn, now) if rows else 0
    return [shown(row, now, needed) | {"seen": row["seen_at"]} for row in rows]


@router.get("/api/mirrors")
async def listing(service: On, actor: Viewer) -> Response:
    """List mirrors: what each serves, when it was last heard from, how far it lags."""
    now = service.clock.now()
    rows = await service.db.read(every_shown, now)
    for row in rows:
        del row["seen"]
    return page("mirrors", rows)


@router.post("/api/mirrors", status_code=201)
async def create(new: NewMirror, service: On, actor: Admin) -> Response:
    """Make a mirror; its token is shown this once."""
    now = service.clock.now()

    def work(conn: Connection) -> tuple[Fields, str]:
        if new.site and sites.get(conn, new.site) is None:
            raise Problem(
                422,
                "site_unknown",
                "there is no such site",
                found=new.site,
                expected=f"beacon-ota site add {new.site}",
            )
        if any(one["name"] == new.name for one in mirrors.list_all(conn)):
            raise UsageError("mirror_taken", "there is a mirror of this name", found=new.name)
        made, token = tokens.create(conn, f"mirror {new.name}", tokens.MIRROR, now)
        row = {
            "id": tables.new_id(),
            "name": new.name,
            "site": new.site,
            "token_id": made["id"],
            "created_at": now,
            "created_by": actor.name,
        }
        return mirrors.add(conn, row), token

    detail = {"site": new.site}
    row, token = await service.change_audited(
        actor.name, "mirror.created", new.name, work, detail=detail
    )
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
        return mirrors.remove_mirror(conn, mirror_id, now)

    def after(rows: list[Fields]) -> None:
        for row in rows:
            service.fleet.put_attempt(attempt_from_row(row))

    await service.change_audited(actor.name, "mirror.removed", mirror_id, work, then=after)
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
        row = await service.db.read(mirrors.get_by_token, actor.id)
    if row is None:
        raise Problem(403, "not_a_mirror", "this is for mirrors alone", found=actor.role)
    return row


Mirror = Annotated[Fields, Depends(mirror_of)]


@router.post("/api/mirror/sync")
async def sync(told: Exchange, service: On, engine: Moving, mirror: Mirror) -> Response:
    """Take over what a mirror tells, in order and once; give it what it needs, if that is new."""
    now = service.clock.now()
    try:
        return await _exchange(told, service, engine, mirror, now)
    except (InputError, Incompatible) as error:
        await asyncio.shield(
            service.db.write(
                mirror_watch.record_refusal, mirror["id"], now, error.code, str(error), told.status
            )
        )
        raise


class Incompatible(Problem):
    """A mirror of another release, which would misunderstand."""

    def __init__(self, told: Exchange):
        said = told.status.get("version")
        theirs = said[:64] if isinstance(said, str) else "unknown release"
        super().__init__(
            409,
            "mirror_protocol",
            f"the mirror ({theirs}) speaks another protocol than this primary ({__version__}):"
            " bring the older of the two up to the other",
            found=told.protocol,
            expected=PROTOCOL,
        )


async def _exchange(
    told: Exchange, service: Service, engine: Engine, mirror: Fields, now: float
) -> Response:
    if told.protocol != PROTOCOL:
        raise Incompatible(told)
    changes = [change.model_dump() for change in told.changes]
    page = mirror_books.BookPage(told.epoch, told.after, told.mark)
    stand = await service.db.read(mirror_books.compare_page, mirror["id"], page)
    for change in changes:
        if change["what"] == "halts" and change["row"]:
            # Mirrors of the release before give their halts no names.
            told_before = told.after is None and change["seq"] <= stand.seq
            if not told_before:
                await _halt(service, engine, mirror, change["row"])
    if any(change["what"] == "attempts" for change in changes):
        await service.flush_last_seen()  # what beacons said to us, too
    done = await asyncio.shield(
        service.db.write(
            mirrors.import_changes,
            mirror["id"],
            page,
            changes,
            now,
            told.status,
            then=lambda found: _taken(service, found),
        )
    )
    said = {"protocol": PROTOCOL, "version": __version__, "seq": done.seq, "again": done.parted}
    if done.parted:
        log.warning("mirror %s tells what does not follow what it told before", mirror["name"])
        nothing = {"etag": "", "moves": "", "state": None}
        return answer({**said, "server_time": service.clock.now(), **nothing})
    fresh = stand.new or not told.have
    moves, state = await service.db.read(_given, mirror, fresh)
    text = json.dumps(state, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    same = digest == told.have
    if same and "moves" not in told.status:  # an older mirror; it has taken all of this
        await service.db.write(mirror_watch.record_confirmation, mirror["id"], moves)
    return answer(
        {
            **said,
            "server_time": service.clock.now(),
            "etag": digest,
            "moves": moves,
            "state": None if same else state,
        }
    )


def _given(conn: Connection, mirror: Fields, fresh: bool) -> tuple[str, Fields]:
    """Return what a mirror is given, and up to which entry of the audit log that is at least."""
    return mirror_watch.newest_entry(conn), mirrors.export_state(conn, mirror, fresh)


@router.get("/api/mirror/images/{firmware_id}")
async def image(firmware_id: str, service: On, mirror: Mirror) -> Response:
    """Send a release's bytes, whole or from an offset."""
    row = await service.db.read(mirrors.get_served_release, mirror, firmware_id)
    release = service.fleet.releases.get(firmware_id)
    if row is None or release is None:
        raise missing("firmware", firmware_id)
    return Image(service, release, await load(service, release))


def _taken(service: Service, done: mirrors.ImportResult) -> None:
    for row in done.beacons:
        known = service.fleet.beacons.get(row["id"])
        said = "" if known is None else known.beacon.said_type
        node = service.fleet.put_beacon(row)
        if node.beacon.questioned and node.beacon.said_type != said:
            tell_of_question(service, node, node.beacon.said_type)
    for row in done.attempts:
        service.fleet.put_attempt(attempt_from_row(row))
    for event in done.events:
        service.hub.publish(event)


async def _halt(service: Service, engine: Engine, mirror: Fields, row: Fields) -> None:
    """Halt everywhere what a mirror has halted for itself; again is nothing."""
    row = mirror_rows.check_halt(row)
    if await service.db.read(mirror_books.knows_halt, row):
        return
    rollout_id = row["rollout_id"]
    entry = service.fleet.rollouts.get(rollout_id)
    if entry is None:
        return
    firmware_id = entry.rollout.plan.release.firmware_id
    if await service.db.read(mirrors.get_served_release, mirror, firmware_id) is None:
        return  # none of its beacons could have told it
    by, why = f"mirror {mirror['name']}", (row["reason"] or "")[:200]
    try:
        stored = await engine.stop_manager.stop_by_hand(
            rollout_id, lambda entry, now: moves.halt_rollout(entry.state, now, by, why)
        )
    except UsageError:
        stored = True  # it is halted, or over
    # Whatever becomes of the rest that it tells: who resumes from now on has seen this.
    if stored and (name := mirror_books.halt_name(row)) is not None:
        now = service.clock.now()
        await service.db.write(mirror_books.record_halt, mirror["id"], name, now)
