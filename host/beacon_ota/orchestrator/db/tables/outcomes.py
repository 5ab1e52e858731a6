"""Outcomes of attempts for the dashboard: counts by reason and release, and their beacons."""

from collections import Counter
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, case, distinct, func, select

from beacon_ota.orchestrator.db.schema import attempts
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.db.tables.attempts import SHOWN, UNDONE

_a = attempts.c
FAILURES = ("failed", "rolled_back", "lost", "undone")


class OutcomeFilter(NamedTuple):
    """A filter of ended attempts: every field that is given narrows it down.

    Attributes:
        result: one of rollout.types.Result, or ``undone``; None: any failure.
        stage, code: of the failure; "" is none given.
        cause: the reset cause that was reported.
        since: ended no earlier, UTC seconds.
    """

    result: str | None = None
    stage: str | None = None
    code: str | None = None
    firmware_id: str | None = None
    rollout_id: str | None = None
    since: float | None = None
    cause: int | None = None

    def clauses(self) -> list[ColumnElement[bool]]:
        """Return the filter as SQL conditions."""
        found: list[ColumnElement[bool]] = [
            _a.result.in_(FAILURES) | UNDONE
            if self.result is None
            else UNDONE
            if self.result == "undone"
            else _a.result == self.result
        ]
        for column, value in ((_a.failed_in, self.stage), (_a.code, self.code)):
            if value is not None:
                found.append(func.coalesce(column, "") == value)
        for column, value in (
            (_a.firmware_id, self.firmware_id),
            (_a.rollout_id, self.rollout_id),
            (_a.reset_cause, self.cause),
        ):
            if value is not None:
                found.append(column == value)
        if self.since is not None:
            found.append(case((UNDONE, _a.late_at), else_=_a.ended_at) >= self.since)
        return found


def count_by_reason(conn: Connection, which: OutcomeFilter) -> list[Fields]:
    """Return failures by result, stage, code and release, the most beacons first."""
    keys = (SHOWN, _a.failed_in, _a.code, _a.firmware_id)
    beacons = func.count(distinct(_a.beacon_id)).label("beacons")
    query = (
        select(*keys, beacons, func.count().label("attempts"), func.max(_a.ended_at).label("last"))
        .where(*which.clauses())
        .group_by(*keys)
        .order_by(beacons.desc())
    )
    return [dict(row._mapping) for row in conn.execute(query)]


def list_beacons(conn: Connection, which: OutcomeFilter) -> set[str]:
    """Return the beacons that have an attempt matching the filter."""
    return set(conn.scalars(select(_a.beacon_id).distinct().where(*which.clauses())))


def list_latest(conn: Connection, which: OutcomeFilter, limit: int) -> list[Fields]:
    """Return the attempts matching the filter, the last to end first."""
    query = select(attempts).where(*which.clauses()).order_by(_a.ended_at.desc()).limit(limit)
    return [dict(row._mapping) for row in conn.execute(query)]


def count_by_release(conn: Connection) -> dict[str, Counter[str]]:
    """Return for each release its attempts by result, and ``mean_s``: how long a success takes."""
    found: dict[str, Counter[str]] = {}
    query = select(_a.firmware_id, _a.result, func.count()).group_by(_a.firmware_id, _a.result)
    for firmware_id, result, count in conn.execute(query):
        found.setdefault(firmware_id, Counter())[result or "open"] = count
    took = func.avg(_a.ended_at - _a.taken_at)
    query = (
        select(_a.firmware_id, took)
        .where(_a.result == "success", _a.taken_at.is_not(None))
        .group_by(_a.firmware_id)
    )
    for firmware_id, mean in conn.execute(query):
        found[firmware_id]["mean_s"] = mean
    return found


def count_reset_causes(conn: Connection, which: OutcomeFilter) -> list[Any]:
    """Return (reset cause, beacons) of the attempts matching the filter, the most first."""
    count = func.count(distinct(_a.beacon_id))
    query = (
        select(_a.reset_cause, count)
        .where(*which.clauses(), _a.reset_cause.is_not(None))
        .group_by(_a.reset_cause)
        .order_by(count.desc())
    )
    return [tuple(row) for row in conn.execute(query)]
