"""The table of changes: which rows changed, in the order of the commits, for other processes."""

from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, func, insert, select, update

from beacon_ota.orchestrator.db.schema import (
    attempts,
    beacons,
    changes,
    events,
    firmwares,
    rollouts,
    settings,
)
from beacon_ota.orchestrator.db.tables import Fields, sites

KEPT = 100_000  # changes; a process that lags further reads everything again
BATCH = 2000
_FORGOTTEN = "changes.forgotten"  # the setting with the number of the last pruned change
_c = changes.c
_TABLES = {
    "attempts": attempts,
    "beacons": beacons,
    "events": events,
    "firmwares": firmwares,
    "rollouts": rollouts,
}


class ChangeBatch(NamedTuple):
    """Changes by other processes: the present rows, None for deleted ones.

    Attributes:
        seq: the number of the last change in the batch.
        more: whether further changes follow.
        lost: unread changes were pruned, or the database went back behind changes already read.
        kinds: the kinds of everything that changed, by this process or another one.
    """

    seq: int
    more: bool = False
    lost: bool = False
    kinds: frozenset[str] = frozenset()
    rows: dict[str, dict[str, Fields | None]] = {}
    sites: list[Fields] | None = None


def newest_seq(conn: Connection) -> int:
    """Return the number of the newest change."""
    return max(conn.scalar(select(func.max(_c.seq))) or 0, _forgotten(conn))


def read_batch(conn: Connection, after: int, own: str, with_events: bool) -> ChangeBatch:
    """Return what changed after the change ``after``; of rows, what others than ``own`` changed.

    Args:
        with_events: include the rows of events, also of this process, so that all are in order.
    """
    forgotten = _forgotten(conn)
    query = (
        select(_c.seq, _c.what, _c.key, _c.worker)
        .where(_c.seq >= after)
        .order_by(_c.seq)
        .limit(BATCH + 1)
    )
    rows = list(conn.execute(query))
    if rows and rows[0].seq == after:
        del rows[0]
    elif after != forgotten:  # pruned; or the database was restored with an older number
        return ChangeBatch(newest_seq(conn), lost=True)
    if not rows:
        return ChangeBatch(after)
    del rows[BATCH:]
    keys: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.what in _TABLES and (
            with_events if row.what == "events" else row.worker != own or not own
        ):
            keys.setdefault(row.what, {})[row.key] = None
    found = {what: _rows(conn, what, list(those)) for what, those in keys.items()}
    return ChangeBatch(
        rows[-1].seq,
        more=len(rows) == BATCH,
        kinds=frozenset(row.what for row in rows),
        rows=found,
        sites=sites.list_all(conn)
        if any(row.what == "sites" and row.worker != own for row in rows)
        else None,
    )


def prune_changes(conn: Connection) -> None:
    """Delete the oldest changes beyond the bound, and note up to which number."""
    horizon = newest_seq(conn) - KEPT
    if conn.execute(delete(changes).where(_c.seq <= horizon)).rowcount:
        set_setting(conn, _FORGOTTEN, str(horizon))


def set_setting(conn: Connection, key: str, value: str) -> None:
    """Keep a setting."""
    done = conn.execute(update(settings).where(settings.c.key == key).values(value=value))
    if not done.rowcount:
        conn.execute(insert(settings).values(key=key, value=value))


def get_setting(conn: Connection, key: str) -> str | None:
    """Return a setting."""
    return conn.scalar(select(settings.c.value).where(settings.c.key == key))


def _forgotten(conn: Connection) -> int:
    return int(get_setting(conn, _FORGOTTEN) or 0)


def _rows(conn: Connection, what: str, keys: list[str]) -> dict[str, Fields | None]:
    table = _TABLES[what]
    wanted: list[Any] = [int(key) for key in keys] if what == "events" else keys
    found: dict[str, Fields | None] = dict.fromkeys(keys)
    for row in conn.execute(select(table).where(table.c.id.in_(wanted))):
        found[str(row.id)] = dict(row._mapping)
    return found
