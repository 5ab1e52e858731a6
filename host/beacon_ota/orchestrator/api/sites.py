"""``/api/sites``: the tree of sites, buildings and floors, with time zones and windows."""

import math
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection
from starlette.responses import Response

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.api.access import Operator, Viewer
from beacon_ota.orchestrator.api.answers import json_response, listing_response
from beacon_ota.orchestrator.api.dependencies import ServiceDep
from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.tables import Fields, sites
from beacon_ota.orchestrator.http.problems import not_found
from beacon_ota.orchestrator.mirror.watch import judge_mirrors
from beacon_ota.orchestrator.rollout.windows import (
    check_path,
    load_zone,
    next_window,
    parse_window,
)

router = APIRouter(prefix="/api/sites", tags=["sites"])

Zone = Annotated[str | None, Field(max_length=64, examples=["Europe/Berlin"])]
Hours = Annotated[str | None, Field(max_length=16, examples=["03:00-05:00"])]
Kind = Literal["site", "building", "floor"] | None


class NewSite(BaseModel):
    """A node of the tree; absent zone and window are those of its parent."""

    model_config = ConfigDict(extra="forbid")

    path: Annotated[str, Field(max_length=200, examples=["hq/a/2"])]
    name: Annotated[str, Field(max_length=128)] = ""
    kind: Kind = None
    tz: Zone = None
    window: Hours = None


class Change(BaseModel):
    """The fields of a site to change; null takes the parent's value."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=128)] = ""
    kind: Kind = None
    tz: Zone = None
    window: Hours = None


@router.get("")
async def list_sites(service: ServiceDep, actor: Viewer) -> Response:
    """List the tree by path, with building, window in force, and the mirrors that serve it."""
    now = service.clock.now()
    rows, mirrors_with_verdict = await service.db.read(
        lambda conn: (sites.list_all(conn), judge_mirrors(conn, now))
    )
    found = []
    for row in rows:
        serving = [
            {"name": mirror["name"], "health": verdict.word}
            for mirror, verdict in mirrors_with_verdict
            if f"{row['path']}/".startswith(f"{mirror['site']}/") or not mirror["site"]
        ]
        found.append({**_serialize_site(service, row), "mirrors": serving})
    return listing_response("sites", found)


@router.post("", status_code=201)
async def create_site(new: NewSite, service: ServiceDep, actor: Operator) -> Response:
    """Add a site below its parent."""
    check_path(new.path)
    _check_window(new.tz, new.window)
    row = {**new.model_dump(), "created_at": service.clock.now()}

    def insert_site(conn: Connection) -> list[Fields]:
        parent = new.path.rpartition("/")[0]
        if parent and sites.get(conn, parent) is None:
            raise not_found("site", parent)
        if sites.get(conn, new.path) is not None:
            raise UsageError("site_taken", "this site is there", found=new.path)
        sites.add(conn, row)
        return sites.list_all(conn)

    return await _apply_change(
        service, actor, "site.created", new.path, insert_site, new.model_dump(), 201
    )


@router.patch("/{path:path}")
async def change_site(path: str, changes: Change, service: ServiceDep, actor: Operator) -> Response:
    """Change a site's name, kind, zone or window."""
    values = changes.model_dump(exclude_unset=True)
    _check_window(values.get("tz"), values.get("window"))

    def write_change(conn: Connection) -> list[Fields]:
        if sites.get(conn, path) is None:
            raise not_found("site", path)
        if values:
            sites.update_columns(conn, path, **values)
        return sites.list_all(conn)

    return await _apply_change(service, actor, "site.changed", path, write_change, values)


@router.delete("/{path:path}", status_code=204)
async def remove_site(path: str, service: ServiceDep, actor: Operator) -> Response:
    """Remove a site without children and without beacons."""

    def delete_site(conn: Connection) -> list[Fields]:
        why = sites.in_use(conn, path)
        if why is not None:
            raise UsageError("site_in_use", f"the site is in use: {why}", found=path)
        if not sites.remove(conn, path):
            raise not_found("site", path)
        return sites.list_all(conn)

    await service.change_audited(
        actor.name, "site.removed", path, delete_site, then=service.fleet.put_sites
    )
    return Response(status_code=204)


def _check_window(zone: str | None, hours: str | None) -> None:
    if zone is not None:
        load_zone(zone)
    if hours is not None:
        parse_window(hours)


async def _apply_change(
    service: Service, actor, action: str, path: str, write, detail: Fields, status: int = 200
) -> Response:
    rows = await service.change_audited(
        actor.name, action, path, write, then=service.fleet.put_sites, detail=detail
    )
    return json_response(
        _serialize_site(service, next(row for row in rows if row["path"] == path)), status
    )


def _serialize_site(service: Service, row: Fields) -> Fields:
    place = service.fleet.places.place_of(row["path"])
    start, end = next_window(place.window, service.clock.now())
    always_or_never = math.isinf(start)
    return {
        **row,
        "created_at": format_iso(row["created_at"]),
        "building": place.building,
        "zone": place.window.zone,
        "opens_at": None if always_or_never else format_iso(start),
        "closes_at": None if always_or_never else format_iso(end),
    }
