"""Mirrors as their primary knows them: which site each serves, and what it has reported so far."""

import json
from typing import Any, NamedTuple

from sqlalchemy import Connection, insert, select, update

from beacon_ota import __version__
from beacon_ota.errors import InputError
from beacon_ota.orchestrator.db.schema import (
    attempts,
    beacons,
    events,
    firmwares,
    journal,
    mirrors,
    reports,
    rollouts,
    sites,
)
from beacon_ota.orchestrator.db.tables import (
    Fields,
    audit,
    device_types,
    fields,
    former_beacons,
    insert_or_ignore,
    keys,
    mirror_books,
    mirror_watch,
    roaming,
)
from beacon_ota.orchestrator.db.tables import attempts as tries_of
from beacon_ota.orchestrator.db.tables import events as told
from beacon_ota.orchestrator.db.tables import mirror_rows as rows
from beacon_ota.orchestrator.db.tables import rollouts as orders_of
from beacon_ota.orchestrator.db.tables.former_beacons import key_digest
from beacon_ota.orchestrator.db.tables.merge import merge_attempts, says_all_of

_m, _a, _b, _r = mirrors.c, attempts.c, beacons.c, rollouts.c
# The check for each kind of row that a mirror may send, besides beacons and events.
_CHECKS = {
    "attempts": rows.check_attempt,
    "reports": rows.check_report,
    "journal": rows.check_journal_entry,
}
HEARD = tuple(rows.HEARD)  # columns of a beacon that its mirror knows better than the primary
_PARTED = (
    "what it tells does not follow what it told before: its disk or ours was put back from a copy,"
    " or two run with one token; it tells all that it knows again"
)
UPSTREAM = "upstream"  # owner, at a mirror, of an attempt that the mirror does not end


class ImportResult(NamedTuple):
    """The result of importing a mirror's changes: the rows as they are now, and events.

    ``parted``: the exchange does not follow the last one taken, so none of its changes were taken.
    """

    seq: int
    attempts: list[Fields]
    beacons: list[Fields]
    events: list[Fields]
    parted: bool = False


def add(conn: Connection, row: Fields) -> Fields:
    """Store a mirror."""
    conn.execute(insert(mirrors), row)
    found = get(conn, row["id"])
    assert found is not None
    return found


def get(conn: Connection, mirror_id: str) -> Fields | None:
    """Return a mirror."""
    return _read(conn.execute(select(mirrors).where(_m.id == mirror_id)).first())


def list_all(conn: Connection) -> list[Fields]:
    """Return the mirrors that are in use, by name."""
    query = select(mirrors).where(_m.removed_at.is_(None)).order_by(_m.name)
    return [found for row in conn.execute(query) if (found := _read(row)) is not None]


def get_by_token(conn: Connection, token_id: str) -> Fields | None:
    """Return the mirror that a token is for, None when it was removed."""
    query = select(mirrors).where(_m.token_id == token_id, _m.removed_at.is_(None))
    return _read(conn.execute(query).first())


def remove_mirror(conn: Connection, mirror_id: str, now: float) -> list[Fields]:
    """Remove a mirror; the primary takes over its attempts. Returns all open attempts."""
    row = get(conn, mirror_id)
    assert row is not None
    name = f"{row['name'][:50]} ({mirror_id[:8]})"  # the name is free again
    conn.execute(update(mirrors).where(_m.id == mirror_id).values(removed_at=now, name=name))
    conn.execute(update(attempts).where(_a.mirror == mirror_id).values(mirror=None))
    mirror_books.remove_books(conn, mirror_id)
    former_beacons.remove_former(conn, mirror_id)
    mine = select(attempts).where(_a.result.is_(None))
    return [dict(row._mapping) for row in conn.execute(mine)]


def _below(column: Any, site: str) -> Any:
    """Return the condition that a path is a site or lies below it; the site "" matches all."""
    if not site:
        return column == column
    return (column == site) | column.startswith(site + "/", autoescape=True)


# ---- sent to a mirror ----


def export_state(conn: Connection, mirror: Fields, fresh: bool) -> Fields:
    """Return all that a mirror needs to serve its beacons by itself.

    Args:
        fresh: the mirror has no data, so the state includes what the mirror itself once reported.
    """
    site = mirror["site"]
    parts = site.split("/")
    above = ["/".join(parts[:n]) for n in range(1, len(parts))]
    tree = select(sites).where(_below(sites.c.path, site) | sites.c.path.in_(above))
    fleet = [dict(row._mapping) for row in conn.execute(_fleet(site).order_by(_b.id))]
    orders = {row["id"]: row for row in orders_of.list_active(conn)}
    types = {row["device_type"] for row in fleet}
    releases = {row["firmware_id"] for row in orders.values()}
    releases = set(
        conn.scalars(
            select(firmwares.c.id).where(
                firmwares.c.id.in_(releases), firmwares.c.device_type.in_(types)
            )
        )
    )
    orders = {key: row for key, row in orders.items() if row["firmware_id"] in releases}
    tries = select(attempts).where(
        _a.firmware_id.in_(releases), _a.beacon_id.in_(_fleet(site).with_only_columns(_b.id))
    )
    if not fresh:
        tries = tries.where(_a.mirror.is_(None) | (_a.mirror != mirror["id"]))
    found = [dict(row._mapping) for row in conn.execute(tries.order_by(_a.offered_at, _a.id))]
    for one in found:
        one["mirror"] = None if one["mirror"] == mirror["id"] else UPSTREAM
    older = {one["rollout_id"] for one in found} - set(orders)
    for row in conn.execute(select(rollouts).where(_r.id.in_(older))):
        orders[row.id] = dict(row._mapping)
    images = select(firmwares).where(firmwares.c.id.in_(releases)).order_by(firmwares.c.id)
    for row in fleet:
        for name in ("key", "next_key", "given_keys"):
            row[name] = row[name] and row[name].hex()
        if not fresh:
            for name in HEARD:
                row[name] = None
        row["clock_unset"], row["insecure"] = bool(row["clock_unset"]), bool(row["insecure"])
    return {
        "sites": [dict(row._mapping) for row in conn.execute(tree.order_by(sites.c.path))],
        "beacons": fleet,
        "firmwares": [dict(row._mapping) for row in conn.execute(images)],
        "rollouts": [orders[key] for key in sorted(orders)],
        "attempts": found,
    }


def get_served_release(conn: Connection, mirror: Fields, firmware_id: str) -> Fields | None:
    """Return a release if a mirror may have it: it is part of the mirror's :func:`export_state`."""
    row = fields(conn.execute(select(firmwares).where(firmwares.c.id == firmware_id)).first())
    if row is None or row["state"] == "deprecated":
        return None
    if all(order["firmware_id"] != firmware_id for order in orders_of.list_active(conn)):
        return None
    query = _fleet(mirror["site"]).where(_b.device_type == row["device_type"]).limit(1)
    return row if conn.execute(query).first() else None


def _fleet(site: str) -> Any:
    return select(beacons).where(_below(_b.site, site)) if site else select(beacons)


# ---- received from a mirror ----


def import_changes(
    conn: Connection,
    mirror_id: str,
    page: mirror_books.BookPage,
    changes: list[Fields],
    now: float,
    says: Fields,
) -> ImportResult:
    """Store the changes that a mirror sends, each once and in order.

    A change that was sent before has no effect when it is sent again, even under another number.

    Args:
        page: the place of this exchange in the mirror's books.
        changes: ``seq``, ``what`` and ``row`` of each, in ascending order of ``seq``.

    Raises:
        InputError: ``mirror_change``; none of the changes were taken then.
    """
    mirror = get(conn, mirror_id)
    assert mirror is not None
    stand = mirror_books.compare_page(conn, mirror_id, page)
    values: Fields = {"seen_at": now, "status": mirror_watch.build_status(conn, mirror, says)}
    if stand.parted:
        conn.execute(update(mirrors).where(_m.id == mirror_id).values(**values))
        data = {"mirror": mirror["name"], "site": mirror["site"], "detail": _PARTED}
        return ImportResult(
            stand.seq, [], [], [told.add(conn, now, "mirror.parted", mirror_id, data)], parted=True
        )
    seq = stand.seq
    tries: dict[str, Fields] = {}
    fleet: dict[str, Fields] = {}
    heard: list[Fields] = []
    if stand.new:
        _take_back(conn, mirror, tries)
    for change in changes:
        seq = max(seq, change["seq"])
        what, row = change["what"], change["row"]
        if row is None:  # pruned since
            continue
        if what == "halts":  # done before, by the engine
            if (name := mirror_books.halt_name(rows.check_halt(row))) is not None:
                mirror_books.record_halt(conn, mirror_id, name, now)
        elif what == "beacons":
            if (event := _hear(conn, mirror, row, now, fleet)) is not None:
                heard.append(event)
        elif what == "events":
            if (event := _take_event(conn, mirror, row, stand.sure)) is not None:
                heard.append(event)
        elif what in _CHECKS:
            _take(conn, mirror, what, _CHECKS[what](row), tries, stand.sure)
        else:
            raise InputError(
                "mirror_change",
                f"this release ({__version__}) knows no change of {str(what)[:80]!r}",
                found=str(what)[:80],
                expected=["beacons", "events", "halts", *_CHECKS],
            )
    whose = {row["beacon_id"] for row in tries.values()} | set(fleet)
    corrected, ends = roaming.correct_given_up(conn, sorted(whose), now)
    tries |= {row["id"]: row for row in corrected}
    if rows.is_last_batch(says, len(changes)):
        values["even_at"] = now
    values |= {"epoch": page.epoch, "seq": seq}
    conn.execute(update(mirrors).where(_m.id == mirror_id).values(**values))
    mirror_books.record_exchange(conn, mirror_id, page, seq, now)
    return ImportResult(seq, list(tries.values()), list(fleet.values()), heard + ends)


def _take_back(conn: Connection, mirror: Fields, tries: dict[str, Fields]) -> None:
    """Take over a mirror's open attempts that the primary does not send it with its new book."""
    live = select(_r.firmware_id).where(_r.status != "aborted", _r.ended_at.is_(None))
    given = _a.firmware_id.in_(live) & _a.beacon_id.in_(
        _fleet(mirror["site"]).with_only_columns(_b.id)
    )
    left = (_a.mirror == mirror["id"]) & _a.result.is_(None) & ~given
    for row in conn.execute(update(attempts).where(left).values(mirror=None).returning(attempts)):
        tries[row.id] = dict(row._mapping)


def _take(
    conn: Connection,
    mirror: Fields,
    what: str,
    row: Fields,
    tries: dict[str, Fields],
    sure: bool,
) -> None:
    theirs = _theirs(conn, mirror, row["beacon_id"])
    if not theirs and not former_beacons.may_report(conn, mirror["id"], row["beacon_id"]):
        return  # the beacon was removed, or does not belong to the mirror
    if what == "attempts":
        if (found := _take_attempt(conn, mirror, row, theirs)) is not None:
            tries[row["id"]] = found
    elif what == "journal":
        insert_or_ignore(conn, journal, [row])
    elif sure or not _is_there(conn, reports, row):
        conn.execute(insert(reports), row)


def _is_there(conn: Connection, table: Any, row: Fields) -> bool:
    """Tell whether the table contains exactly this row."""
    same = [table.c[name].is_not_distinct_from(value) for name, value in row.items()]
    return conn.execute(select(table.c.id).where(*same).limit(1)).first() is not None


def _take_event(conn: Connection, mirror: Fields, told_row: Any, sure: bool) -> Fields | None:
    """Store a mirror's event, if mirrors make such events and its subject belongs to the mirror."""
    row = rows.check_event(told_row)
    if row is None:
        return None
    subject, data = row["subject"], row["data"]
    about = row["kind"].partition(".")[0]
    if about == "beacon":
        if not _may_tell(conn, mirror, subject):
            return None
    elif about == "attempt":
        known = conn.execute(select(_a.beacon_id, _a.mirror).where(_a.id == subject)).first()
        if known is None or not _may_tell(conn, mirror, known.beacon_id):
            return None
        data["beacon"] = known.beacon_id
    else:
        order = conn.execute(select(_r.firmware_id).where(_r.id == subject)).first()
        if order is None or get_served_release(conn, mirror, order.firmware_id) is None:
            return None
    data = {**data, "mirror": mirror["name"]}
    if not sure:
        text = json.dumps(data, separators=(",", ":"))
        same = {"at": row["at"], "kind": row["kind"], "subject": subject, "data": text}
        if _is_there(conn, events, same):
            return None
    return told.add(conn, row["at"], row["kind"], subject, data)


def _take_attempt(conn: Connection, mirror: Fields, row: Fields, theirs: bool) -> Fields | None:
    """Store a mirror's row of an attempt, merged with the row that the primary has.

    Args:
        theirs: the beacon belongs to the mirror's site. If it has left the site, the mirror does
            not know what happened afterwards, so an attempt that the mirror gave up stays open.
    """
    given_up = not theirs and row["result"] in tries_of.GIVEN_UP and row["late_result"] is None
    if given_up and row["result"] != "expired":
        row |= {"result": None, "ended_at": None}
    known = fields(conn.execute(select(attempts).where(_a.id == row["id"])).first())
    if known is None:
        order = conn.execute(select(rollouts).where(_r.id == row["rollout_id"])).first()
        if order is None or order.firmware_id != row["firmware_id"]:
            return None  # the rollout does not exist, or is of another release
        _check_place(row, json.loads(order.plan))
        row["n"] = tries_of.free_number(conn, row)  # the beacon may have polled the primary, too
        # An attempt that the primary made and lost since (it was restored) belongs to the primary.
        row["mirror"] = mirror["id"] if theirs and row["mirror"] is None else None
        conn.execute(insert(attempts), row)
        return row
    if (known["beacon_id"], known["rollout_id"]) != (row["beacon_id"], row["rollout_id"]):
        raise InputError("mirror_change", "this attempt is another one's", found=row["id"])
    if (row["wave"], row["stage"]) != (known["wave"], known["stage"]):
        order = conn.execute(select(rollouts).where(_r.id == row["rollout_id"])).one()
        _check_place(row, json.loads(order.plan))
    merged = merge_attempts(known, row)
    if given_up or (merged["result"] is not None and not says_all_of(row, merged)):
        merged["mirror"] = None  # so that the next state for the mirror includes the attempt
    if merged != known:
        conn.execute(update(attempts).where(_a.id == row["id"]).values(**merged))
    return merged


def _check_place(row: Fields, plan: Fields) -> None:
    """Refuse a wave or a stage that the rollout's plan does not have."""
    waves = plan["waves"]
    if row["wave"] < len(waves):
        ladder = waves[row["wave"]].get("ladder") or plan["ladder"]
        if row["stage"] < len(ladder):
            return
    raise InputError(
        "mirror_change", "no such wave or stage", found=f"{row['wave']}/{row['stage']}"
    )


def _hear(
    conn: Connection, mirror: Fields, row: Any, now: float, fleet: dict[str, Fields]
) -> Fields | None:
    """Store what a mirror heard from a beacon, including that the beacon uses a new key.

    Returns:
        The event that the beacon was registered as the device type that it states; or None.
    """
    given = rows.check_beacon(row, now)
    beacon_id = rows.beacon_id_of(row)
    if beacon_id is None or not _may_tell(conn, mirror, beacon_id):
        return None
    known = conn.execute(select(beacons).where(_b.id == row["id"])).one()._mapping
    values: Fields = {}
    if (given["last_seen"] or 0.0) >= (known["last_seen"] or 0.0):
        values = {name: value for name, value in given.items() if value is not None}
        values.pop("first_seen", None)
        values["first_seen"] = known["first_seen"] or given["first_seen"] or given["last_seen"]
    told = row.get("key_digest")
    proven = next(
        (key for key in keys.usable_keys(dict(known))[1:] if key_digest(key) == told), None
    )
    if proven is not None:
        values |= keys.columns_after_use(dict(known), proven)
        if not _theirs(conn, mirror, row["id"]):
            former_beacons.set_last_key(conn, mirror["id"], row["id"], proven)
        audit.append(conn, now, f"mirror {mirror['name']}", "beacon.rekeyed", row["id"])
    event = None
    if (said := values.get("said_type")) is not None:
        event = device_types.adopt_stated_type(
            conn, row["id"], said, now, f"mirror {mirror['name']}"
        )
    if values:
        conn.execute(update(beacons).where(_b.id == row["id"]).values(**values))
        fleet[row["id"]] = dict(
            conn.execute(select(beacons).where(_b.id == row["id"])).one()._mapping
        )
    return event


def _theirs(conn: Connection, mirror: Fields, beacon_id: str) -> bool:
    query = _fleet(mirror["site"]).where(_b.id == beacon_id).limit(1)
    return conn.execute(query).first() is not None


def _may_tell(conn: Connection, mirror: Fields, beacon_id: str) -> bool:
    return _theirs(conn, mirror, beacon_id) or former_beacons.may_report(
        conn, mirror["id"], beacon_id
    )


def _read(row: Any) -> Fields | None:
    found = fields(row)
    if found is not None:
        document = json.loads(found["status"])
        found["status"], found["watch"] = (
            rows.check_status(document),
            mirror_watch.watch_of(document),
        )
    return found
