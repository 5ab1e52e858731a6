"""Which board a beacon is: what it says of itself, against what it is registered as.

  * Somebody typed it, and the beacon has never said: its first word is taken, and told.
  * It has said what it is registered as before: another word is *questioned*. It is told, shown
    and counted, and the beacon is offered nothing, until somebody accepts the word, or the beacon
    says again what it said before.
  * It says nothing: it stays what it is registered as.
  * An image on trial speaks for no beacon. One that is of another board than the beacon has been
    is refused, so that the beacon goes back to what it ran before.

Only a request that was authenticated, and is new, is a word. A mirror registers nobody: it
questions, and its primary decides when it hears the word.
"""

import asyncio

from sqlalchemy import Connection

from beacon_ota.orchestrator.beacon_api.auth import AuthenticationError
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.core.view import Node
from beacon_ota.orchestrator.db.tables import Fields, beacons, device_types, events
from beacon_ota.orchestrator.http.problems import Problem

REPEAT_EVENT_S = 3600.0  # two devices under one name contradict each other at every poll


async def record_reported_type(
    service: Service, node: Node, reported: str, *, on_trial: bool
) -> str:
    """Take a beacon's word that it is another board than it is registered as.

    Args:
        said: the last segment of its poll's path; "" where it says nothing.

    Returns:
        The word to note as its own, "" for none.

    Raises:
        Problem: 422 ``poll_query`` for what is no device type; 409 ``device_type_mismatch`` for an
            image on trial of another board.
        Refused: the beacon was removed meanwhile.
    """
    facts = node.facts
    if not reported:
        return ""
    if device_types.DEVICE_TYPE.fullmatch(reported) is None:
        raise Problem(422, "poll_query", "the device type is none", found=reported[:80])
    if on_trial:
        if facts.said_type == facts.device_type:
            raise Problem(
                409,
                "device_type_mismatch",
                "the image on trial is of another board",
                found=reported,
                expected=facts.device_type,
            )
        return ""
    if service.settings.upstream:
        return reported
    if not facts.said_type:
        await _adopt_reported_type(service, node, reported)
    elif facts.said_type != reported:
        publish_type_mismatch(service, node, reported)
    return reported


async def _adopt_reported_type(service: Service, node: Node, reported: str) -> None:
    beacon_id, now = node.facts.id, service.clock.now()

    def apply_adoption(done: tuple[Fields | None, Fields | None]) -> None:
        row, event = done
        if row is None:
            service.view.drop_beacon(beacon_id)
        else:
            service.view.put_beacon(row)
        if event is not None:
            service.hub.publish(event)

    def write_type(conn: Connection) -> tuple[Fields | None, Fields | None]:
        event = device_types.adopt(conn, beacon_id, reported, now, "orchestrator")
        return beacons.get(conn, beacon_id), event

    await asyncio.shield(service.db.write(write_type, then=apply_adoption))
    if service.view.nodes.get(beacon_id) is not node:
        raise AuthenticationError("unknown_beacon", f"no beacon {beacon_id!r} is registered")


def publish_type_mismatch(service: Service, node: Node, reported: str) -> None:
    """Tell that a beacon contradicts itself: now and then, however often it does."""
    now = service.clock.now()
    published_at = node.questioned_at
    if published_at is not None and 0 <= now - published_at < REPEAT_EVENT_S:
        return
    node.questioned_at = now
    beacon_id, data = node.facts.id, {"device_type": node.facts.device_type, "says": reported}
    service.db.write(
        events.add, now, "beacon.questioned", beacon_id, data, then=service.hub.publish
    )
