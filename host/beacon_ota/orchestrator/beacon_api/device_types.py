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

from beacon_ota.orchestrator.beacon_api.auth import Refused
from beacon_ota.orchestrator.core.fleet_state import BeaconState
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.tables import Fields, beacons, device_types, events
from beacon_ota.orchestrator.http.problems import Problem

TELL_S = 3600.0  # two devices under one name contradict each other at every poll


async def hear_device_type(
    service: Service, node: BeaconState, said: str, *, on_trial: bool
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
    facts = node.beacon
    if not said:
        return ""
    if device_types.DEVICE_TYPE.fullmatch(said) is None:
        raise Problem(422, "poll_query", "the device type is none", found=said[:80])
    if on_trial:
        if facts.said_type == facts.device_type:
            raise Problem(
                409,
                "device_type_mismatch",
                "the image on trial is of another board",
                found=said,
                expected=facts.device_type,
            )
        return ""
    if service.settings.upstream:
        return said
    if not facts.said_type:
        await _adopt(service, node, said)
    elif facts.said_type != said:
        tell_of_question(service, node, said)
    return said


async def _adopt(service: Service, node: BeaconState, said: str) -> None:
    beacon_id, now = node.beacon.id, service.clock.now()

    def then(done: tuple[Fields | None, Fields | None]) -> None:
        row, event = done
        if row is None:
            service.fleet.drop_beacon(beacon_id)
        else:
            service.fleet.put_beacon(row)
        if event is not None:
            service.hub.publish(event)

    def work(conn: Connection) -> tuple[Fields | None, Fields | None]:
        event = device_types.adopt_stated_type(conn, beacon_id, said, now, "orchestrator")
        return beacons.get(conn, beacon_id), event

    await asyncio.shield(service.db.write(work, then=then))
    if service.fleet.beacons.get(beacon_id) is not node:
        raise Refused("unknown_beacon", f"no beacon {beacon_id!r} is registered")


def tell_of_question(service: Service, node: BeaconState, said: str) -> None:
    """Tell that a beacon contradicts itself: now and then, however often it does."""
    now = service.clock.now()
    told_at = node.questioned_at
    if told_at is not None and 0 <= now - told_at < TELL_S:
        return
    node.questioned_at = now
    beacon_id, data = node.beacon.id, {"device_type": node.beacon.device_type, "says": said}
    service.db.write(
        events.add, now, "beacon.questioned", beacon_id, data, then=service.hub.publish
    )
