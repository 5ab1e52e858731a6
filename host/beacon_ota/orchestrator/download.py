"""``GET /firmwares/{firmware_id}/download``: the image, from memory, whole or from an offset."""

import asyncio
import re
from collections.abc import Callable

from beacon_ota.orchestrator.asgi import Header, Scope, Send
from beacon_ota.orchestrator.gate import EMPTY, Caller
from beacon_ota.orchestrator.problems import Problem
from beacon_ota.orchestrator.serve import load, transmit
from beacon_ota.orchestrator.service import Service
from beacon_ota.orchestrator.status import check_going_on
from beacon_ota.orchestrator.view import Node


async def download(
    service: Service, caller: Caller[Node], _body: bytes, scope: Scope, send: Send
) -> None:
    """Send the release of an attempt; the first call takes the offer."""
    firmware_id = scope["path"].split("/")[2]
    attempt_id = _attempt_id(scope["query_string"])
    await service.catch_up()  # offered by another process, or halted there, a moment ago
    service.heed()
    attempt = service.view.open.get(attempt_id)
    if (
        attempt is None
        or attempt.beacon_id != caller.beacon.facts.id
        or attempt.firmware_id != firmware_id
    ):
        raise Problem(409, "attempt_over", "no such attempt is under way", found=attempt_id)
    check_going_on(service, attempt, caller.beacon)
    release = service.view.releases[firmware_id]
    data = await load(service, release)
    if attempt.taken_at is None and not await asyncio.shield(service.take(attempt)):
        raise Problem(409, "attempt_over", "the attempt has ended", found=attempt_id)
    service.heed()
    check_going_on(service, service.view.open.get(attempt_id, attempt), caller.beacon)

    def goes_on() -> bool:
        service.heed()
        return not service.view.is_called_off(attempt.rollout_id, firmware_id)

    def seal(status: int) -> Header:
        return caller.seal(status, EMPTY if status == 416 else release.row["blob"])

    await transmit(service, scope, send, data, release.row["blob"], seal, goes_on)


async def load(service: Service, release: Release) -> bytes:
    """Return a release's bytes; when they are damaged, it is withdrawn and this refused."""
    try:
        return await service.blobs.load(release.row["blob"])
    except BlobDamaged as error:
        if release.row["damaged_at"] is None:
            await service.damaged(release, error)
        raise Problem(410, "firmware_damaged", "the stored image is damaged") from None


async def transmit(
    service,
    scope: Scope,
    send: Send,
    data: bytes,
    digest: str,
    seal,
    goes_on: Callable[[], bool] = lambda: True,
) -> None:
    """Send bytes, or the part of them that was asked for.

    The pieces are views of one object in memory: a slow reader costs its connection and nothing
    else. There is no time limit but on standing still; it is broken off when it may not go on.
    """
    etag = f'"{digest}"'
    size = len(data)
    part = _part(asgi.header(scope, b"range"), asgi.header(scope, b"if-range"), etag, size)
    headers: list[Header] = [
        (b"content-type", b"application/octet-stream"),
        (b"etag", etag.encode()),
        (b"accept-ranges", b"bytes"),
        (b"cache-control", b"no-transform"),
    ]
    if part is None:
        status, start, end = 200, 0, size
    else:
        start, end = part
        status = 206 if start < end else 416
        where = f"{start}-{end - 1}" if status == 206 else "*"
        headers.append((b"content-range", f"bytes {where}/{size}".encode()))
    if status == 416:
        start = end = 0
    headers.append((b"content-length", b"%d" % (end - start)))
    if seal is not None:
        headers.append(seal(status))
    counts = service.counts
    counts.downloads[str(status)] += 1
    counts.reading += 1
    try:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        view = memoryview(data)
        while start < end:
            if not goes_on():
                await asgi.hang_up(scope)
                return
            stop = min(start + LIMITS.chunk, end)
            async with asyncio.timeout(LIMITS.send_stall):
                await send(
                    {
                        "type": "http.response.body",
                        "body": view[start:stop],
                        "more_body": stop < end,
                    }
                )
            counts.bytes_sent += stop - start
            start = stop
        if status == 416 or not size:
            await send({"type": "http.response.body", "body": b""})
    except TimeoutError:
        await asgi.hang_up(scope)
    finally:
        counts.reading -= 1


def _attempt_id(query: bytes) -> str:
    name, _, value = query.partition(b"=")
    return value.decode("latin-1") if name == b"attempt" else ""
