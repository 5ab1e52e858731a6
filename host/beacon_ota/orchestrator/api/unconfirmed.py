"""Which mirrors are not known to act on a stop: what ``rollout halt`` cannot promise."""

from sqlalchemy import Connection

from beacon_ota.orchestrator.clock import iso
from beacon_ota.orchestrator.db.tables import Fields, mirror_watch, mirrors

# What stops a rollout or a release, by the state that it leads to: as the audit log calls it.
_ROLLOUT = {
    "halted": ("rollout.halted",),
    "paused": ("rollout.paused",),
    "aborted": ("rollout.aborted",),
}
_RELEASE = ("firmware.deprecated", "firmware.damaged")


def of_rollout(conn: Connection, row: Fields, now: float) -> list[Fields]:
    """Return the mirrors that have not confirmed a rollout's stop; none when it is not stopped."""
    return _shown(conn, row["id"], _ROLLOUT.get(row["status"], ()), row["created_at"], now)


def of_release(conn: Connection, row: Fields, now: float) -> list[Fields]:
    """Return the mirrors that have not confirmed that a release is withdrawn."""
    withdrawn = row["state"] == "deprecated" or row["damaged_at"] is not None
    return _shown(conn, row["id"], _RELEASE if withdrawn else (), row["uploaded_at"], now)


def _shown(
    conn: Connection, target: str, actions: tuple[str, ...], since: float, now: float
) -> list[Fields]:
    every = mirrors.every(conn) if actions else []
    if not every:
        return []
    found = []
    for row in mirror_watch.unconfirmed(conn, every, target, actions, since):
        until = mirror_watch.hands_out_until(row)
        found.append(
            {
                "mirror": row["name"],
                "mirror_id": row["id"],
                "site": row["site"],
                "since": iso(row["stopped_at"]),
                "seen_at": iso(row["seen_at"]),
                "silent_s": round(max(now - row["seen_at"], 0.0), 1),
                "hands_out_until": iso(until),
                "hands_out": until is None or now <= until,
            }
        )
    return found
