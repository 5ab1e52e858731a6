"""Lists the mirrors that have not confirmed a stop, and may go on handing out the release."""

from collections.abc import Sequence

from sqlalchemy import Connection

from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.db.tables import Fields, mirror_watch, mirrors
from beacon_ota.orchestrator.rollout.types import Transition

# Actions of the audit log that stop a rollout, by its state after them; and those of a release.
_ROLLOUT = {
    "halted": ("rollout.halted",),
    "paused": ("rollout.paused",),
    "aborted": ("rollout.aborted",),
}
_RELEASE = ("firmware.deprecated", "firmware.damaged")


def list_for_rollout(
    conn: Connection, row: Fields, now: float, unstored: Sequence[Transition] = ()
) -> list[Fields]:
    """Return the mirrors that have not confirmed a rollout's stop; none if it is not stopped.

    Args:
        unstored: stops that are in memory only, which mirrors do not learn.
    """
    if unstored:
        return list_for_unstored_stop(conn, row["created_at"], unstored[-1].at, now)
    return _list_unconfirmed(
        conn, row["id"], _ROLLOUT.get(row["status"], ()), row["created_at"], now
    )


def list_for_unstored_stop(conn: Connection, since: float, at: float, now: float) -> list[Fields]:
    """Return the mirrors that have a rollout and cannot know of its unstored stop.

    Args:
        since: creation of the rollout, UTC seconds.
        at: time of the stop, UTC seconds.
    """
    rows = mirror_watch.heard_since(mirrors.list_all(conn), since)
    return [_serialize_mirror({**row, "stopped_at": at}, now) for row in rows]


def list_for_release(conn: Connection, row: Fields, now: float) -> list[Fields]:
    """Return the mirrors that have not confirmed the withdrawal of a release."""
    withdrawn = row["state"] == "deprecated" or row["damaged_at"] is not None
    return _list_unconfirmed(
        conn, row["id"], _RELEASE if withdrawn else (), row["uploaded_at"], now
    )


def _list_unconfirmed(
    conn: Connection, target: str, actions: tuple[str, ...], since: float, now: float
) -> list[Fields]:
    every = mirrors.list_all(conn) if actions else []
    if not every:
        return []
    found = mirror_watch.list_unconfirmed(conn, every, target, actions, since)
    return [_serialize_mirror(row, now) for row in found]


def _serialize_mirror(row: Fields, now: float) -> Fields:
    until = mirror_watch.lease_ends_at(row)
    return {
        "mirror": row["name"],
        "mirror_id": row["id"],
        "site": row["site"],
        "since": format_iso(row["stopped_at"]),
        "seen_at": format_iso(row["seen_at"]),
        "silent_s": round(max(now - row["seen_at"], 0.0), 1),
        "hands_out_until": format_iso(until),
        "hands_out": until is None or now <= until,
    }
