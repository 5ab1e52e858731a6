"""Device types of beacons: the first type that a beacon states replaces the registered one."""

import re

from sqlalchemy import Connection

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.db.tables import Fields, audit, beacons, events

DEVICE_TYPE = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


def adopt_stated_type(
    conn: Connection, beacon_id: str, said: str, now: float, actor: str
) -> Fields | None:
    """Register the device type that a beacon states, if it has never stated one before.

    Returns:
        The event of the change; None when nothing has changed.
    """
    row = beacons.get(conn, beacon_id)
    if row is None or row["said_type"] is not None or row["device_type"] == said:
        return None
    beacons.update_columns(conn, beacon_id, device_type=said, said_type=said)
    return _told(conn, row, said, now, actor, "the beacon says so")


def retype(
    conn: Connection, row: Fields, wanted: str | None, now: float, actor: str, reason: str
) -> tuple[Fields, Fields]:
    """Register a beacon as another board, by hand.

    Args:
        row: the row of the beacon.
        wanted: the device type; None for the one that the beacon states.

    Returns:
        The beacon's row, and the event.

    Raises:
        UsageError: ``type_unsaid``: the beacon has not stated a device type.
    """
    wanted = wanted or row["said_type"]
    if wanted is None:
        raise UsageError(
            "type_unsaid", "the beacon has not said yet what it is; name the type", found=row["id"]
        )
    found = beacons.update_columns(conn, row["id"], device_type=wanted)
    assert found is not None
    return found, _told(conn, row, wanted, now, actor, reason)


def _told(
    conn: Connection, row: Fields, device_type: str, now: float, actor: str, reason: str
) -> Fields:
    """Record a change of type in the audit log and as an event."""
    detail = {"device_type": device_type, "was": row["device_type"]}
    audit.append(conn, now, actor, "beacon.retyped", row["id"], reason, detail)
    data = {**detail, "by": actor, **({"reason": reason} if reason else {})}
    return events.add(conn, now, "beacon.retyped", row["id"], data)
