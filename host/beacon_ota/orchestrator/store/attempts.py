"""Attempts: a beacon's tries at a release. Each has one outcome, and the first one stays."""

from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from beacon_ota.orchestrator.schema import attempts
from beacon_ota.orchestrator.store import Fields, fields

REPORTED = ("success", "failed", "rolled_back")  # a beacon said so; the others we concluded
GIVEN_UP = ("lost", "expired", "stopped")
MEASURED = (
    "bytes",
    "duration_ms",
    "trials",
    "reset_cause",
    "heap_free_min",
    "advertising_paused_ms",
)
COLUMNS = tuple(attempts.c.keys())
_a = attempts.c
_GET = select(attempts).where(_a.id == bindparam("attempt"))
_OPEN = (_a.id == bindparam("attempt")) & _a.result.is_(None)
_TAKE = update(attempts).where(_OPEN, _a.taken_at.is_(None)).values(taken_at=bindparam("at"))
_REBOOTING = (
    update(attempts).where(_OPEN, _a.rebooting_at.is_(None)).values(rebooting_at=bindparam("at"))
)
_FINISH = (
    update(attempts)
    .where(_OPEN)
    .values(
        result=bindparam("how"),
        ended_at=bindparam("at"),
        failed_in=bindparam("in_stage"),
        code=bindparam("in_code"),
        detail=bindparam("said"),
    )
)
_LATE = (
    update(attempts)
    .where(
        _a.id == bindparam("attempt"),
        _a.result.in_(GIVEN_UP),
        _a.late_result.is_(None),
    )
    .values(late_result=bindparam("how"), late_at=bindparam("at"))
)


def offer(conn: Connection, row: Fields) -> Fields:
    """Record an offer, before the beacon hears of it."""
    conn.execute(insert(attempts), row)
    return row


def take(conn: Connection, attempt_id: str, at: float) -> Fields | None:
    """Record the first authenticated download or report of an attempt."""
    conn.execute(_TAKE, {"attempt": attempt_id, "at": at})
    return get(conn, attempt_id)


def rebooting(conn: Connection, attempt_id: str, at: float) -> Fields | None:
    """Record that a beacon is about to boot the release: from here on nothing calls it back."""
    take(conn, attempt_id, at)
    conn.execute(_REBOOTING, {"attempt": attempt_id, "at": at})
    return get(conn, attempt_id)


def finish(
    conn: Connection,
    attempt_id: str,
    at: float,
    result: str,
    *,
    stage: str | None = None,
    code: str | None = None,
    detail: str | None = None,
    measured: Fields | None = None,
) -> tuple[str, Fields | None]:
    """Settle an attempt, once.

    Returns:
        ``first`` when this call settled it; ``late`` when it had been given up and this is the
        first word since, which is noted beside the result without changing it; else
        ``repeated``. And the attempt's row.
    """
    said = {"attempt": attempt_id, "at": at, "how": result}
    if result in REPORTED:
        conn.execute(_TAKE, said)
    done = conn.execute(_FINISH, {**said, "in_stage": stage, "in_code": code, "said": detail})
    how = "first" if done.rowcount else "repeated"
    if not done.rowcount and result in REPORTED:
        how = "late" if conn.execute(_LATE, said).rowcount else "repeated"
    if measured and how != "repeated":
        conn.execute(update(attempts).where(_a.id == attempt_id).values(**measured))
    return how, get(conn, attempt_id)


def get(conn: Connection, attempt_id: str) -> Fields | None:
    """Return an attempt."""
    return fields(conn.execute(_GET, {"attempt": attempt_id}).first())


def of_beacon(conn: Connection, beacon_id: str, limit: int) -> list[Fields]:
    """Return a beacon's attempts, newest first."""
    query = (
        select(attempts)
        .where(_a.beacon_id == beacon_id)
        .order_by(_a.offered_at.desc(), _a.n.desc())
        .limit(limit)
    )
    return [dict(row._mapping) for row in conn.execute(query)]


def any_open(conn: Connection, rollout_id: str) -> bool:
    """Tell whether an attempt of a rollout is under way."""
    query = select(_a.id).where(_a.rollout_id == rollout_id, _a.result.is_(None)).limit(1)
    return conn.execute(query).first() is not None


def of_firmwares(conn: Connection, firmwares: list[str]) -> list[Any]:
    """Return every attempt at the given releases, in the order of the offers."""
    query = select(attempts).where(_a.firmware_id.in_(firmwares)).order_by(_a.offered_at, _a.id)
    return list(conn.execute(query))


def results_of(conn: Connection, rollout_id: str) -> dict[str, int]:
    """Return how many of a rollout's attempts came to what; ``open`` for those under way."""
    query = select(_a.result, func.count()).where(_a.rollout_id == rollout_id).group_by(_a.result)
    return {result or "open": count for result, count in conn.execute(query)}


def of_rollout(conn: Connection, rollout_id: str, limit: int, after: str = "") -> list[Fields]:
    """Return a rollout's attempts by id, those after ``after``."""
    query = (
        select(attempts)
        .where(_a.rollout_id == rollout_id, _a.id > after)
        .order_by(_a.id)
        .limit(limit)
    )
    return [dict(row._mapping) for row in conn.execute(query)]
