"""Corrects attempts of beacons that changed to another orchestrator while the two had no contact.

The orchestrator that a beacon left gives the attempt up after a while. When both have exchanged
what they heard, the attempt gets its true result here.
"""

from collections.abc import Iterable

from sqlalchemy import Connection, select, update

from beacon_ota.orchestrator.db.schema import attempts, beacons, firmwares
from beacon_ota.orchestrator.db.tables import Fields, events
from beacon_ota.orchestrator.rollout.roaming import DETAIL_MOVED_ON, DETAIL_RUNNING, moved_on

_a, _b, _f = attempts.c, beacons.c, firmwares.c


def correct_given_up(
    conn: Connection, beacon_ids: Iterable[str], now: float
) -> tuple[list[Fields], list]:
    """Correct lost attempts of beacons that went on at another orchestrator.

    Returns:
        The corrected attempts, which from now on belong to no mirror; and the events of their ends.
    """
    changed: list[Fields] = []
    told: list[Fields] = []
    for beacon_id in beacon_ids:
        lost = (_a.beacon_id == beacon_id) & (_a.result == "lost")
        if conn.execute(select(_a.id).where(lost).limit(1)).first() is None:
            continue
        rows = [
            dict(row._mapping)
            for row in conn.execute(select(attempts).where(_a.beacon_id == beacon_id))
        ]
        for row in rows:
            if row["result"] != "lost" or row["late_result"] is not None:
                continue
            found = _found(conn, row, rows)
            if found is None:
                continue
            row |= {**found, "mirror": None}
            conn.execute(update(attempts).where(_a.id == row["id"]).values(**row))
            changed.append(row)
            told.append(_event(conn, row, now))
    return changed, told


def _found(conn: Connection, row: Fields, rows: list[Fields]) -> Fields | None:
    """Return the true result of an attempt that was given up; None when it remains lost."""
    if moved_on(row, rows, row["ended_at"]):
        return {"result": "stopped", "detail": DETAIL_MOVED_ON}
    same = [one for one in rows if one["firmware_id"] == row["firmware_id"] and one is not row]
    if row["taken_at"] is None or any(one["result"] == "success" for one in same):
        return None
    runs = (
        (_b.id == row["beacon_id"])
        & (_f.id == row["firmware_id"])
        & (_b.image == _f.checksum)
        & (_b.state != "trial")
        & (_b.last_seen > row["taken_at"])
    )
    if conn.execute(select(_b.id).where(runs)).first() is None:
        return None
    return {"result": "success", "detail": DETAIL_RUNNING}


def _event(conn: Connection, row: Fields, now: float) -> Fields:
    version = conn.scalar(select(_f.version).where(_f.id == row["firmware_id"]))
    data = {"beacon": row["beacon_id"], "rollout": row["rollout_id"]}
    data |= {"firmware": row["firmware_id"], "version": version, "detail": row["detail"]}
    return events.add(conn, now, f"attempt.{row['result']}", row["id"], data)
