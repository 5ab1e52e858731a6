"""Mirrors, as their primary knows them: what each serves, and what it has told so far."""

import hashlib
import json
from typing import Any, NamedTuple

from sqlalchemy import Connection, insert, select, update

from beacon_ota.errors import InputError
from beacon_ota.orchestrator.schema import (
    attempts,
    beacons,
    firmwares,
    journal,
    mirrors,
    reports,
    rollouts,
    sites,
)
from beacon_ota.orchestrator.store import (
    Fields,
    audit,
    device_types,
    fields,
    insert_or_ignore,
    keys,
)
from beacon_ota.orchestrator.store import attempts as tries_of
from beacon_ota.orchestrator.store import events as told
from beacon_ota.orchestrator.store import mirror_rows as rows
from beacon_ota.orchestrator.store import rollouts as orders_of

_m, _a, _b, _r = mirrors.c, attempts.c, beacons.c, rollouts.c
# What a mirror may tell of besides beacons and events: how each row is checked.
_CHECKS = {
    "attempts": rows.attempt,
    "reports": rows.beacon_report,
    "journal": rows.journal_entry,
}
HEARD = tuple(rows.HEARD)  # what of a beacon a mirror knows better than we do
_OPEN = (None, "expired")
_CAUSE = ("failed_in", "code", "detail")


class Told(NamedTuple):
    """What a mirror's changes came to: rows as they are now, and events."""

    seq: int
    attempts: list[Fields]
    beacons: list[Fields]
    events: list[Fields]


def add(conn: Connection, row: Fields) -> Fields:
    """Store a mirror."""
    conn.execute(insert(mirrors), row)
    found = get(conn, row["id"])
    assert found is not None
    return found


def get(conn: Connection, mirror_id: str) -> Fields | None:
    """Return a mirror."""
    return _read(conn.execute(select(mirrors).where(_m.id == mirror_id)).first())


def every(conn: Connection) -> list[Fields]:
    """Return the mirrors that are in use, by name."""
    query = select(mirrors).where(_m.removed_at.is_(None)).order_by(_m.name)
    return [found for row in conn.execute(query) if (found := _read(row)) is not None]


def by_token(conn: Connection, token_id: str) -> Fields | None:
    """Return the mirror that a token is for, None when it was removed."""
    query = select(mirrors).where(_m.token_id == token_id, _m.removed_at.is_(None))
    return _read(conn.execute(query).first())


def remove(conn: Connection, mirror_id: str, now: float) -> list[Fields]:
    """Give a mirror up; its attempts under way are ours to settle. Returns those."""
    row = get(conn, mirror_id)
    assert row is not None
    name = f"{row['name'][:50]} ({mirror_id[:8]})"  # the name is free again
    conn.execute(update(mirrors).where(_m.id == mirror_id).values(removed_at=now, name=name))
    conn.execute(update(attempts).where(_a.mirror == mirror_id).values(mirror=None))
    mine = select(attempts).where(_a.result.is_(None))
    return [dict(row._mapping) for row in conn.execute(mine)]


def _below(column: Any, site: str) -> Any:
    """Return the condition that a path is a site's, or below it; "" is everything."""
    if not site:
        return column == column
    return (column == site) | column.startswith(site + "/", autoescape=True)


# ---- what a mirror is given ----


def state(conn: Connection, mirror: Fields, fresh: bool) -> Fields:
    """Return all that a mirror needs to serve its beacons by itself.

    Args:
        fresh: it knows nothing: also what it told us before.
    """
    site = mirror["site"]
    parts = site.split("/")
    above = ["/".join(parts[:n]) for n in range(1, len(parts))]
    tree = select(sites).where(_below(sites.c.path, site) | sites.c.path.in_(above))
    fleet = [dict(row._mapping) for row in conn.execute(_fleet(site).order_by(_b.id))]
    orders = {row["id"]: row for row in orders_of.live(conn)}
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
        one["mirror"] = None if one["mirror"] == mirror["id"] else "upstream"
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


def serves(conn: Connection, mirror: Fields, firmware_id: str) -> Fields | None:
    """Return the release if a mirror may have it: one that it is told of (:func:`state`)."""
    row = fields(conn.execute(select(firmwares).where(firmwares.c.id == firmware_id)).first())
    if row is None or row["state"] == "deprecated":
        return None
    if all(order["firmware_id"] != firmware_id for order in orders_of.live(conn)):
        return None
    query = _fleet(mirror["site"]).where(_b.device_type == row["device_type"]).limit(1)
    return row if conn.execute(query).first() else None


def _fleet(site: str) -> Any:
    return select(beacons).where(_below(_b.site, site)) if site else select(beacons)


# ---- what a mirror tells ----


def take(
    conn: Connection, mirror_id: str, epoch: str, changes: list[Fields], now: float, says: Fields
) -> Told:
    """Take over what a mirror tells, each change once and in its order.

    Args:
        epoch: of the mirror's data: what another one has told counts from 1 again.
        changes: ``seq``, ``what`` and ``row``, rising.

    Raises:
        InputError: ``mirror_change``; nothing of it was taken then.
    """
    mirror = get(conn, mirror_id)
    assert mirror is not None
    seq = mirror["seq"] if mirror["epoch"] == epoch else 0
    tries: dict[str, Fields] = {}
    fleet: dict[str, Fields] = {}
    heard: list[Fields] = []
    for change in changes:
        if change["seq"] <= seq:
            continue
        seq = change["seq"]
        what, row = change["what"], change["row"]
        if row is None or what == "halts":  # pruned since; or done before, by the engine
            continue
        if what == "beacons":
            if (event := _hear(conn, mirror, row, now, fleet)) is not None:
                heard.append(event)
        elif what == "events":
            if (event := _take_event(conn, mirror, row)) is not None:
                heard.append(event)
        elif what in _CHECKS:
            _take(conn, mirror, what, _CHECKS[what](row), tries)
        else:
            raise InputError("mirror_change", "no such change", found=str(what)[:80])
    values = {"epoch": epoch, "seq": seq, "seen_at": now, "status": json.dumps(rows.status(says))}
    conn.execute(update(mirrors).where(_m.id == mirror_id).values(**values))
    return Told(seq, list(tries.values()), list(fleet.values()), heard)


def _take(
    conn: Connection, mirror: Fields, what: str, row: Fields, tries: dict[str, Fields]
) -> None:
    if not _theirs(conn, mirror, row["beacon_id"]):
        return  # removed or moved away meanwhile
    if what == "attempts":
        if (found := _take_attempt(conn, mirror, row)) is not None:
            tries[row["id"]] = found
    elif what == "journal":
        insert_or_ignore(conn, journal, [row])
    else:
        conn.execute(insert(reports), row)


def _take_event(conn: Connection, mirror: Fields, told_row: Any) -> Fields | None:
    """Take an event over: of the mirror's own kinds, and about beacons and rollouts of its own."""
    row = rows.event(told_row)
    if row is None:
        return None
    subject, data = row["subject"], row["data"]
    about = row["kind"].partition(".")[0]
    if about == "beacon":
        if not _theirs(conn, mirror, subject):
            return None
    elif about == "attempt":
        known = conn.execute(select(_a.beacon_id, _a.mirror).where(_a.id == subject)).first()
        if known is None or not _theirs(conn, mirror, known.beacon_id):
            return None
        data["beacon"] = known.beacon_id
    else:
        order = conn.execute(select(_r.firmware_id).where(_r.id == subject)).first()
        if order is None or serves(conn, mirror, order.firmware_id) is None:
            return None
    return told.add(conn, row["at"], row["kind"], subject, {**data, "mirror": mirror["name"]})


def _take_attempt(conn: Connection, mirror: Fields, row: Fields) -> Fields | None:
    """Take an attempt's row over; the first result that we heard of stays."""
    known = fields(conn.execute(select(attempts).where(_a.id == row["id"])).first())
    if known is None:
        order = conn.execute(select(rollouts).where(_r.id == row["rollout_id"])).first()
        if order is None or order.firmware_id != row["firmware_id"]:
            return None  # a rollout that never was
        _check_place(row, json.loads(order.plan))
        row["n"] = tries_of.free_number(conn, row)  # the beacon may have asked us directly, too
        row["mirror"] = mirror["id"]
        conn.execute(insert(attempts), row)
        return row
    if (known["beacon_id"], known["rollout_id"]) != (row["beacon_id"], row["rollout_id"]):
        raise InputError("mirror_change", "this attempt is another one's", found=row["id"])
    if (row["wave"], row["stage"]) != (known["wave"], known["stage"]):
        order = conn.execute(select(rollouts).where(_r.id == row["rollout_id"])).one()
        _check_place(row, json.loads(order.plan))
    row["mirror"], row["n"] = known["mirror"], known["n"]
    row["blamed_at"] = row["blamed_at"] or known["blamed_at"]
    if known["result"] not in _OPEN and known["result"] != row["result"]:
        late = {} if row["blamed_at"] is None else {"blamed_at": row["blamed_at"]}
        if row["result"] not in (None, "expired") and known["late_result"] is None:
            late |= {"late_result": row["result"], "late_at": row["ended_at"]}
        row = {**known, **late}
    elif known["late_result"] is not None and row["late_result"] is None:
        # It was heard here, by another way, how it went on.
        row |= {name: known[name] for name in ("late_result", "late_at", *_CAUSE)}
    conn.execute(update(attempts).where(_a.id == row["id"]).values(**row))
    return row


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
    """Note what a mirror heard of a beacon, and that it uses its new key.

    Returns:
        The event that it is another board than it was registered as.
    """
    given = rows.heard(row, now)
    if not isinstance(row.get("id"), str) or not _theirs(conn, mirror, row["id"]):
        return None
    known = conn.execute(select(beacons).where(_b.id == row["id"])).one()._mapping
    values: Fields = {}
    if (given["last_seen"] or 0.0) >= (known["last_seen"] or 0.0):
        values = {name: value for name, value in given.items() if value is not None}
        values.pop("first_seen", None)
        values["first_seen"] = known["first_seen"] or given["first_seen"] or given["last_seen"]
    told = row.get("key_digest")
    proven = next((key for key in keys.of(dict(known))[1:] if digest(key) == told), None)
    if proven is not None:
        values |= keys.used(dict(known), proven)
        audit.add(conn, now, f"mirror {mirror['name']}", "beacon.rekeyed", row["id"])
    event = None
    if (said := values.get("said_type")) is not None:
        event = device_types.adopt(conn, row["id"], said, now, f"mirror {mirror['name']}")
    if values:
        conn.execute(update(beacons).where(_b.id == row["id"]).values(**values))
        fleet[row["id"]] = dict(
            conn.execute(select(beacons).where(_b.id == row["id"])).one()._mapping
        )
    return event


def digest(key: bytes) -> str:
    """Return what a mirror tells of a key: which one, and not the key."""
    return hashlib.sha256(b"beacon-ota key\n" + key).hexdigest()


def _theirs(conn: Connection, mirror: Fields, beacon_id: str) -> bool:
    query = _fleet(mirror["site"]).where(_b.id == beacon_id).limit(1)
    return conn.execute(query).first() is not None


def _read(row: Any) -> Fields | None:
    found = fields(row)
    if found is not None:
        found["status"] = rows.status(json.loads(found["status"]))
    return found
