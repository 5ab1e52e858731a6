"""``GET /api/beacons``: lists beacons, and shows one beacon with its history."""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache, partial
from operator import itemgetter
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import Connection
from starlette.responses import Response

from beacon_ota.orchestrator.api.access import Viewer
from beacon_ota.orchestrator.api.answers import json_response, listing_response
from beacon_ota.orchestrator.api.dependencies import ServiceDep
from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.core.health import health_label
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.connection import StorageError
from beacon_ota.orchestrator.db.schema import beacons as table
from beacon_ota.orchestrator.db.tables import Fields, attempts, beacons
from beacon_ota.orchestrator.http.problems import not_found
from beacon_ota.orchestrator.limits import LIMITS

log = logging.getLogger("beacon_ota.orchestrator")

router = APIRouter(prefix="/api/beacons", tags=["beacons"])


FLUSH_PATIENCE_S = 1.0  # real seconds that a listing waits for the last-seen times


_TIMES = ("created_at", "first_seen", "last_seen", "quarantined_at", "refused_at")


_HIDDEN = ("id", "key", "next_key", "given_keys", "cleared_at", "tags", *_TIMES)


_PLAIN = tuple(column.name for column in table.c if column.name not in _HIDDEN)


_SHOWN = ("beacon_id", *_PLAIN)


_plain = itemgetter("id", *_PLAIN)  # fast: a page has up to 1,000 rows


_flushes: set[asyncio.Task[None]] = set()


async def flush_last_seen(service: Service) -> None:
    """Write the pending last-seen times, so that the tables are up to date.

    After ``FLUSH_PATIENCE_S``, or when the database refuses, a listing shows the stored times. The
    service logs the failure and tries again.
    """
    task = asyncio.create_task(service.flush_last_seen())
    _flushes.add(task)
    task.add_done_callback(_on_flushed)
    await asyncio.wait((task,), timeout=FLUSH_PATIENCE_S)


def _on_flushed(task: asyncio.Task[None]) -> None:
    _flushes.discard(task)
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, StorageError):
        log.error("who was heard last is not written", exc_info=error)


def serialize_beacon(row: Mapping[Any, Any]) -> Fields:
    """Return a beacon as JSON: without keys, tags as a list, times in ISO 8601."""
    public = dict(zip(_SHOWN, _plain(row), strict=True))
    public["tags"] = _parse_tags(row["tags"])
    public["refusals"] = row["refusals"] or 0
    for name in _TIMES:
        public[name] = format_iso(row[name])
    return public


@lru_cache(1024)
def _parse_tags(text: str) -> list[str]:
    """Return the tags of a row; cached, because most beacons share theirs with many others."""
    return json.loads(text)


@router.get("")
async def list_beacons(
    service: ServiceDep,
    actor: Viewer,
    after: Annotated[str, Query(max_length=64, description="the last id of the page before")] = "",
    limit: Annotated[int, Query(ge=1, le=LIMITS.page)] = 100,
    site: Annotated[str | None, Query(max_length=200)] = None,
    version: Annotated[str | None, Query(max_length=64)] = None,
    device_type: Annotated[str | None, Query(max_length=64)] = None,
    channel: Annotated[str | None, Query(max_length=16)] = None,
    tag: Annotated[str | None, Query(max_length=32)] = None,
    search: Annotated[str | None, Query(max_length=64)] = None,
    quarantined: bool | None = None,
    questioned: Annotated[
        bool | None, Query(description="says that it is another board than it is registered as")
    ] = None,
    refused: Annotated[
        bool | None, Query(description="was refused since its last poll that was answered")
    ] = None,
    silent_s: Annotated[float | None, Query(ge=0, description="not heard from for so long")] = None,
) -> Response:
    """List beacons by id; ``next`` is where the following page begins."""
    await flush_last_seen(service)
    filters: Fields = {
        "after": after,
        "limit": limit,
        "site": site,
        "version": version,
        "device_type": device_type,
        "channel": channel,
        "tag": tag,
        "search": search,
        "quarantined": quarantined,
        "questioned": questioned,
        "refused": refused,
        "silent_since": None if silent_s is None else service.clock.now() - silent_s,
    }

    status_of = partial(_status_of, service)  # reads the fleet state from a database thread

    def read_page(conn: Connection) -> Response:
        # Serialized here, in a database thread, and not on the event loop.
        total, rows = beacons.list_page(conn, **filters)
        more = rows[-1]["id"] if len(rows) == limit and total > limit else None
        found = [{**serialize_beacon(row), "standing": status_of(row["id"])} for row in rows]
        return listing_response("beacons", found, total=total, next=more)

    return await service.db.read(read_page)


@router.get("/{beacon_id}")
async def show_beacon(
    beacon_id: str,
    service: ServiceDep,
    actor: Viewer,
    limit: Annotated[int, Query(ge=1, le=LIMITS.page)] = 50,
) -> Response:
    """Show a beacon: its attempts, reports and journal, newest first."""
    await flush_last_seen(service)
    versions = {key: one.row["version"] for key, one in service.fleet.releases.items()}

    def read_beacon(conn: Connection) -> Fields | None:
        row = beacons.get(conn, beacon_id)
        if row is None:
            return None
        serialized_attempts = []
        for one in attempts.list_for_beacon(conn, beacon_id, limit):
            for key in (
                "offered_at",
                "taken_at",
                "rebooting_at",
                "ended_at",
                "late_at",
                "blamed_at",
            ):
                one[key] = format_iso(one[key])
            serialized_attempts.append({**one, "version": versions.get(one["firmware_id"])})
        reports = [
            {**one, "at": format_iso(one["at"])}
            for one in beacons.list_reports(conn, beacon_id, limit)
        ]
        entries = [
            {key: one[key] for key in ("seq", "stage", "code", "detail")}
            | {"at": format_iso(one["utc"] or None), "stored_at": format_iso(one["stored_at"])}
            for one in beacons.list_journal(conn, beacon_id, limit)
        ]
        return {
            **serialize_beacon(row),
            "rekeying": row["next_key"] is not None,
            "attempts": serialized_attempts,
            "reports": reports,
            "journal": entries,
        }

    found = await service.db.read(read_beacon)
    if found is None:
        raise not_found("beacon", beacon_id)
    now = {
        "standing": _status_of(service, beacon_id),
        "unproven": _serialize_claim(service, beacon_id),
    }
    return json_response({**found, **now})


def _status_of(service: Service, beacon_id: str) -> str | None:
    """Return the status label of a beacon; None while it is being registered or removed."""
    node = service.fleet.beacons.get(beacon_id)
    return None if node is None else health_label(node, service.fleet.releases, service.clock.now())


def _serialize_claim(service: Service, beacon_id: str) -> Fields | None:
    """Return the last unauthenticated request in the beacon's name since its last poll, or None."""
    node = service.fleet.beacons.get(beacon_id)
    if node is None or node.claim is None:
        return None
    return {**asdict(node.claim), "at": format_iso(node.claim.at)}
