"""A mirror's side: what it has to tell its primary, and taking over what that gives.

Triggers write every changed row's key into ``changes``, in the transaction of the change; the row
is read when it is told. A row that changed again is told once, as it is now, at its later place.
So what waits is bounded by what there is, however long the uplink is down.
"""

import json
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, delete, func, insert, select, update

from beacon_ota.orchestrator.rollout.types import Status
from beacon_ota.orchestrator.schema import (
    attempts,
    beacons,
    changes,
    events,
    firmwares,
    journal,
    reports,
    rollouts,
    settings,
    sites,
)
from beacon_ota.orchestrator.store import Fields, keys, new_id
from beacon_ota.orchestrator.store import attempts as tries_of
from beacon_ota.orchestrator.store.changes import note, noted
from beacon_ota.orchestrator.store.mirrors import HEARD, digest

_c, _a = changes.c, attempts.c
_EPOCH = "mirror.epoch"
_QUIET = "mirror.quiet"  # there while the primary's word is written down: that is no news to it
_HALT = "mirror.halt."
_KEYS = {
    "attempts": ("NEW.id", "INSERT", "UPDATE"),
    "reports": ("NEW.id", "INSERT"),
    "journal": ("NEW.beacon_id || '|' || NEW.seq || '|' || NEW.digest", "INSERT"),
    "events": ("NEW.id", "INSERT"),
    "beacons": ("NEW.id", "UPDATE"),
}


class Item(NamedTuple):
    """Something to tell; ``row`` is None when it is gone."""

    seq: int
    what: str
    row: Fields | None


def prepare(conn: Connection) -> str:
    """Set the triggers up; returns the epoch of this data."""
    for table, (key, *kinds) in _KEYS.items():
        for kind in kinds:
            name = f"mirror_{table}_{kind.lower()}"
            conn.exec_driver_sql(
                f"CREATE TRIGGER IF NOT EXISTS {name} AFTER {kind} ON {table}"
                f" WHEN NOT EXISTS (SELECT 1 FROM settings WHERE key = '{_QUIET}') BEGIN"
                f" DELETE FROM changes WHERE what = '{table}' AND key = {key};"
                f" INSERT INTO changes (what, key) VALUES ('{table}', {key}); END"
            )
    conn.execute(delete(settings).where(settings.c.key == _QUIET))
    epoch = noted(conn, _EPOCH)
    if epoch is None:
        epoch = new_id()
        note(conn, _EPOCH, epoch)
    return epoch


def waiting(conn: Connection) -> int:
    """Return how much is still to be told."""
    return conn.scalar(select(func.count()).select_from(changes)) or 0


def batch(conn: Connection, limit: int) -> list[Item]:
    """Return what is to be told next, oldest first."""
    rows = conn.execute(select(changes).order_by(_c.seq).limit(limit)).all()
    return [Item(row.seq, row.what, _row(conn, row.what, row.key)) for row in rows]


def told(conn: Connection, seq: int) -> None:
    """Forget what the primary has taken."""
    done = (_c.seq <= seq) & (_c.what == "halts")
    for rollout_id in conn.scalars(select(_c.key).where(done)).all():
        conn.execute(delete(settings).where(settings.c.key == _HALT + rollout_id))
    conn.execute(delete(changes).where(_c.seq <= seq))


def halt(conn: Connection, rollout_id: str, reason: str, values: Fields) -> None:
    """Note that a rollout is halted here, until the primary has heard of it."""
    conn.execute(update(rollouts).where(rollouts.c.id == rollout_id).values(**values))
    note(conn, _HALT + rollout_id, reason)
    conn.execute(insert(changes).values(what="halts", key=rollout_id))


def halted(conn: Connection) -> set[str]:
    """Return the rollouts that are halted here, and the primary does not know it yet."""
    keys = select(settings.c.key).where(settings.c.key.startswith(_HALT, autoescape=True))
    return {key.removeprefix(_HALT) for key in conn.scalars(keys)}


# ---- what the primary gives ----


def take(conn: Connection, state: Fields, without: set[str], fetched: set[str]) -> None:
    """Write down what the primary gives.

    Args:
        without: releases whose images are not here yet; nothing of theirs is taken.
        fetched: releases whose images have just come.
    """
    note(conn, _QUIET, "1")
    for row in state["sites"]:  # parents come first
        _put(conn, sites, "path", row)
    _take_beacons(conn, state["beacons"])
    kept = {row["path"] for row in state["sites"]}
    conn.execute(delete(sites).where(sites.c.path.not_in(kept)))
    for row in state["firmwares"]:
        if row["id"] not in without:
            # What was found to be damaged here stays so until its bytes have come again.
            kept = row["damaged_at"] is None and row["id"] not in fetched
            _put(conn, firmwares, "id", row, "damaged_at" if kept else "")
    mine = halted(conn)
    there: set[str] = set(conn.scalars(select(rollouts.c.id)))
    for row in state["rollouts"]:
        if row["firmware_id"] not in without and row["id"] not in mine:
            _put(conn, rollouts, "id", row)
            there.add(row["id"])
    _end(conn, {row["id"] for row in state["rollouts"]} | mine)
    for row in state["attempts"]:
        if row["rollout_id"] in there and row["firmware_id"] not in without:
            _take_attempt(conn, row)
    conn.execute(delete(settings).where(settings.c.key == _QUIET))


def _take_beacons(conn: Connection, rows: list[Fields]) -> None:
    known: dict[str, Any] = {row.id: row for row in conn.execute(select(beacons))}
    for given in rows:
        row = dict(given)
        # A primary of the release before knows of one given key.
        row.setdefault("given_keys", row["next_key"])
        for name in ("key", "next_key", "given_keys"):
            row[name] = None if row[name] is None else bytes.fromhex(row[name])
        mine = known.pop(row["id"], None)
        if mine is None:
            conn.execute(insert(beacons), row)
            continue
        row |= keys.used(row, mine.key)  # what it uses here, and we have told so
        for name in HEARD:
            row.pop(name, None)
        if any(getattr(mine, name) != value for name, value in row.items()):
            conn.execute(update(beacons).where(beacons.c.id == row["id"]).values(**row))
    for beacon_id in known:
        for table in (reports, journal):
            conn.execute(delete(table).where(table.c.beacon_id == beacon_id))
        conn.execute(delete(beacons).where(beacons.c.id == beacon_id))


def _end(conn: Connection, given: set[str]) -> None:
    """Rollouts that the primary gives no more are over."""
    over = rollouts.c.status != Status.ABORTED.value
    for row in conn.execute(select(rollouts.c.id, rollouts.c.state).where(over)).all():
        if row.id not in given:
            values = {**json.loads(row.state), "status": Status.ABORTED.value}
            conn.execute(
                update(rollouts)
                .where(rollouts.c.id == row.id)
                .values(status=values["status"], state=json.dumps(values))
            )


def _take_attempt(conn: Connection, row: Fields) -> None:
    known = conn.execute(select(attempts).where(_a.id == row["id"])).first()
    if known is None:
        # The beacon may have asked here, too, while the line was down.
        conn.execute(insert(attempts), {**row, "n": tries_of.free_number(conn, row)})
    elif known.mirror is not None and (
        known.result in (None, "expired")
        or (known.late_result, known.blamed_at) != (row["late_result"], row.get("blamed_at"))
    ):
        conn.execute(update(attempts).where(_a.id == row["id"]).values(**{**row, "n": known.n}))


def _put(conn: Connection, table: Table, key: str, row: Fields, kept: str = "") -> None:
    values = {name: value for name, value in row.items() if name not in (key, kept)}
    done = conn.execute(update(table).where(table.c[key] == row[key]).values(**values))
    if not done.rowcount:
        conn.execute(insert(table), row)


def _row(conn: Connection, what: str, key: str) -> Fields | None:
    if what == "halts":
        reason = noted(conn, _HALT + key)
        return None if reason is None else {"rollout_id": key, "reason": reason}
    if what == "journal":
        beacon_id, seq, sign = key.rsplit("|", 2)
        where = (
            (journal.c.beacon_id == beacon_id)
            & (journal.c.seq == int(seq))
            & (journal.c.digest == sign)
        )
        found = conn.execute(select(journal).where(where)).first()
    else:
        table = {"attempts": attempts, "reports": reports, "events": events, "beacons": beacons}[
            what
        ]
        found = conn.execute(select(table).where(table.c.id == key)).first()
    if found is None:
        return None
    row = dict(found._mapping)
    if what == "beacons":
        row = {"id": row["id"], "key_digest": digest(row["key"]), **{k: row[k] for k in HEARD}}
    return row
