"""Serves a release to a beacon: its image, or the block index of it, whole or a byte range.

``GET /firmwares/{firmware_id}/download`` and ``GET /firmwares/{firmware_id}/blocks``.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable

from beacon_ota.orchestrator.beacon_api.auth import EMPTY_SHA256, Caller
from beacon_ota.orchestrator.beacon_api.continuation import check_may_continue
from beacon_ota.orchestrator.core.fleet_records import BeaconState, Release
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.http.asgi import Header, Scope, Send
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.releases.serve import load_image, load_index, send_file


async def serve_download(
    service: Service, caller: Caller[BeaconState], _body: bytes, scope: Scope, send: Send
) -> None:
    """Send the image of an attempt's release; the first call takes the offer."""
    await _serve_file(service, caller, scope, send, load_image, service.counts.downloads)


async def serve_blocks(
    service: Service, caller: Caller[BeaconState], _body: bytes, scope: Scope, send: Send
) -> None:
    """Send the block index of an attempt's release; the first call takes the offer."""
    await _serve_file(service, caller, scope, send, load_index, service.counts.block_indexes)


async def _serve_file(
    service: Service,
    caller: Caller[BeaconState],
    scope: Scope,
    send: Send,
    load: Callable[[Service, Release], Awaitable[bytes]],
    counter: Counter,
) -> None:
    firmware_id = scope["path"].split("/")[2]
    attempt_id = _parse_attempt_id(scope["query_string"])
    await service.catch_up()  # another process may just have made the offer, or halted it
    service.sync_stops()
    attempt = service.fleet.open_attempts.get(attempt_id)
    if (
        attempt is None
        or attempt.beacon_id != caller.beacon.beacon.id
        or attempt.firmware_id != firmware_id
    ):
        raise Problem(409, "attempt_over", "no such attempt is under way", found=attempt_id)
    check_may_continue(service, attempt, caller.beacon)
    release = service.fleet.releases[firmware_id]
    data = await load(service, release)
    if attempt.taken_at is None and not await asyncio.shield(
        service.attempts.start_attempt(attempt)
    ):
        raise Problem(409, "attempt_over", "the attempt has ended", found=attempt_id)
    service.sync_stops()
    check_may_continue(service, service.fleet.open_attempts.get(attempt_id, attempt), caller.beacon)
    digest = release.row["blob"] if load is load_image else hashlib.sha256(data).hexdigest()

    def may_continue() -> bool:
        service.sync_stops()
        return not service.fleet.is_called_off(attempt.rollout_id, firmware_id)

    def sign_response(status: int) -> Header:
        return caller.sign_response(status, EMPTY_SHA256 if status == 416 else digest)

    await send_file(service, scope, send, data, digest, sign_response, counter, may_continue)


def _parse_attempt_id(query: bytes) -> str:
    name, _, value = query.partition(b"=")
    return value.decode("latin-1") if name == b"attempt" else ""
