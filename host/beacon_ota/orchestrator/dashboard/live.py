"""Pushes changes to open pages: each page learns which topics changed, and reloads itself.

Events are gathered for ``_GATHER_S`` and sent together, so that a busy rollout costs a page a few
bytes and one reload a second, however many beacons report.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from time import monotonic

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from beacon_ota.orchestrator.api.access import authenticate_actor, is_still_authorized
from beacon_ota.orchestrator.api.dependencies import service_of
from beacon_ota.orchestrator.api.numbers import ROW_ID_MAX
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.dashboard import messages
from beacon_ota.orchestrator.dashboard.logs import known_versions
from beacon_ota.orchestrator.dashboard.page_base import PAGE_HEADERS
from beacon_ota.orchestrator.db.tables import Fields, events
from beacon_ota.orchestrator.db.tables.tokens import Actor
from beacon_ota.orchestrator.http.asgi import parse_decimal
from beacon_ota.orchestrator.limits import LIMITS

_GATHER_S = 0.25
_PULSE_S = 20.0  # real seconds; pages also show times that grow old without an event
_MANY = 64  # topics in a message; with more, everything counts as changed
_SPOKEN = 4


async def follow_changes(request: Request) -> Response:
    """Stream the changes; ``after`` is the last event that the page has seen."""
    actor = await authenticate_actor(request)
    service = service_of(request)
    service.hub.check_capacity(actor.id)
    last = request.headers.get("last-event-id") or request.query_params.get("after", "")
    after = parse_decimal(last, ROW_ID_MAX)
    stream = _stream_changes(service, request, actor, after)
    return StreamingResponse(stream, media_type="text/event-stream", headers=PAGE_HEADERS)


async def _stream_changes(
    service: Service, request: Request, actor: Actor, after: int | None
) -> AsyncIterator[str]:
    queue = service.hub.subscribe(actor.id)
    if queue is None:
        return
    looked = pulsed = monotonic()
    try:
        yield "retry: 2000\n\n"
        last = after or 0
        if after is not None:
            missed = await service.db.read(events.list_after, after, _MANY)
            if missed:
                last = missed[-1]["id"]
                yield _format_message(service, missed, everything=len(missed) == _MANY)
        while True:
            if monotonic() - looked >= LIMITS.subscriber_check:
                if not await is_still_authorized(request, actor):
                    return
                looked = monotonic()
            if monotonic() - pulsed > _PULSE_S:
                pulsed = monotonic()
                yield "event: pulse\ndata: {}\n\n"
            gathered = await _gather_events(queue)
            if gathered is None:
                return
            new = [event for event in gathered if event["id"] is None or event["id"] > last]
            if new:
                last = max((event["id"] or 0 for event in new), default=0) or last
                yield _format_message(service, new)
    finally:
        service.hub.unsubscribe(queue)


async def _gather_events(queue: "asyncio.Queue[Fields | None]") -> list[Fields] | None:
    """Return the events of a moment: [] after a while without events, None at the end."""
    try:
        async with asyncio.timeout(LIMITS.subscriber_check):
            first = await queue.get()
    except TimeoutError:
        return []
    await asyncio.sleep(_GATHER_S)
    found = [first]
    while not queue.empty():
        found.append(queue.get_nowait())
    return None if None in found else [event for event in found if event is not None]


def _format_message(service: Service, gathered: list[Fields], *, everything: bool = False) -> str:
    about = topics_of(gathered)
    versions = known_versions(service)
    spoken = [
        {"level": said.level, "text": said.text, "href": said.href, "kind": event["kind"]}
        for event in gathered
        if event["kind"] in messages.SPOKEN
        for said in (messages.describe_event(event, versions),)
    ]
    more = len(spoken) - _SPOKEN
    data = {
        "about": ["*"] if everything or len(about) > _MANY else sorted(about),
        "say": spoken[:_SPOKEN],
        "more": max(more, 0),
    }
    ids = [event["id"] for event in gathered if event["id"] is not None]
    number = f"id: {ids[-1]}\n" if ids else ""
    return f"{number}data: {json.dumps(data, separators=(',', ':'))}\n\n"


def topics_of(gathered: Iterable[Fields]) -> set[str]:
    """Return the topics of events: ``rollout``, ``rollout:<id>``, ``beacon:<id>`` …"""
    found = set()
    for event in gathered:
        group = event["kind"].partition(".")[0]
        found |= {group, f"{group}:{event['subject']}"}
        for name in ("beacon", "rollout", "firmware"):
            if value := event["data"].get(name):
                found.add(f"{name}:{value}")
    return found
