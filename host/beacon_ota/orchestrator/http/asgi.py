"""Reads requests and sends answers directly on ASGI, for the beacons' API."""

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

# Extensions of the server: drop the connection; mark it as proven (connections.py).
ABORT_EXTENSION = "beacon_ota.abort"
PROVE_EXTENSION = "beacon_ota.prove"
JSON_TYPE: Header = (b"content-type", b"application/json")
PROBLEM_TYPE: Header = (b"content-type", b"application/problem+json")


class ClientDisconnected(Exception):
    """The client went away in the middle of its request, so that no answer is sent."""


def get_header(scope: Scope, name: bytes) -> str:
    """Return a request header, "" if it is absent or repeated."""
    found = ""
    for key, value in scope["headers"]:
        if key == name:
            if found:
                return ""
            found = value.decode("latin-1")
    return found


def request_target(scope: Scope) -> str:
    """Return path and query exactly as in the request line."""
    path = scope.get("raw_path") or scope["path"].encode()
    query = scope["query_string"]
    return (path + b"?" + query if query else path).decode("latin-1")


def client_address(scope: Scope) -> str:
    """Return the IP address of the client, "" if unknown."""
    client = scope.get("client")
    return client[0] if client else ""


def parse_decimal(text: str, most: int) -> int | None:
    """Return a number of decimal digits, None if the text is no such number or above ``most``.

    The length is checked first, because Python raises an exception for thousands of digits.
    """
    if not text.isascii() or not text.isdecimal() or len(text) > 4 + len(str(most)):
        return None
    value = int(text)
    return value if value <= most else None


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read a request body of at most ``limit`` bytes.

    Raises:
        Problem: 413 ``body_too_large``; 408 ``body_stalled`` after ``LIMITS.body_stall`` seconds
            without a byte.
        ClientDisconnected: the client went away.
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
    """Tell the connection table that this connection carried a right signature, token or session.

    Args:
        kind: ``connections.BEACON`` or ``connections.ADMINISTRATOR``.
    """
    noted = scope.get("extensions", {}).get(PROVE_EXTENSION)
    if noted is not None:
        noted(kind)


async def abort_connection(scope: Scope) -> None:
    """Drop a connection in the middle of an answer, so that the client does not use any of it."""
    abort = scope.get("extensions", {}).get(ABORT_EXTENSION)
    if abort is not None:
        abort()
        await asyncio.sleep(0)  # the server handles the abort first


async def send_response(
    send: Send, status: int, payload: bytes = b"", headers: Iterable[Header] = ()
) -> None:
    """Send an answer with its whole body."""
    lines = [*headers]
    if status != 204:
        lines.append((b"content-length", b"%d" % len(payload)))
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": payload})
