"""Webhooks, and the log of their deliveries, which is also the queue."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, case, delete, func, insert, select, update

from beacon_ota.orchestrator.db.schema import deliveries, webhooks
from beacon_ota.orchestrator.db.tables import Fields, fields, insert_or_ignore, new_id
from beacon_ota.orchestrator.limits import LIMITS

PENDING, DELIVERED, GIVEN_UP = "pending", "delivered", "given_up"
_w, _d = webhooks.c, deliveries.c


def add(conn: Connection, row: Fields) -> Fields:
    """Store a webhook."""
    conn.execute(insert(webhooks), row)
    found = get(conn, row["id"])
    assert found is not None
    return found


def get(conn: Connection, webhook_id: str) -> Fields | None:
    """Return a webhook."""
    return _read(conn.execute(select(webhooks).where(_w.id == webhook_id)).first())


def list_all(conn: Connection) -> list[Fields]:
    """Return all webhooks, with how many deliveries are in each state."""
    count = func.count()
    query = select(_d.webhook_id, _d.state, count).group_by(_d.webhook_id, _d.state)
    counts: dict[str, Counter[str]] = {}
    for webhook_id, state, number in conn.execute(query):
        counts.setdefault(webhook_id, Counter())[state] = number
    rows = conn.execute(select(webhooks).order_by(_w.created_at, _w.id))
    return [{**(_read(row) or {}), "counts": counts.get(row.id, Counter())} for row in rows]


def update_columns(conn: Connection, webhook_id: str, **values: Any) -> Fields | None:
    """Set columns of a webhook; None when it does not exist."""
    conn.execute(update(webhooks).where(_w.id == webhook_id).values(**values))
    return get(conn, webhook_id)


def remove(conn: Connection, webhook_id: str) -> bool:
    """Remove a webhook and its log."""
    conn.execute(delete(deliveries).where(_d.webhook_id == webhook_id))
    return bool(conn.execute(delete(webhooks).where(_w.id == webhook_id)).rowcount)


# ---- the queue ----


def enqueue(
    conn: Connection, now: float, found: dict[str, list[tuple[int, str, str]]], seen: int
) -> None:
    """Queue events for webhooks, and note that all up to ``seen`` have been looked at.

    Args:
        found: by the id of each enabled webhook, (event id, kind, body) of the events that it
            wants; no event is queued twice.
    """
    looked = _w.id.in_(list(found)) & (_w.seen < seen)
    conn.execute(update(webhooks).where(looked).values(seen=seen))
    for webhook_id, rows in found.items():
        if not rows:
            continue
        waiting = conn.scalar(
            select(func.count()).where(_d.webhook_id == webhook_id, _d.state == PENDING)
        )
        room = LIMITS.webhook_pending - (waiting or 0)
        made = [
            _delivery(webhook_id, event_id, kind, body, now, full=number >= room)
            for number, (event_id, kind, body) in enumerate(rows)
        ]
        insert_or_ignore(conn, deliveries, made)


def enqueue_test(conn: Connection, webhook_id: str, body: str, now: float) -> Fields:
    """Queue a test delivery, which belongs to no event."""
    row = _delivery(webhook_id, None, "webhook.test", body, now)
    conn.execute(insert(deliveries), row)
    return row


def _delivery(
    webhook_id: str, event_id: int | None, kind: str, body: str, now: float, full: bool = False
) -> Fields:
    return {
        "id": new_id(),
        "webhook_id": webhook_id,
        "event_id": event_id,
        "kind": kind,
        "body": body,
        "created_at": now,
        "state": GIVEN_UP if full else PENDING,
        "tries": 0,
        "next_at": None if full else now,
        "ended_at": now if full else None,
        "error": "queue_full" if full else None,
    }


def next_due(
    conn: Connection, now: float, waits: Sequence[float], rest_s: float
) -> list[tuple[str, float]]:
    """Return (webhook id, when it may try next) for those that have something to deliver.

    Args:
        waits: for how long a delivery waits at most, by the number of its tries.
        rest_s: for how long a webhook rests at most.
    """
    at = case((_is_due(now, waits), now), else_=_d.next_at)
    query = (
        select(_d.webhook_id, _w.rests_until, func.min(at))
        .join(webhooks, _w.id == _d.webhook_id)
        .where(_d.state == PENDING, _w.disabled_at.is_(None))
        .group_by(_d.webhook_id, _w.rests_until)
    )
    found = []
    for webhook_id, rests_until, due in conn.execute(query):
        rests = rests_until is not None and rests_until <= now + rest_s
        found.append((webhook_id, max(rests_until, due) if rests else due))
    return found


def _is_due(now: float, waits: Sequence[float]) -> Any:
    """Return the condition that a delivery is due.

    A delivery also counts as due when its remaining wait exceeds the longest possible one, since
    the clock must then have been set back.
    """
    longest = case(dict(enumerate(waits)), value=_d.tries, else_=waits[-1])
    return (_d.next_at <= now) | (_d.next_at > now + longest)


def claim_delivery(
    conn: Connection, webhook_id: str, now: float, lease_s: float, waits: Sequence[float]
) -> Fields | None:
    """Take a webhook's next delivery, oldest event first, and lease it to the calling process.

    If that process dies before it has delivered, the delivery is due again after the lease.
    """
    query = (
        select(deliveries)
        .where(_d.webhook_id == webhook_id, _d.state == PENDING, _is_due(now, waits))
        .order_by(_d.next_at, _d.event_id)
        .limit(1)
    )
    row = fields(conn.execute(query).first())
    if row is not None:
        conn.execute(update(deliveries).where(_d.id == row["id"]).values(next_at=now + lease_s))
    return row


def update_delivery(conn: Connection, delivery_id: str, **values: Any) -> Fields | None:
    """Record the result of a try; None when the webhook was removed meanwhile."""
    conn.execute(update(deliveries).where(_d.id == delivery_id).values(**values))
    return fields(conn.execute(select(deliveries).where(_d.id == delivery_id)).first())


def retry_delivery(
    conn: Connection, webhook_id: str, delivery_id: str, now: float
) -> Fields | None:
    """Queue again a delivery that was given up; None when no such delivery exists."""
    done = conn.execute(
        update(deliveries)
        .where(_d.id == delivery_id, _d.webhook_id == webhook_id, _d.state == GIVEN_UP)
        .values(state=PENDING, next_at=now, ended_at=None, tries=0)
    )
    if not done.rowcount:
        return None
    conn.execute(update(webhooks).where(_w.id == webhook_id).values(rests_until=None))
    return fields(conn.execute(select(deliveries).where(_d.id == delivery_id)).first())


# ---- the log ----


def list_deliveries(conn: Connection, webhook_id: str, limit: int) -> list[Fields]:
    """Return a webhook's deliveries, newest first."""
    query = (
        select(deliveries)
        .where(_d.webhook_id == webhook_id)
        .order_by(_d.created_at.desc(), _d.event_id.desc())
        .limit(limit)
    )
    return [dict(row._mapping) for row in conn.execute(query)]


def count_given_up(conn: Connection) -> int:
    """Return the number of deliveries that were given up and not dealt with since."""
    return conn.scalar(select(func.count()).where(_d.state == GIVEN_UP)) or 0


def prune_deliveries(conn: Connection) -> None:
    """Delete each webhook's finished deliveries, except for the newest."""
    for webhook_id in conn.scalars(select(_w.id)).all():
        over = (_d.webhook_id == webhook_id) & (_d.state != PENDING)
        newest = select(_d.id).where(over).order_by(_d.ended_at.desc())
        kept = newest.limit(LIMITS.webhook_rows)
        conn.execute(delete(deliveries).where(over, _d.id.not_in(kept)))


def _read(row: Any) -> Fields | None:
    found = fields(row)
    if found is not None:
        found["kinds"] = json.loads(found["kinds"])
    return found
