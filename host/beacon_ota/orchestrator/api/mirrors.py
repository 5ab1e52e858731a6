"""``/api/mirrors``: creates, lists and removes mirrors, the distribution points of sites."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection
from starlette.responses import Response

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.api.access import Admin, Viewer
from beacon_ota.orchestrator.api.answers import json_response, listing_response
from beacon_ota.orchestrator.api.dependencies import EngineDep, ServiceDep
from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.core.fleet_records import attempt_from_row
from beacon_ota.orchestrator.db import tables
from beacon_ota.orchestrator.db.tables import (
    Fields,
    mirror_watch,
    mirrors,
    sites,
    tokens,
)
from beacon_ota.orchestrator.http.problems import Problem, not_found

router = APIRouter(tags=["mirrors"])

DISCONNECTED_AFTER_S = mirror_watch.LOST_S


class NewMirror(BaseModel):
    """A mirror to create, with a token of its own."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=50, pattern=r"^[A-Za-z0-9._-]+$")]
    site: Annotated[str, Field(max_length=200, description='a path; "" is everything')]


def serialize_mirror(row: Fields, now: float, needed: int = 0) -> Fields:
    """Return a mirror as JSON.

    Args:
        needed: number of the audit entry that the mirror must have applied by now
            (``mirror_watch.settled``).
    """
    status, watch = row["status"], row["watch"]
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
        "connected": seen is not None and now - seen < DISCONNECTED_AFTER_S,
        "silent_s": None if seen is None else round(max(now - seen, 0.0), 1),
        "health": verdict.word,
        "problem": verdict.why or None,
        "unhealthy_since": None
        if verdict.well
        else format_iso(since if since is not None else now),
        "taken": row["seq"],
        "backlog": status.get("backlog"),
        "lag_s": status.get("lag_s"),
        "releases": status.get("releases", []),
        "version": status.get("version"),
        "url": status.get("url"),
        "applied": watch.get("moves"),
        "error": status.get("error"),
        "refused": watch.get("refused"),
        "skew_s": status.get("skew_s"),
        "lease_s": status.get("lease_s"),
        "hands_out_until": format_iso(mirror_watch.lease_ends_at(row)),
    }


def list_serialized(conn: Connection, now: float) -> list[Fields]:
    """Return the mirrors in use as JSON, by name."""
    rows = mirrors.list_all(conn)
    needed = mirror_watch.settled(conn, now) if rows else 0
    return [serialize_mirror(row, now, needed) | {"seen": row["seen_at"]} for row in rows]


@router.get("/api/mirrors")
async def list_mirrors(service: ServiceDep, actor: Viewer) -> Response:
    """List mirrors: their releases, last contact, lag and health."""
    now = service.clock.now()
    rows = await service.db.read(list_serialized, now)
    for row in rows:
        del row["seen"]
    return listing_response("mirrors", rows)


@router.post("/api/mirrors", status_code=201)
async def create_mirror(new: NewMirror, service: ServiceDep, actor: Admin) -> Response:
    """Create a mirror; its token is shown this once."""
    now = service.clock.now()

    def insert_mirror(conn: Connection) -> tuple[Fields, str]:
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
        actor.name, "mirror.created", new.name, insert_mirror, detail=detail
    )
    return json_response({**serialize_mirror(row, now), "token": token}, 201)


@router.delete("/api/mirrors/{mirror_id}", status_code=204)
async def remove_mirror(
    mirror_id: str, service: ServiceDep, engine: EngineDep, actor: Admin
) -> Response:
    """Remove a mirror: its token is revoked, and this primary concludes its open attempts."""
    now = service.clock.now()

    def retire_mirror(conn: Connection) -> list[Fields]:
        row = mirrors.get(conn, mirror_id)
        if row is None or row["removed_at"] is not None:
            raise not_found("mirror", mirror_id)
        tokens.revoke(conn, row["token_id"], now)
        return mirrors.remove_mirror(conn, mirror_id, now)

    def put_attempts(rows: list[Fields]) -> None:
        for row in rows:
            service.fleet.put_attempt(attempt_from_row(row))

    await service.change_audited(
        actor.name, "mirror.removed", mirror_id, retire_mirror, then=put_attempts
    )
    engine.wake()
    return Response(status_code=204)


# ---- the mirror's side ----
