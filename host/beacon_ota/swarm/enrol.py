"""Registers a swarm's beacons: through the administrators' API, many at once."""

import asyncio
import json
import secrets
from collections.abc import Callable, Iterator
from typing import NamedTuple

from beacon_ota.errors import ReachError, UsageError
from beacon_ota.swarm.http import Connection, ExchangeError, ServerAddress

_AT_ONCE = 16
_PATIENCE_S = 60.0


class EnrolledBeacon(NamedTuple):
    """A registered beacon; ``site`` is its building's path."""

    id: str
    key: bytes
    building: int


async def enrol_beacons(
    place: ServerAddress,
    token: str,
    names: list[tuple[str, int, str]],
    device_type: str,
    tag: str,
    progress: Callable[[int], object] = lambda done: None,
) -> list[EnrolledBeacon]:
    """Register beacons.

    Args:
        names: (id, building, site path) of each.
        tag: all of them get it; the swarm's rollouts are for it.

    Raises:
        UsageError: ``beacon_taken`` and whatever else the orchestrator refuses.
        ReachError: ``unreachable``.
    """
    todo: Iterator[tuple[str, int, str]] = iter(names)
    made: list[EnrolledBeacon] = []

    async def worker() -> None:
        connection = await Connection.open(place, _PATIENCE_S)
        try:
            for name, building, site in todo:
                key = secrets.token_bytes(32)
                doc = {
                    "beacon_id": name,
                    "device_type": device_type,
                    "site": site,
                    "tags": [tag],
                    "key": key.hex(),
                }
                answer = await connection.send_request(
                    _make_request(place, token, doc), _PATIENCE_S
                )
                if answer.status != 201:
                    raise _make_refusal(answer.status, answer.body)
                made.append(EnrolledBeacon(name, key, building))
                progress(len(made))
        finally:
            connection.close()

    tasks = [asyncio.ensure_future(worker()) for _ in range(min(_AT_ONCE, len(names)))]
    try:
        await asyncio.gather(*tasks)
    except ExchangeError as error:
        raise ReachError("unreachable", f"registering broke off: {error.code}") from None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    made.sort()
    return made


def _make_request(place: ServerAddress, token: str, doc: dict) -> bytes:
    body = json.dumps(doc).encode()
    head = (
        f"POST /api/beacons HTTP/1.1\r\nHost: {place.host}:{place.port}\r\n"
        f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _make_refusal(status: int, body: bytes) -> UsageError:
    try:
        doc = json.loads(body)
        return UsageError(str(doc["code"]), str(doc["detail"]), found=doc.get("found"))
    except (ValueError, KeyError, TypeError):
        return UsageError("not_an_orchestrator", f"registering was answered with {status}")
