"""The little of HTTP that the beacons' side needs, straight on ASGI."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.limits import LIMITS

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

# The server's extensions: drop the connection; note that it has shown who it is (connections.py).
ABORT_EXTENSION = "beacon_ota.abort"
PROVE_EXTENSION = "beacon_ota.prove"
JSON_TYPE: Header = (b"content-type", b"application/json")
PROBLEM_TYPE: Header = (b"content-type", b"application/problem+json")


class ClientDisconnected(Exception):
    """The other side went away in the middle of its request; there is nobody to answer."""


def get_header(scope: Scope, name: bytes) -> str:
    """Return a request header, "" when it is absent or repeated: repeated ones mean no good."""
    found = ""
    for key, value in scope["headers"]:
        if key == name:
            if found:
                return ""
            found = value.decode("latin-1")
    return found


def request_target(scope: Scope) -> str:
    """Return the path with its query, exactly as the request line had it."""
    path = scope.get("raw_path") or scope["path"].encode()
    query = scope["query_string"]
    return (path + b"?" + query if query else path).decode("latin-1")


def client_address(scope: Scope) -> str:
    """Return the address that the request came from."""
    client = scope.get("client")
    return client[0] if client else ""


def parse_decimal(text: str, most: int) -> int | None:
    """Return a number written in decimal digits, None when it is none or above ``most``.

    The length is looked at first: Python refuses to convert thousands of digits, by an exception.
    """
    if not text.isascii() or not text.isdecimal() or len(text) > 4 + len(str(most)):
        return None
    value = int(text)
    return value if value <= most else None


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read a request body of at most ``limit`` bytes.

    Raises:
        Problem: ``body_too_large``, or ``body_stalled`` when nothing comes for a while.
        Disconnected: the sender went away.
    """
    length = get_header(scope, b"content-length")
    if length and (parse_decimal(length, limit) is None):
        raise Problem(413, "body_too_large", f"at most {limit} bytes", expected=limit)
    parts = b""
    while True:
        try:
            async with asyncio.timeout(LIMITS.body_stall):
                message = await receive()
        except TimeoutError:
            raise Problem(408, "body_stalled", "the request body stopped arriving") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        part = message.get("body", b"")
        if len(parts) + len(part) > limit:
            raise Problem(413, "body_too_large", f"at most {limit} bytes", expected=limit)
        parts = parts + part if parts else part
        if not message.get("more_body"):
            return parts


def mark_proven(scope: Scope, kind: str) -> None:
    """Note that a right signature, token or session came over this connection."""
    noted = scope.get("extensions", {}).get(PROVE_EXTENSION)
    if noted is not None:
        noted(kind)


async def abort_connection(scope: Scope) -> None:
    """Drop a connection in the middle of an answer: the other side takes none of it."""
    abort = scope.get("extensions", {}).get(ABORT_EXTENSION)
    if abort is not None:
        abort()
        await asyncio.sleep(0)  # until the server has noticed


async def send_response(
    send: Send, status: int, payload: bytes = b"", headers: Iterable[Header] = ()
) -> None:
    """Send a whole answer."""
    lines = [*headers]
    if status != 204:
        lines.append((b"content-length", b"%d" % len(payload)))
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": payload})
