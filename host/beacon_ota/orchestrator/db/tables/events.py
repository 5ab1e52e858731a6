"""Events, in order; their number is bounded, and the oldest are deleted first."""

import json
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from beacon_ota.orchestrator.db.schema import events
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.db.tables.prepared import PreparedStatement
from beacon_ota.orchestrator.limits import LIMITS

_ADD = PreparedStatement(insert(events).returning(events.c.id), ("at", "kind", "subject", "data"))


def add(conn: Connection, at: float, kind: str, subject: str, data: Fields) -> Fields:
    """Append an event and return it as followers see it."""
    row: Fields = {"at": at, "kind": kind, "subject": subject}
    done = _ADD.fetch_first(conn, {**row, "data": json.dumps(data, separators=(",", ":"))})
    assert done is not None
    return {"id": done["id"], **row, "data": data}


def list_after(conn: Connection, last: int, limit: int) -> list[Fields]:
    """Return up to ``limit`` events after the one with the id ``last``."""
    rows = conn.execute(select(events).where(events.c.id > last).order_by(events.c.id).limit(limit))
    return [_event(row) for row in rows]


def list_latest(conn: Connection, limit: int) -> list[Fields]:
    """Return the newest ``limit`` events, oldest first."""
    rows = conn.execute(select(events).order_by(events.c.id.desc()).limit(limit))
    return [_event(row) for row in rows][::-1]


def list_before(conn: Connection, last: int | None, kind: str, limit: int) -> list[Fields]:
    """Return the ``limit`` events before the one with the id ``last``, oldest first.

    Args:
        last: None for the newest.
        kind: only events whose kind begins with this text.
    """
    query = select(events).where(events.c.kind.startswith(kind, autoescape=True))
    if last is not None:
        query = query.where(events.c.id < last)
    rows = conn.execute(query.order_by(events.c.id.desc()).limit(limit))
    return [_event(row) for row in rows][::-1]


def last_id(conn: Connection) -> int:
    """Return the id of the newest event, 0 when there is none."""
    return conn.scalar(select(func.max(events.c.id))) or 0


def prune_events(conn: Connection) -> None:
    """Delete the oldest events beyond the bound."""
    conn.execute(delete(events).where(events.c.id <= last_id(conn) - LIMITS.event_rows))


def _event(row: Any) -> Fields:
    return {
        "id": row.id,
        "at": row.at,
        "kind": row.kind,
        "subject": row.subject,
        "data": json.loads(row.data),
    }
