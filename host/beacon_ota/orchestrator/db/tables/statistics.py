"""Counts over the attempts for metrics and reports, computed anew each time."""

from typing import NamedTuple

from sqlalchemy import Connection, case, func, select

from beacon_ota.orchestrator.db.schema import attempts, beacons, deliveries, firmwares, webhooks
from beacon_ota.orchestrator.db.tables.attempts import SHOWN, UNDONE

BUCKETS = (5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1800)  # seconds
_a, _b, _d, _f, _w = attempts.c, beacons.c, deliveries.c, firmwares.c, webhooks.c
_FAILURES = ("failed", "rolled_back", "lost")


class Transfers(NamedTuple):
    """What the attempts at a release have moved: bytes and sectors, over all reports."""

    fetched: int
    saved: int  # bytes less than the whole image, over the attempts that fetched less
    kept: int
    written: int


class Statistics(NamedTuple):
    """Counts by firmware id and more; a duration is (cumulative buckets, sum in seconds)."""

    results: dict[tuple[str, str | None], int]
    failures: dict[tuple[str, str, str | None, str | None], int]
    late: dict[tuple[str, str], int]
    durations: dict[str, tuple[list[tuple[str, float]], float]]
    insecure: dict[tuple[str, str], int]  # beacons by device type and version
    deliveries: dict[tuple[str, str], int]  # of webhooks, by name and state
    transfers: dict[str, Transfers]


def read_statistics(conn: Connection) -> Statistics:
    """Compute the statistics from the tables."""
    count = func.count()
    results = select(_a.firmware_id, _a.result, count).group_by(_a.firmware_id, _a.result)
    keys = (_a.firmware_id, SHOWN, _a.failed_in, _a.code)
    failures = select(*keys, count).where(_a.result.in_(_FAILURES) | UNDONE).group_by(*keys)
    late = (
        select(_a.firmware_id, _a.late_result, count)
        .where(_a.late_result.is_not(None))
        .group_by(_a.firmware_id, _a.late_result)
    )
    took = _a.ended_at - _a.taken_at
    within = [func.sum(case((took <= bound, 1), else_=0)) for bound in BUCKETS]
    durations = (
        select(_a.firmware_id, count, func.sum(took), *within)
        .where(_a.result == "success", _a.taken_at.is_not(None))
        .group_by(_a.firmware_id)
    )
    # An attempt that broke off saved no bytes: the next attempt fetches the rest.
    less = (_a.result == "success") & (_a.bytes_fetched < _f.size)
    moved = (
        select(
            _a.firmware_id,
            func.sum(_a.bytes_fetched),
            func.sum(case((less, _f.size - _a.bytes_fetched), else_=0)),
            func.sum(func.coalesce(_a.sectors_kept, 0)),
            func.sum(func.coalesce(_a.sectors_written, 0)),
        )
        .join(firmwares, _f.id == _a.firmware_id)
        .where(_a.bytes_fetched.is_not(None))
        .group_by(_a.firmware_id)
    )
    own = (_b.device_type, _b.version)
    insecure = select(*own, count).where(_b.insecure).group_by(*own)
    told = (
        select(_w.name, _d.state, count)
        .join(deliveries, _d.webhook_id == _w.id)
        .group_by(_w.name, _d.state)
    )
    return Statistics(
        {(row[0], row[1]): row[2] for row in conn.execute(results)},
        {(row[0], row[1], row[2], row[3]): row[4] for row in conn.execute(failures)},
        {(row[0], row[1]): row[2] for row in conn.execute(late)},
        {row[0]: _histogram(*list(row)[1:]) for row in conn.execute(durations)},
        {(row[0], row[1] or ""): row[2] for row in conn.execute(insecure)},
        {(row[0], row[1]): row[2] for row in conn.execute(told)},
        {row[0]: Transfers(*map(int, row[1:])) for row in conn.execute(moved)},
    )


def _histogram(count: int, total: float, *within: int) -> tuple[list[tuple[str, float]], float]:
    pairs = [(str(float(bound)), float(n)) for bound, n in zip(BUCKETS, within, strict=True)]
    return [*pairs, ("+Inf", float(count))], float(total)
