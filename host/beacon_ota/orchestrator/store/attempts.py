"""Attempts: a beacon's tries at a release. Each has one outcome, and the first one stays."""

from typing import Any

from sqlalchemy import (
    Connection,
    bindparam,
    func,
    insert,
    null,
    select,
    text,
    update,
)

from beacon_ota.orchestrator.schema import attempts
from beacon_ota.orchestrator.store import Fields, new_id
from beacon_ota.orchestrator.store.prepared import Prepared

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
_OFFER = Prepared(insert(attempts), COLUMNS)
_a = attempts.c
_GET = Prepared(select(attempts).where(_a.id == bindparam("attempt")))
_NEWEST = Prepared(
    select(attempts)
    .where(_a.rollout_id == bindparam("rollout"), _a.beacon_id == bindparam("beacon"))
    .order_by(_a.n.desc())
)
_OPEN = (_a.id == bindparam("attempt")) & _a.result.is_(None)
_TAKEN = func.coalesce(_a.taken_at, bindparam("at"))
_TAKE = Prepared(update(attempts).where(_OPEN).values(taken_at=_TAKEN).returning(attempts))
_REBOOTING = Prepared(
    update(attempts)
    .where(_OPEN)
    .values(taken_at=_TAKEN, rebooting_at=func.coalesce(_a.rebooting_at, bindparam("at")))
    .returning(attempts)
)
_AGAIN = Prepared(
    update(attempts)
    .where(
        _a.id == bindparam("id"),
        text("result = 'expired'"),
        _a.late_result.is_(None),
    )
    .values(
        result=null(),
        ended_at=null(),
        **{
            name: bindparam(name)
            for name in ("wave", "stage", "site", "from_version", "from_image", "offered_at")
        },
    )
    .returning(attempts)
)
_END = {
    "result": bindparam("how"),
    "ended_at": bindparam("at"),
    "failed_in": bindparam("in_stage"),
    "code": bindparam("in_code"),
    "detail": bindparam("said"),
}
_MEASURED = {name: bindparam(f"new_{name}") for name in MEASURED}
_CONCLUDE = Prepared(update(attempts).where(_OPEN).values(**_END).returning(attempts))
_FINISH = Prepared(
    update(attempts).where(_OPEN).values(taken_at=_TAKEN, **_END, **_MEASURED).returning(attempts)
)
_LATE = Prepared(
    update(attempts)
    .where(
        _a.id == bindparam("attempt"),
        text("result IN ({})".format(", ".join(f"'{word}'" for word in GIVEN_UP))),
        _a.late_result.is_(None),
    )
    .values(late_result=bindparam("how"), late_at=bindparam("at"), **_MEASURED)
    .returning(attempts)
)


def offer(conn: Connection, row: Fields) -> Fields:
    """Record an offer, before the beacon hears of it.

    Returns:
        ``row``; or what another process has offered the beacon since ``row`` was decided upon.
    """
    who = {"beacon": row["beacon_id"], "rollout": row["rollout_id"]}
    newest = _NEWEST.first(conn, who)
    if newest is not None and newest["n"] >= row["n"]:
        return newest
    _OFFER.first(conn, row)
    return row


def offer_again(conn: Connection, row: Fields) -> Fields:
    """Record an offer whose forerunner expired: it is the same attempt, nothing came of it yet.

    So a beacon that asks and asks and never begins has one row, not one for every ten minutes.
    When its word has arrived after all, the attempt is over, and ``row`` is a new one.
    """
    if (renewed := _AGAIN.first(conn, row)) is not None:
        return renewed
    known = get(conn, row["id"])
    if known is not None and known["result"] is None:
        return known  # another process was faster
    return offer(conn, {**row, "id": new_id(), "n": row["n"] + 1})


def take(conn: Connection, attempt_id: str, at: float) -> Fields | None:
    """Record the first authenticated download or report of an attempt."""
    return _TAKE.first(conn, {"attempt": attempt_id, "at": at}) or get(conn, attempt_id)


def rebooting(conn: Connection, attempt_id: str, at: float) -> Fields | None:
    """Record that a beacon is about to boot the release: from here on nothing calls it back."""
    return _REBOOTING.first(conn, {"attempt": attempt_id, "at": at}) or get(conn, attempt_id)


def conclude(
    conn: Connection,
    attempt_id: str,
    at: float,
    result: str,
    *,
    stage: str | None = None,
    code: str | None = None,
    detail: str | None = None,
) -> tuple[bool, Fields | None]:
    """Settle an attempt from what we know ourselves; returns whether this did it, and its row."""
    end = {"in_stage": stage, "in_code": code, "said": detail}
    row = _CONCLUDE.first(conn, {"attempt": attempt_id, "at": at, "how": result, **end})
    return row is not None, row or get(conn, attempt_id)


def finish(conn: Connection, at: float, report: Fields) -> tuple[str, Fields | None]:
    """Settle an attempt by what its beacon says, once.

    Args:
        report: a final report (``wire.report``).

    Returns:
        ``first`` when this settled it; ``late`` when it had been given up and this is the first
        word since, which is noted beside the result without changing it; else ``repeated``.
        And the attempt's row.
    """
    attempt_id, word = report["attempt_id"], report["update_status"]
    failed = word != "success"
    values = {"attempt": attempt_id, "at": at, "how": word}
    values |= {f"new_{name}": report.get(name) for name in MEASURED}
    end = {
        "in_stage": report["stage"] if failed else None,
        "in_code": report["code"] if failed else None,
        "said": report.get("detail") if failed else None,
    }
    if row := _FINISH.first(conn, {**values, **end}):
        return "first", row
    if row := _LATE.first(conn, values):
        return "late", row
    return "repeated", get(conn, attempt_id)


def get(conn: Connection, attempt_id: str) -> Fields | None:
    """Return an attempt."""
    return _GET.first(conn, {"attempt": attempt_id})


def last_end(conn: Connection, beacon_id: str) -> float:
    """Return when the last of a beacon's attempts ended, UTC seconds; 0 when none has."""
    return conn.scalar(select(func.max(_a.ended_at)).where(_a.beacon_id == beacon_id)) or 0.0


def of_beacon(conn: Connection, beacon_id: str, limit: int) -> list[Fields]:
    """Return a beacon's attempts, newest first."""
    query = (
        select(attempts)
        .where(_a.beacon_id == beacon_id)
        .order_by(_a.offered_at.desc(), _a.n.desc())
        .limit(limit)
    )
    return [dict(row._mapping) for row in conn.execute(query)]


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
