"""Attempts: a beacon's tries at a release. Each has one outcome, and the first one stays."""

from collections.abc import Collection
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    bindparam,
    case,
    func,
    insert,
    literal_column,
    null,
    select,
    text,
    update,
)

from beacon_ota.orchestrator.db.schema import attempts
from beacon_ota.orchestrator.db.schema import beacons as _beacons
from beacon_ota.orchestrator.db.tables import Fields, beacons, new_id, rollouts
from beacon_ota.orchestrator.db.tables.prepared import PreparedStatement
from beacon_ota.orchestrator.db.tables.rollouts import Basis
from beacon_ota.wire.report import IMAGE_FAULTS

REPORTED = ("success", "failed", "rolled_back")  # all others are concluded
GIVEN_UP = ("lost", "expired", "stopped")
MEASURED = (
    "bytes",
    "duration_ms",
    "trials",
    "reset_cause",
    "heap_free_min",
    "advertising_paused_ms",
    "bytes_fetched",
    "sectors_kept",
    "sectors_written",
)
COLUMNS = tuple(attempts.c.keys())
_OFFER = PreparedStatement(insert(attempts), COLUMNS)
_a = attempts.c
_GET = PreparedStatement(select(attempts).where(_a.id == bindparam("attempt")))
_NEWEST = PreparedStatement(
    select(attempts)
    .where(_a.rollout_id == bindparam("rollout"), _a.beacon_id == bindparam("beacon"))
    .order_by(_a.n.desc())
)
# A success that did not last: the beacon has since reported that it rolled back.
# Spelled out: PostgreSQL groups by no expression with parameters.
UNDONE = (_a.result == literal_column("'success'")) & (
    _a.late_result == literal_column("'rolled_back'")
)
SHOWN = case((UNDONE, literal_column("'undone'")), else_=_a.result).label("result")
_OPEN = (_a.id == bindparam("attempt")) & _a.result.is_(None)
_TAKEN = func.coalesce(_a.taken_at, bindparam("at"))
_TAKE = PreparedStatement(update(attempts).where(_OPEN).values(taken_at=_TAKEN).returning(attempts))
_REBOOTING = PreparedStatement(
    update(attempts)
    .where(_OPEN)
    .values(taken_at=_TAKEN, rebooting_at=func.coalesce(_a.rebooting_at, bindparam("at")))
    .returning(attempts)
)
_AGAIN = PreparedStatement(
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
_BLAMED = {"blamed_at": func.coalesce(bindparam("blamed"), _a.blamed_at)}
_CAUSE = {name: _END[name] for name in ("failed_in", "code", "detail")}
_UNCHANGED = (
    (_a.offered_at == bindparam("was_offered"))
    & _a.taken_at.is_not_distinct_from(bindparam("was_taken"))
    & _a.rebooting_at.is_not_distinct_from(bindparam("was_rebooting"))
)
_CONCLUDE = PreparedStatement(
    update(attempts).where(_OPEN & _UNCHANGED).values(**_END).returning(attempts)
)
_FINISH = PreparedStatement(
    update(attempts)
    .where(_OPEN)
    .values(taken_at=_TAKEN, **_END, **_MEASURED, **_BLAMED)
    .returning(attempts)
)
_LATE = PreparedStatement(
    update(attempts)
    .where(
        _a.id == bindparam("attempt"),
        text("result IN ({})".format(", ".join(f"'{word}'" for word in GIVEN_UP))),
        _a.late_result.is_(None),
    )
    .values(late_result=bindparam("how"), late_at=bindparam("at"), **_MEASURED, **_BLAMED)
    .returning(attempts)
)
_UNDO = PreparedStatement(
    update(attempts)
    .where(_a.id == bindparam("attempt"), text("result = 'success'"), _a.late_result.is_(None))
    .values(late_result=bindparam("how"), late_at=bindparam("at"), **_CAUSE, **_BLAMED)
    .returning(attempts)
)
# The attempt had been given up before the success arrived: its result stays as it was.
_UNDO_LATE = PreparedStatement(
    update(attempts)
    .where(_a.id == bindparam("attempt"), text("late_result = 'success'"))
    .values(late_result=bindparam("how"), late_at=bindparam("at"), **_BLAMED)
    .returning(attempts)
)


_FORGIVEN = PreparedStatement(
    select(_beacons.c.cleared_at).where(
        _a.id == bindparam("attempt"),
        _beacons.c.id == _a.beacon_id,
        _beacons.c.cleared_at >= bindparam("at"),
    )
)
_STEP_S = 0.001


class Progress(NamedTuple):
    """How far an attempt has come, when it is concluded from silence or called off."""

    offered_at: float
    taken_at: float | None
    rebooting_at: float | None


def offer_if_unchanged(
    conn: Connection,
    basis: Basis,
    beacon: tuple[str, str],
    row: Fields,
    again: bool,
    known: Collection[str] = (),
) -> Fields | None:
    """Record an offer if the facts on which it was decided are unchanged.

    Args:
        basis: the facts of the rollout on which the offer was decided.
        beacon: the beacon's channel and device type at that time.
        row: the row of the attempt.
        again: whether the offer renews an expired one.
        known: ids of the beacon's attempts at the rollout that the decision took into account.

    Returns:
        The attempt's row; None when the offer must be decided again, because the rollout was
        moved or halted, the release was withdrawn, or the beacon was changed.
    """
    if rollouts.read_basis(conn, row["rollout_id"]) != basis:
        return None
    if beacons.offer_scope(conn, row["beacon_id"]) != beacon:
        return None
    return (offer_again if again else offer)(conn, row, known)


def offer(conn: Connection, row: Fields, known: Collection[str] = ()) -> Fields:
    """Record an offer before it is sent to the beacon.

    Attempt numbers may have gaps: an attempt that a mirror reported in between may be refused.

    Returns:
        ``row``; or the offer that another process has made to the beacon since the decision.
    """
    who = {"beacon": row["beacon_id"], "rollout": row["rollout_id"]}
    newest = _NEWEST.fetch_first(conn, who)
    if newest is not None and newest["n"] >= row["n"]:
        if newest["id"] not in known:
            return newest
        row = {**row, "n": newest["n"] + 1}
    _OFFER.fetch_first(conn, row)
    return row


def offer_again(conn: Connection, row: Fields, known: Collection[str] = ()) -> Fields:
    """Renew an expired offer: the attempt is the same, because the beacon never began it.

    So a beacon that keeps polling and never begins has one row, not one for every ten minutes.
    If a report of the beacon has ended the attempt meanwhile, ``row`` becomes a new attempt.
    """
    if (renewed := _AGAIN.fetch_first(conn, row)) is not None:
        return renewed
    now = get(conn, row["id"])
    if now is not None and now["result"] is None:
        return now  # another process has renewed the offer
    return offer(conn, {**row, "id": new_id(), "n": row["n"] + 1}, known)


def start(conn: Connection, attempt_id: str, at: float) -> Fields | None:
    """Record the first authenticated download or report of an attempt."""
    return _TAKE.fetch_first(conn, {"attempt": attempt_id, "at": at}) or get(conn, attempt_id)


def mark_rebooting(conn: Connection, attempt_id: str, at: float) -> Fields | None:
    """Record that a beacon is about to boot the release; after that, no stop calls it off."""
    return _REBOOTING.fetch_first(conn, {"attempt": attempt_id, "at": at}) or get(conn, attempt_id)


def free_number(conn: Connection, row: Fields) -> int:
    """Return a number for an attempt made at another orchestrator: its own if that is free here."""
    place = (_a.rollout_id == row["rollout_id"]) & (_a.beacon_id == row["beacon_id"])
    used = list(conn.scalars(select(_a.n).where(place)))
    return max(used) + 1 if row["n"] in used else row["n"]


def conclude(
    conn: Connection,
    attempt_id: str,
    at: float,
    result: str,
    *,
    progress: Progress,
    stage: str | None = None,
    code: str | None = None,
    detail: str | None = None,
) -> tuple[bool, Fields | None]:
    """End an attempt without a report, unless its beacon has made progress meanwhile.

    Args:
        progress: how far the attempt had come when its end was concluded.

    Returns:
        Whether this call ended the attempt, and the attempt's present row.
    """
    at = end_time(conn, attempt_id, at)
    end = {"in_stage": stage, "in_code": code, "said": detail}
    was = dict(zip(("was_offered", "was_taken", "was_rebooting"), progress, strict=True))
    row = _CONCLUDE.fetch_first(
        conn, {"attempt": attempt_id, "at": at, "how": result, **end, **was}
    )
    return row is not None, row or get(conn, attempt_id)


def end_time(conn: Connection, attempt_id: str, at: float) -> float:
    """Return the time to record for an attempt that ends now.

    A clock that was ahead may have dated the clearing of the beacon's failures in the future. The
    end is then dated just after it; otherwise no failure counts until the clock has caught up.
    """
    forgiven = _FORGIVEN.fetch_first(conn, {"attempt": attempt_id, "at": at})
    return at if forgiven is None else forgiven["cleared_at"] + _STEP_S


def record_result(conn: Connection, at: float, report: Fields) -> tuple[str, Fields | None]:
    """End an attempt with its beacon's final report, once.

    Args:
        report: a final report (``wire.report``).

    Returns:
        ``first`` when the report ended the attempt; ``late`` when the attempt had been given up
        and this is the first report since, which is noted beside the unchanged result; ``undone``
        when the beacon has rolled back after a success; else ``repeated``. And the attempt's row.
    """
    attempt_id, word = report["attempt_id"], report["update_status"]
    failed = word != "success"
    values = {"attempt": attempt_id, "at": at, "how": word}
    values |= {f"new_{name}": report.get(name) for name in MEASURED}
    values["blamed"] = at if blames_release(report) else None
    end = {
        "in_stage": report.get("stage") if failed else None,
        "in_code": report.get("code") if failed else None,
        "said": report.get("detail") if failed else None,
    }
    if row := _FINISH.fetch_first(conn, {**values, **end}):
        return "first", row
    if row := _LATE.fetch_first(conn, values):
        return "late", row
    if word == "rolled_back" and (
        row := _UNDO.fetch_first(conn, {**values, **end}) or _UNDO_LATE.fetch_first(conn, values)
    ):
        return "undone", row
    return "repeated", get(conn, attempt_id)


def blames_release(report: Fields) -> bool:
    """Tell whether a beacon says with this report that the release itself is bad."""
    reason = (report.get("stage"), report.get("code"))
    return not report.get("acquitted") and reason in IMAGE_FAULTS.get(report["update_status"], ())


def undo_earlier(conn: Connection, at: float, report: Fields, row: Fields) -> list[Fields]:
    """Note on a beacon's earlier successes with a release that they did not last.

    Args:
        report: the final report of a later attempt, which shows that the release does not run.
        row: the row of that later attempt.

    Returns:
        The changed rows.
    """
    if report["update_status"] != "rolled_back" and not blames_release(report):
        return []
    values: Fields = {
        "late_result": "rolled_back",
        "late_at": at,
        "failed_in": report.get("stage"),
        "code": report.get("code"),
        "detail": report.get("detail"),
        "blamed_at": at if blames_release(report) else None,
    }
    earlier = (
        (_a.beacon_id == row["beacon_id"])
        & (_a.firmware_id == row["firmware_id"])
        & (_a.id != row["id"])
        & (_a.result == "success")
        & _a.late_result.is_(None)
        & (_a.offered_at <= row["offered_at"])
    )
    done = conn.execute(update(attempts).where(earlier).values(**values).returning(attempts))
    return [dict(one._mapping) for one in done]


def get(conn: Connection, attempt_id: str) -> Fields | None:
    """Return an attempt."""
    return _GET.fetch_first(conn, {"attempt": attempt_id})


def last_end_of(conn: Connection, beacon_id: str) -> float:
    """Return when the last of a beacon's attempts ended, UTC seconds; 0 when none has."""
    return conn.scalar(select(func.max(_a.ended_at)).where(_a.beacon_id == beacon_id)) or 0.0


def list_for_beacon(conn: Connection, beacon_id: str, limit: int) -> list[Fields]:
    """Return a beacon's attempts, newest first."""
    query = (
        select(attempts)
        .where(_a.beacon_id == beacon_id)
        .order_by(_a.offered_at.desc(), _a.n.desc())
        .limit(limit)
    )
    return [dict(row._mapping) for row in conn.execute(query)]


def list_for_releases(conn: Connection, firmwares: list[str]) -> list[Any]:
    """Return every attempt at the given releases, in the order of the offers."""
    query = select(attempts).where(_a.firmware_id.in_(firmwares)).order_by(_a.offered_at, _a.id)
    return list(conn.execute(query))


def count_results(conn: Connection, rollout_id: str) -> dict[str, int]:
    """Return the number of a rollout's attempts for each result.

    ``open`` for those under way, ``undone`` for successes that did not last.
    """
    query = select(SHOWN, func.count()).where(_a.rollout_id == rollout_id).group_by(SHOWN)
    return {result or "open": count for result, count in conn.execute(query)}


def list_for_rollout(
    conn: Connection, rollout_id: str, limit: int, after: str = ""
) -> list[Fields]:
    """Return a rollout's attempts by id, those after ``after``."""
    query = (
        select(attempts)
        .where(_a.rollout_id == rollout_id, _a.id > after)
        .order_by(_a.id)
        .limit(limit)
    )
    return [dict(row._mapping) for row in conn.execute(query)]
