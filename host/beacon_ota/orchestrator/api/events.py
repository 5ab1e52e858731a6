"""``/api/events``: streams events as server-sent events that can be resumed."""

import asyncio
import json
from collections.abc import AsyncIterator
from time import monotonic
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from beacon_ota.orchestrator.api.access import Viewer, is_still_authorized
from beacon_ota.orchestrator.api.answers import listing_response
from beacon_ota.orchestrator.api.dependencies import ServiceDep
from beacon_ota.orchestrator.api.numbers import RowId
from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.tables import Fields, events
from beacon_ota.orchestrator.db.tables.tokens import Actor
from beacon_ota.orchestrator.limits import LIMITS

router = APIRouter(prefix="/api/events", tags=["events"])

_HEARTBEAT_S = 15.0
_BATCH = 500


@router.get("")
async def follow_events(
    request: Request,
    service: ServiceDep,
    actor: Viewer,
    last_event_id: Annotated[RowId | None, Header()] = None,
    after: Annotated[RowId | None, Query(description="instead of Last-Event-ID")] = None,
    kind: Annotated[str, Query(max_length=48, description="only kinds beginning so")] = "",
) -> Response:
    """Follow events from now on, or from the event after the given id.

    Stored events have an id to resume from. Transient ones (offers, progress, refusals) have none,
    and are not repeated. The stream ends when the token is revoked, expires, or changes its role.
    """
    start = after if last_event_id is None else last_event_id
    service.hub.check_capacity(actor.id)
    stream = _stream_events(service, request, actor, start, kind)
    return StreamingResponse(
        stream, media_type="text/event-stream", headers={"cache-control": "no-store"}
    )


@router.get("/latest")
async def list_latest_events(
    service: ServiceDep,
    actor: Viewer,
    limit: Annotated[int, Query(ge=1, le=LIMITS.page)] = 100,
    kind: Annotated[str, Query(max_length=48, description="only kinds beginning so")] = "",
) -> Response:
    """List the newest stored events, oldest first; at most ``limit``."""
    rows = await service.db.read(events.list_before, None, kind, limit)
    return listing_response("events", [_serialize_event(row) for row in rows])


async def _stream_events(
    service: Service, request: Request, actor: Actor, start: int | None, kind: str
) -> AsyncIterator[str]:
    queue = service.hub.subscribe(actor.id)
    if queue is None:
        return
    try:
        yield "retry: 2000\n\n"
        last = 0
        if start is not None:
            last = start
            while rows := await service.db.read(events.list_after, last, _BATCH):
                for row in rows:
                    if row["kind"].startswith(kind):
                        yield _format_sse(row)
                last = rows[-1]["id"]
        said = looked = monotonic()
        while True:
            if monotonic() - looked >= LIMITS.subscriber_check:
                if not await is_still_authorized(request, actor):
                    return
                looked = monotonic()
            try:
                async with asyncio.timeout(LIMITS.subscriber_check):
                    event = await queue.get()
            except TimeoutError:
                if monotonic() - said >= _HEARTBEAT_S:
                    said = monotonic()
                    yield ": still here\n\n"
                continue
            if event is None:
                return  # the client resumes from its last id
            if event["id"] is not None:
                if event["id"] <= last:
                    continue  # sent from the table already
                last = event["id"]
            if event["kind"].startswith(kind):
                said = monotonic()
                yield _format_sse(event)
    finally:
        service.hub.unsubscribe(queue)


def _serialize_event(event: Fields) -> Fields:
    return {**event, "at": format_iso(event["at"])}


def _format_sse(event: Fields) -> str:
    data = json.dumps(_serialize_event(event), separators=(",", ":"))
    number = "" if event["id"] is None else f"id: {event['id']}\n"
    return f"{number}event: {event['kind']}\ndata: {data}\n\n"
