"""``GET /firmwares/latest/{device_type}``: answers a poll with an offer, or with the next time."""

import asyncio
import hashlib
from urllib.parse import parse_qsl

from beacon_ota.orchestrator.beacon_api.auth import EMPTY_SHA256, Caller
from beacon_ota.orchestrator.beacon_api.device_types import record_reported_type
from beacon_ota.orchestrator.core.fleet_records import BeaconState
from beacon_ota.orchestrator.core.service import ROLLBACK_GRACE_S, Service
from beacon_ota.orchestrator.http import asgi
from beacon_ota.orchestrator.http.asgi import Scope, Send
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.rollout.decide import decide
from beacon_ota.orchestrator.rollout.polling import poll_delay
from beacon_ota.orchestrator.rollout.types import Attempt, Decision, Result
from beacon_ota.orchestrator.rollout.windows import utc_offset_min
from beacon_ota.wire import versions
from beacon_ota.wire.report import is_hex

_OFFER_TRIES = 3  # to make an offer while its rollout moves


async def answer_poll(
    service: Service, caller: Caller[BeaconState], _body: bytes, scope: Scope, send: Send
) -> None:
    """Answer a poll: 200 with an offer, or 204 with the seconds until the next poll."""
    node = caller.beacon
    now = service.clock.now()
    view = service.fleet
    query = scope["query_string"]
    facts = node.beacon
    version, image, on_trial = facts.version, facts.image, facts.on_trial
    if query != node.query or not query:
        version, image, on_trial = parse_poll_query(query)
    said_type = scope["path"].rpartition("/")[2]
    if on_trial and said_type == facts.device_type:
        said_type = ""  # an image on trial does not count as the beacon's report
    elif said_type != facts.device_type:
        said_type = await record_reported_type(service, node, said_type, on_trial=on_trial)
        facts = node.beacon
    view.contacts.mark_seen(
        node,
        now,
        version or facts.version,
        image or facts.image,
        on_trial,
        asgi.client_address(scope),
        said_type,
    )
    node.query = query
    node.refusals = 0
    await _conclude_silent_rollback(service, node, now)

    decision, attempt = await _decide_offer(service, node, now)
    service.counts.polls[decision.reason.value] += 1
    delay = poll_delay(
        node.beacon.id, now, until=decision.again_at, period_s=service.settings.poll_s
    )
    if not decision.offered:
        wait = (b"retry-after", b"%d" % max(1, round(delay)))
        reason = (b"x-reason", decision.reason.value.encode())
        await asgi.send_response(
            send, 204, b"", (wait, reason, caller.sign_response(204, EMPTY_SHA256))
        )
        return
    if attempt is None or attempt.result is not None:  # the rollout moves, or the attempt has ended
        soon = (b"retry-after", b"1")
        await asgi.send_response(send, 204, b"", (soon, caller.sign_response(204, EMPTY_SHA256)))
        return
    release = view.releases[attempt.firmware_id]
    window = ""
    if decision.not_before is not None and decision.not_after is not None:
        window = f'"not_before":{int(decision.not_before)},"not_after":{int(decision.not_after)},'
    elif (offset := utc_offset_min(view.place_of(node).window.zone, now)) is not None:
        window = f'"utc_off":{offset},'
    body = (
        f'{{"attempt_id":"{attempt.id}",'
        f'"download_url":"/firmwares/{attempt.firmware_id}/download?attempt={attempt.id}",'
        f'"required":{"true" if decision.required else "false"},{window}'
        f'"poll_after_s":{max(1, round(delay))},"server_time":{int(now)},{release.static}}}'
    ).encode()
    signature = caller.sign_response(200, hashlib.sha256(body).hexdigest())
    await asgi.send_response(send, 200, body, (asgi.JSON_TYPE, signature))


async def _decide_offer(
    service: Service, node: BeaconState, now: float
) -> tuple[Decision, Attempt | None]:
    """Return the decision for a beacon, and the attempt of an offer.

    The attempt is durable, and is made from committed state. It is None without an offer, and when
    the state changed during each of ``_OFFER_TRIES`` tries.
    """
    decision = _decide_from_view(service, node, now)
    for _ in range(_OFFER_TRIES):
        if not decision.offered:
            return decision, None
        await service.catch_up()  # another process may have halted the rollout
        decision = _decide_from_view(service, node, now)
        if decision.offered:
            attempt = await service.attempts.commit_offer(node, decision)
            service.sync_stops()
            if attempt is not None and not service.fleet.is_stopped(attempt):
                return decision, attempt
            decision = _decide_from_view(service, node, now)
    return decision, None


def _decide_from_view(service: Service, node: BeaconState, now: float) -> Decision:
    """Return the decision for a beacon from the state in memory."""
    view = service.fleet
    place = view.place_of(node)
    found = decide(
        view.active_rollouts_for(node.beacon),
        node.beacon,
        now,
        attempts=node.attempts,
        place=place,
        busy=view.updates_in_building(place.building, node),
    )
    return service.attempts.within_lease(found)


def parse_poll_query(query: bytes) -> tuple[str, str, bool]:
    """Return (version, image SHA-256, on trial) of a poll's query; absent texts are "".

    Raises:
        Problem: 422 ``poll_query``, with the field's name.
    """
    if len(query) > 512:
        raise Problem(422, "poll_query", "the query is too long", found=len(query), expected=512)
    try:
        given = dict(parse_qsl(query.decode("ascii"), max_num_fields=16))
    except ValueError:
        raise Problem(422, "poll_query", "the query cannot be read") from None
    version, image = given.get("version", ""), given.get("image", "")
    state = given.get("state", "valid")
    if version:
        try:
            versions.parse(version)
        except ValueError:
            raise Problem(
                422, "poll_query", "version is not semver", found=version, expected="1.2.3"
            ) from None
    if image and not is_hex(image, 64):
        raise Problem(422, "poll_query", "image is not a SHA-256 in hex", found=image[:80])
    if state not in ("valid", "trial"):
        raise Problem(
            422, "poll_query", "state is unknown", found=state[:80], expected=["valid", "trial"]
        )
    return version, image, state == "trial"


async def _conclude_silent_rollback(service: Service, node: BeaconState, now: float) -> None:
    """Conclude that a beacon rolled back, if it polls from another image and never reports it.

    A poll in state ``valid`` from another image than the release's, after ``rebooting``, means that
    the release does not run. The beacon's own report has ``ROLLBACK_GRACE_S`` seconds to arrive
    first, because it knows the reason.
    """
    rebooted = next(
        (a for a in node.attempts if a.result is None and a.rebooting_at is not None), None
    )
    if rebooted is None or node.beacon.on_trial or not node.beacon.image:
        node.back_at = None
        return
    release = service.fleet.releases[rebooted.firmware_id]
    if node.beacon.image == release.row["checksum"]:
        node.back_at = None
        return
    if node.back_at is None or node.back_at > now:  # the clock was set back
        node.back_at = now
    elif now - node.back_at >= ROLLBACK_GRACE_S:
        node.back_at = None
        await asyncio.shield(
            service.attempts.conclude_attempt(
                rebooted,
                Result.ROLLED_BACK,
                stage="boot",
                code="not_booted",
                detail="polled from the old image",
            )
        )
