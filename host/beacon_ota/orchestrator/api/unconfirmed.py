"""Which mirrors are not known to act on a stop: what ``rollout halt`` cannot promise."""

from collections.abc import Sequence

from sqlalchemy import Connection

from beacon_ota.orchestrator.clock import iso
from beacon_ota.orchestrator.db.tables import Fields, mirror_watch, mirrors
from beacon_ota.orchestrator.rollout.types import Transition

# What stops a rollout or a release, by the state that it leads to: as the audit log calls it.
_ROLLOUT = {
    "halted": ("rollout.halted",),
    "paused": ("rollout.paused",),
    "aborted": ("rollout.aborted",),
}
_RELEASE = ("firmware.deprecated", "firmware.damaged")


def list_for_rollout(
    conn: Connection, row: Fields, now: float, unstored: Sequence[Transition] = ()
) -> list[Fields]:
    """Return the mirrors that have not confirmed a rollout's stop; none when it is not stopped.

    Args:
        unstored: its stops that are in memory only: mirrors are told what is stored.
    """
    if unstored:
        return list_for_unstored_stop(conn, row["created_at"], unstored[-1].at, now)
    return _list_unconfirmed(
        conn, row["id"], _ROLLOUT.get(row["status"], ()), row["created_at"], now
    )


def list_for_unstored_stop(conn: Connection, since: float, at: float, now: float) -> list[Fields]:
    """Return the mirrors that have a rollout, and cannot know that it was stopped.

    Args:
        since: when the rollout came to be; at: when it was stopped. UTC seconds.
    """
    rows = mirror_watch.heard(mirrors.every(conn), since)
    return [_serialize_mirror({**row, "stopped_at": at}, now) for row in rows]


def list_for_release(conn: Connection, row: Fields, now: float) -> list[Fields]:
    """Return the mirrors that have not confirmed that a release is withdrawn."""
    withdrawn = row["state"] == "deprecated" or row["damaged_at"] is not None
    return _list_unconfirmed(
        conn, row["id"], _RELEASE if withdrawn else (), row["uploaded_at"], now
    )


def _list_unconfirmed(
    conn: Connection, target: str, actions: tuple[str, ...], since: float, now: float
) -> list[Fields]:
    every = mirrors.every(conn) if actions else []
    if not every:
        return []
    found = mirror_watch.unconfirmed(conn, every, target, actions, since)
    return [_serialize_mirror(row, now) for row in found]


def _serialize_mirror(row: Fields, now: float) -> Fields:
    until = mirror_watch.hands_out_until(row)
    return {
        "mirror": row["name"],
        "mirror_id": row["id"],
        "site": row["site"],
        "since": iso(row["stopped_at"]),
        "seen_at": iso(row["seen_at"]),
        "silent_s": round(max(now - row["seen_at"], 0.0), 1),
        "hands_out_until": iso(until),
        "hands_out": until is None or now <= until,
    }
