"""Compares the device type that a beacon reports with the type that it is registered as.

Rules:
  * A beacon that never reported a type: its first report is adopted, with an event.
  * A beacon that has reported its registered type before: another type makes it *questioned*.
    It is shown and counted as such, and is offered nothing, until an operator accepts the type
    (``retype``) or the beacon reports the registered type again.
  * A poll without a type changes nothing.
  * An image on trial does not count. If it is for another board than the beacon has been until
    now, its poll is refused, so that the beacon rolls back.

Only authenticated requests that are new count. A mirror adopts nothing: it marks the beacon as
questioned, and the primary decides when the mirror's changes arrive.
"""

import asyncio

from sqlalchemy import Connection

from beacon_ota.orchestrator.beacon_api.auth import AuthenticationError
from beacon_ota.orchestrator.core.fleet_records import BeaconState
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.tables import Fields, beacons, device_types, events
from beacon_ota.orchestrator.http.problems import Problem

REPEAT_EVENT_S = 3600.0  # between two events about one beacon: two devices may share its name


async def record_reported_type(
    service: Service, node: BeaconState, reported: str, *, on_trial: bool
) -> str:
    """Compare a reported device type with the registered one, and adopt or question it.

    Args:
        reported: the last segment of the poll's path; "" if the beacon reports none.
        on_trial: the beacon runs an image on trial.

    Returns:
        The type to store as the beacon's own report, "" for none.

    Raises:
        Problem: 422 ``poll_query`` for a malformed type; 409 ``device_type_mismatch`` for an
            image on trial for another board.
        AuthenticationError: the beacon was removed in the meantime.
    """
    facts = node.beacon
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


async def _adopt_reported_type(service: Service, node: BeaconState, reported: str) -> None:
    """Register a beacon as the type that it reports first."""
    beacon_id, now = node.beacon.id, service.clock.now()

    def apply_adoption(done: tuple[Fields | None, Fields | None]) -> None:
        row, event = done
        if row is None:
            service.fleet.drop_beacon(beacon_id)
        else:
            service.fleet.put_beacon(row)
        if event is not None:
            service.hub.publish(event)

    def write_type(conn: Connection) -> tuple[Fields | None, Fields | None]:
        event = device_types.adopt_stated_type(conn, beacon_id, reported, now, "orchestrator")
        return beacons.get(conn, beacon_id), event

    await asyncio.shield(service.db.write(write_type, then=apply_adoption))
    if service.fleet.beacons.get(beacon_id) is not node:
        raise AuthenticationError("unknown_beacon", f"no beacon {beacon_id!r} is registered")


def publish_type_mismatch(service: Service, node: BeaconState, reported: str) -> None:
    """Publish ``beacon.questioned``, at most once per ``REPEAT_EVENT_S`` for a beacon."""
    now = service.clock.now()
    published_at = node.questioned_at
    if published_at is not None and 0 <= now - published_at < REPEAT_EVENT_S:
        return
    node.questioned_at = now
    beacon_id, data = node.beacon.id, {"device_type": node.beacon.device_type, "says": reported}
    service.db.write(
        events.add, now, "beacon.questioned", beacon_id, data, then=service.hub.publish
    )
