"""``GET /firmwares/latest/{device_type}``: is there something for me?"""

import asyncio
import hashlib
from urllib.parse import parse_qsl

from beacon_ota.orchestrator.beacon_api.auth import EMPTY_SHA256, Caller
from beacon_ota.orchestrator.beacon_api.device_types import record_reported_type
from beacon_ota.orchestrator.core.service import BACK_GRACE_S, Service
from beacon_ota.orchestrator.core.view import Node
from beacon_ota.orchestrator.http import asgi
from beacon_ota.orchestrator.http.asgi import Scope, Send
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.rollout.decide import decide
from beacon_ota.orchestrator.rollout.polling import poll_delay
from beacon_ota.orchestrator.rollout.types import Attempt, Decision, Result
from beacon_ota.wire import versions
from beacon_ota.wire.report import is_hex

_OFFER_TRIES = 3  # to make an offer while others move its rollout


async def answer_poll(
    service: Service, caller: Caller[Node], _body: bytes, scope: Scope, send: Send
) -> None:
    """Answer a poll: 200 with an offer, or 204 with the seconds until the next one."""
    node = caller.beacon
    now = service.clock.now()
    view = service.view
    query = scope["query_string"]
    facts = node.facts
    version, image, on_trial = facts.version, facts.image, facts.on_trial
    if query != node.query or not query:
        version, image, on_trial = parse_poll_query(query)
    said_type = scope["path"].rpartition("/")[2]
    if on_trial and said_type == facts.device_type:
        said_type = ""  # an image on trial speaks for no beacon
    elif said_type != facts.device_type:
        said_type = await record_reported_type(service, node, said_type, on_trial=on_trial)
        facts = node.facts
    view.heard(
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
        node.facts.id, now, until=decision.again_at, period_s=service.settings.poll_s
    )
    if not decision.offered:
        wait = (b"retry-after", b"%d" % max(1, round(delay)))
        reason = (b"x-reason", decision.reason.value.encode())
        await asgi.send_response(
            send, 204, b"", (wait, reason, caller.sign_response(204, EMPTY_SHA256))
        )
        return
    if attempt is None or attempt.result is not None:  # others are moving it, or have ended it
        soon = (b"retry-after", b"1")
        await asgi.send_response(send, 204, b"", (soon, caller.sign_response(204, EMPTY_SHA256)))
        return
    release = view.releases[attempt.firmware_id]
    window = ""
    if decision.not_before is not None and decision.not_after is not None:
        window = f'"not_before":{int(decision.not_before)},"not_after":{int(decision.not_after)},'
    body = (
        f'{{"attempt_id":"{attempt.id}",'
        f'"download_url":"/firmwares/{attempt.firmware_id}/download?attempt={attempt.id}",'
        f'"required":{"true" if decision.required else "false"},{window}'
        f'"poll_after_s":{max(1, round(delay))},"server_time":{int(now)},{release.static}}}'
    ).encode()
    signature = caller.sign_response(200, hashlib.sha256(body).hexdigest())
    await asgi.send_response(send, 200, body, (asgi.JSON_TYPE, signature))


async def _decide_offer(
    service: Service, node: Node, now: float
) -> tuple[Decision, Attempt | None]:
    """Decide about a beacon; an offer's attempt is durable, and made upon what is committed.

    None for the attempt of an offer: what it was decided upon changed each time.
    """
    decision = _decide_from_view(service, node, now)
    for _ in range(_OFFER_TRIES):
        if not decision.offered:
            return decision, None
        await service.catch_up()  # no process hands out what another has halted
        decision = _decide_from_view(service, node, now)
        if decision.offered:
            attempt = await service.offer(node, decision)
            service.heed()
            if attempt is not None and not service.view.is_stopped(attempt):
                return decision, attempt
            decision = _decide_from_view(service, node, now)
    return decision, None


def _decide_from_view(service: Service, node: Node, now: float) -> Decision:
    view = service.view
    place = view.place(node)
    found = decide(
        view.lives_for(node.facts),
        node.facts,
        now,
        attempts=node.attempts,
        place=place,
        busy=view.busy(place.building, node),
    )
    return service.within_lease(found)


def parse_poll_query(query: bytes) -> tuple[str, str, bool]:
    """Return (version, image, on trial) of a poll's query; the first two "" when absent.

    Raises:
        Problem: ``poll_query``, naming the field.
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


async def _conclude_silent_rollback(service: Service, node: Node, now: float) -> None:
    """Conclude a rollback from where the beacon is, if it never says so itself.

    A poll in state ``valid`` from another image than the release's, after ``rebooting``, means
    that the release is not running. The beacon's own report, which knows why, has a moment to
    arrive first.
    """
    rebooted = next(
        (a for a in node.attempts if a.result is None and a.rebooting_at is not None), None
    )
    if rebooted is None or node.facts.on_trial or not node.facts.image:
        node.back_at = None
        return
    release = service.view.releases[rebooted.firmware_id]
    if node.facts.image == release.row["checksum"]:
        node.back_at = None
        return
    if node.back_at is None or node.back_at > now:  # the clock was set back
        node.back_at = now
    elif now - node.back_at >= BACK_GRACE_S:
        node.back_at = None
        await asyncio.shield(
            service.settle(
                rebooted,
                Result.ROLLED_BACK,
                stage="boot",
                code="not_booted",
                detail="polled from the old image",
            )
        )
