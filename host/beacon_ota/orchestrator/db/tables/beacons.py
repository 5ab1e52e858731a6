"""Beacons: their identity, the release that they run, and when they were last heard from."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, tuple_, update

from beacon_ota.orchestrator.db.schema import beacons, journal, reports
from beacon_ota.orchestrator.db.tables import Fields, fields, former_beacons, insert_or_ignore
from beacon_ota.orchestrator.db.tables.prepared import PreparedStatement, defer_insert
from beacon_ota.orchestrator.limits import LIMITS

_b = beacons.c
_SEEN = PreparedStatement(
    update(beacons)
    .where(_b.id == bindparam("beacon"))
    .values(
        last_seen=bindparam("at"),
        first_seen=func.coalesce(_b.first_seen, bindparam("at")),
        version=bindparam("running"),
        image=bindparam("running_image"),
        state=bindparam("running_state"),
        address=bindparam("from_address"),
        said_type=func.coalesce(bindparam("says_type"), _b.said_type),
        refusals=func.coalesce(bindparam("times_refused"), _b.refusals),
    )
)
_REFUSED = PreparedStatement(
    update(beacons)
    .where(_b.id == bindparam("beacon"))
    .values(
        refused_code=bindparam("why_refused"),
        refused_at=bindparam("when_refused"),
        refusals=bindparam("times_refused"),
    )
)
_SAID = PreparedStatement(
    update(beacons)
    .where(_b.id == bindparam("beacon"))
    .values(
        clock_unset=bindparam("no_clock"),
        insecure=bindparam("unsigned"),
        reset_cause=func.coalesce(bindparam("cause"), _b.reset_cause),
        heap_free_min=func.coalesce(bindparam("heap"), _b.heap_free_min),
    )
)
_REPORT = PreparedStatement(insert(reports), ("beacon_id", "attempt_id", "at", "status", "body"))
_OPEN_TO = PreparedStatement(
    select(_b.channel, _b.device_type, _b.quarantined_at).where(_b.id == bindparam("beacon"))
)
# What a listing shows: never a key.
SHOWN = [column for column in _b if column.name not in ("key", "next_key", "given_keys")]


def add(conn: Connection, row: Fields) -> None:
    """Register a beacon."""
    conn.execute(insert(beacons), row)


def get(conn: Connection, beacon_id: str) -> Fields | None:
    """Return a beacon with its keys."""
    return fields(conn.execute(select(beacons).where(_b.id == beacon_id)).first())


def offer_scope(conn: Connection, beacon_id: str) -> tuple[str, str] | None:
    """Return a beacon's channel and device type, which decide the releases it may be offered.

    None when the beacon may be offered nothing, because it is quarantined or removed.
    """
    row = _OPEN_TO.fetch_first(conn, {"beacon": beacon_id})
    if row is None or row["quarantined_at"] is not None:
        return None
    return row["channel"], row["device_type"]


def update_columns(conn: Connection, beacon_id: str, **values: Any) -> Fields | None:
    """Set columns of a beacon; None when it does not exist."""
    if "site" in values:
        former_beacons.record_departure(conn, beacon_id, values["site"])
    conn.execute(update(beacons).where(_b.id == beacon_id).values(**values))
    return get(conn, beacon_id)


def remove(conn: Connection, beacon_id: str) -> bool:
    """Remove a beacon, its reports and its journal; its attempts stay, as they were counted."""
    for table in (reports, journal):
        conn.execute(delete(table).where(table.c.beacon_id == beacon_id))
    former_beacons.remove_former(conn, beacon_id=beacon_id)
    return bool(conn.execute(delete(beacons).where(_b.id == beacon_id)).rowcount)


def list_all(conn: Connection) -> list[Any]:
    """Return all beacons with their keys."""
    return list(conn.execute(select(beacons)))


def count(conn: Connection) -> int:
    """Return how many beacons are registered."""
    return conn.scalar(select(func.count()).select_from(beacons)) or 0


def record_seen(conn: Connection, rows: list[Fields], refused: Sequence[Fields] = ()) -> None:
    """Write what a batch of polls said: ``beacon``, ``at``, ``running``, …

    Args:
        refused: rows of the requests that were refused: ``beacon``, ``why_refused``, …
    """
    if refused:
        _REFUSED.execute_many(conn, list(refused))
    if rows:
        _SEEN.execute_many(conn, rows)


def record_self_report(conn: Connection, beacon_id: str, report: Fields) -> None:
    """Store the facts about the beacon itself from a report that belongs to no attempt."""
    values = {
        "beacon": beacon_id,
        "no_clock": report.get("clock_unset", False),
        "unsigned": report.get("insecure", False),
        "cause": report.get("reset_cause"),
        "heap": report.get("heap_free_min"),
    }
    _SAID.fetch_first(conn, values)


def list_page(
    conn: Connection,
    *,
    after: str = "",
    limit: int = LIMITS.page,
    site: str | None = None,
    version: str | None = None,
    device_type: str | None = None,
    channel: str | None = None,
    tag: str | None = None,
    search: str | None = None,
    quarantined: bool | None = None,
    questioned: bool | None = None,
    refused: bool | None = None,
    silent_since: float | None = None,
) -> tuple[int, list[Fields]]:
    """Return how many beacons match, and those after the id ``after``, by id.

    Args:
        site: a path; everything below it matches too.
        search: part of the id.
        questioned: the beacon states another device type than the registered one.
        refused: a request of the beacon was refused since its last answered poll.
        silent_since: the beacon was not heard from since this time, or never.
    """
    matches = []
    if site is not None:
        matches.append((_b.site == site) | _b.site.startswith(site + "/", autoescape=True))
    for column, value in (
        (_b.version, version),
        (_b.device_type, device_type),
        (_b.channel, channel),
    ):
        if value is not None:
            matches.append(column == value)
    if tag is not None:
        matches.append(_b.tags.contains(json.dumps(tag), autoescape=True))
    if search is not None:
        matches.append(_b.id.contains(search, autoescape=True))
    if quarantined is not None:
        known = _b.quarantined_at
        matches.append(known.is_not(None) if quarantined else known.is_(None))
    for wanted, found in (
        (questioned, _b.said_type.is_not(None) & (_b.said_type != _b.device_type)),
        (refused, func.coalesce(_b.refusals, 0) > 0),
    ):
        if wanted is not None:
            matches.append(func.coalesce(found, False) == wanted)
    if silent_since is not None:
        matches.append(_b.last_seen.is_(None) | (_b.last_seen < silent_since))
    total = conn.scalar(select(func.count()).select_from(beacons).where(*matches)) or 0
    query = select(*SHOWN).where(*matches, _b.id > after).order_by(_b.id).limit(limit)
    names = [column.name for column in SHOWN]
    return total, [dict(zip(names, row, strict=True)) for row in conn.execute(query)]


def add_report(
    conn: Connection, beacon_id: str, attempt_id: str | None, at: float, status: str, body: str
) -> None:
    """Keep a report."""
    defer_insert(
        conn,
        _REPORT,
        {
            "beacon_id": beacon_id,
            "attempt_id": attempt_id,
            "at": at,
            "status": status,
            "body": body,
        },
    )


def list_reports(conn: Connection, beacon_id: str, limit: int) -> list[Fields]:
    """Return a beacon's reports, newest first."""
    query = (
        select(reports)
        .where(reports.c.beacon_id == beacon_id)
        .order_by(reports.c.id.desc())
        .limit(limit)
    )
    return [{**row._mapping, "body": json.loads(row.body)} for row in conn.execute(query)]


def add_journal_entries(
    conn: Connection, beacon_id: str, entries: list[list[Any]], at: float
) -> None:
    """Store journal entries ``[seq, utc, stage, code, detail]``, each once."""
    rows: list[Fields] = [
        {
            "beacon_id": beacon_id,
            "seq": seq,
            "digest": hashlib.sha256(f"{utc}\n{stage}\n{code}\n{detail}".encode()).hexdigest()[:16],
            "utc": utc,
            "stage": stage,
            "code": code,
            "detail": detail,
            "stored_at": at,
        }
        for seq, utc, stage, code, detail in entries
    ]
    insert_or_ignore(conn, journal, rows)


def list_journal(conn: Connection, beacon_id: str, limit: int) -> list[Fields]:
    """Return a beacon's journal, newest first."""
    query = (
        select(journal)
        .where(journal.c.beacon_id == beacon_id)
        .order_by(journal.c.stored_at.desc(), journal.c.seq.desc())
        .limit(limit)
    )
    return [dict(row._mapping) for row in conn.execute(query)]


def prune_history(conn: Connection, most: int | None = None) -> int:
    """Keep the newest reports and journal entries of every beacon, within the bounds.

    A beacon that reports as often as it can adds 100,000 rows between two calls.

    Args:
        most: the largest number of rows of each kind to remove in one call; None for all.

    Returns:
        The number of reports or of journal entries removed, whichever is larger.
    """
    removed = 0
    for table, order, bound in (
        (reports, (reports.c.id.desc(),), LIMITS.report_rows),
        (journal, (journal.c.stored_at.desc(), journal.c.seq.desc()), LIMITS.journal_rows),
    ):
        keys = list(table.primary_key)
        rank = func.row_number().over(partition_by=table.c.beacon_id, order_by=order)
        ranked = select(*keys, rank.label("rank")).subquery()
        old = select(*(ranked.c[key.name] for key in keys)).where(ranked.c["rank"] > bound)
        done = conn.execute(delete(table).where(tuple_(*keys).in_(old.limit(most))))
        removed = max(removed, done.rowcount)
    return removed
