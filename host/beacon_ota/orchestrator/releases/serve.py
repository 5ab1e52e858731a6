"""Sends a release's image or block index from memory, whole or the range of a Range header."""

import asyncio
import base64
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable

from beacon_ota.orchestrator.blobs.local import BlobDamaged
from beacon_ota.orchestrator.core.fleet_records import Release
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.http import asgi
from beacon_ota.orchestrator.http.asgi import Header, Scope, Send
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.limits import LIMITS

_RANGE = re.compile(r"bytes=([0-9]{0,12})-([0-9]{0,12})")


async def load_image(service: Service, release: Release) -> bytes:
    """Return the bytes of a release's image.

    Raises:
        Problem: 410 ``firmware_damaged``; the release is withdrawn then.
    """
    return await _or_withdraw(service, release, service.blobs.load(release.row["blob"]))


async def load_index(service: Service, release: Release) -> bytes:
    """Return the block index of a release, that of its plain image.

    Raises:
        Problem: 404 ``blocks_missing``: an encrypted release that came without one. 410, as
            :func:`load_image`.
    """
    row = release.row
    if row["blocks"] is not None:
        return base64.b64decode(row["blocks"])
    if json.loads(row["info"]).get("encrypted"):
        raise Problem(
            404,
            "blocks_missing",
            "the release is encrypted, and its upload brought no block index",
            found=row["id"],
        )
    return await _or_withdraw(service, release, service.blobs.block_indexes.load(row["blob"]))


async def _or_withdraw(service: Service, release: Release, reading: Awaitable[bytes]) -> bytes:
    try:
        return await reading
    except BlobDamaged as error:
        if release.row["damaged_at"] is None:
            await service.withdraw_damaged(release, error)
        raise Problem(410, "firmware_damaged", "the stored image is damaged") from None


async def send_file(
    service,
    scope: Scope,
    send: Send,
    data: bytes,
    digest: str,
    sign_response,
    counter: Counter,
    may_continue: Callable[[], bool] = lambda: True,
) -> None:
    """Send an image or a block index, or the requested range of it.

    The pieces are views of one object in memory, so that a slow reader costs only its connection.
    A transfer has no time limit, except ``LIMITS.send_stall`` without progress.

    Args:
        digest: SHA-256 of the bytes, for the ETag.
        sign_response: returns the signature header for a status; None: unsigned.
        counter: of ``ServedCounts``; counts the answer by its status.
        may_continue: asked before each piece; False drops the connection.
    """
    etag = f'"{digest}"'
    size = len(data)
    part = parse_range(
        asgi.get_header(scope, b"range"), asgi.get_header(scope, b"if-range"), etag, size
    )
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
    if sign_response is not None:
        headers.append(sign_response(status))
    counts = service.counts
    counter[str(status)] += 1
    counts.reading += 1
    try:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        view = memoryview(data)
        while start < end:
            if not may_continue():
                await asgi.abort_connection(scope)
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
        await asgi.abort_connection(scope)
    finally:
        counts.reading -= 1


def parse_range(range_header: str, if_range: str, etag: str, size: int) -> tuple[int, int] | None:
    """Return the (start, end) of a Range header; start == end if it is not satisfiable.

    None sends the whole image: for no range, several ranges, a malformed header, or an If-Range
    with another ETag.
    """
    match = _RANGE.fullmatch(range_header) if range_header else None
    if match is None or (if_range and if_range != etag):
        return None
    first, last = match.groups()
    if not first:
        if not last:
            return None
        return (max(size - int(last), 0), size) if int(last) else (0, 0)
    start = int(first)
    if last and int(last) < start:
        return None
    end = min(int(last) + 1, size) if last else size
    return (start, end) if start < size else (0, 0)
