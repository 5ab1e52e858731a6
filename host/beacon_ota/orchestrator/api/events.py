"""``/api/events``: what happens, live, as server-sent events that can be resumed."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response, StreamingResponse

from beacon_ota.orchestrator.api.access import On, Viewer
from beacon_ota.orchestrator.api.answers import iso, page
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.service import Service
from beacon_ota.orchestrator.store import Fields, events

router = APIRouter(prefix="/api/events", tags=["events"])

_HEARTBEAT_S = 15.0
_BATCH = 500


@router.get("")
async def follow(
    service: On,
    actor: Viewer,
    last_event_id: Annotated[int | None, Header(ge=0)] = None,
    after: Annotated[int | None, Query(ge=0, description="instead of Last-Event-ID")] = None,
    kind: Annotated[str, Query(max_length=48, description="only kinds beginning so")] = "",
) -> Response:
    """Follow events from now on, or from the one after the id given.

    Stored events have an id to resume from. Those of the moment (offers, progress, refusals)
    have none, and whoever was not there has missed them.
    """
    start = after if last_event_id is None else last_event_id
    service.hub.check_room()
    stream = _stream(service, start, kind)
    return StreamingResponse(
        stream, media_type="text/event-stream", headers={"cache-control": "no-store"}
    )


@router.get("/latest")
async def latest(
    service: On, actor: Viewer, limit: Annotated[int, Query(ge=1, le=LIMITS.page)] = 100
) -> Response:
    """List the newest stored events, oldest first."""
    rows = await service.db.read(events.latest, limit)
    return page("events", [_shown(row) for row in rows])


async def _stream(service: Service, start: int | None, kind: str) -> AsyncIterator[str]:
    queue = service.hub.follow()
    try:
        yield "retry: 2000\n\n"
        last = 0
        if start is not None:
            last = start
            while rows := await service.db.read(events.since, last, _BATCH):
                for row in rows:
                    if row["kind"].startswith(kind):
                        yield _line(row)
                last = rows[-1]["id"]
        while True:
            try:
                async with asyncio.timeout(_HEARTBEAT_S):
                    event = await queue.get()
            except TimeoutError:
                yield ": still here\n\n"
                continue
            if event is None:
                return  # begin again from the last id
            if event["id"] is not None:
                if event["id"] <= last:
                    continue  # told from the table already
                last = event["id"]
            if event["kind"].startswith(kind):
                yield _line(event)
    finally:
        service.hub.leave(queue)


def _shown(event: Fields) -> Fields:
    return {**event, "at": iso(event["at"])}


def _line(event: Fields) -> str:
    data = json.dumps(_shown(event), separators=(",", ":"))
    number = "" if event["id"] is None else f"id: {event['id']}\n"
    return f"{number}event: {event['kind']}\ndata: {data}\n\n"
