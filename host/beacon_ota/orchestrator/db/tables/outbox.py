"""A mirror's side of the exchange: the changes to send, and storing what the primary sends.

Triggers write the key of every changed row into ``changes``, in the transaction of the change; the
row itself is read when it is sent. A row that changed twice is sent once, in its present form, at
its later place. So the number of rows bounds the backlog, however long the uplink is down.
"""

import json
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, delete, func, insert, select, update

from beacon_ota.orchestrator.db.schema import (
    attempts,
    beacons,
    changes,
    events,
    firmwares,
    journal,
    reports,
    rollouts,
    settings,
    sites,
)
from beacon_ota.orchestrator.db.tables import Fields, keys, new_id
from beacon_ota.orchestrator.db.tables import attempts as tries_of
from beacon_ota.orchestrator.db.tables.changes import get_setting, set_setting
from beacon_ota.orchestrator.db.tables.merge import merge_attempts, says_all_of
from beacon_ota.orchestrator.db.tables.mirrors import HEARD, key_digest
from beacon_ota.orchestrator.rollout.types import Status

_c, _a, _r, _s = changes.c, attempts.c, rollouts.c, settings.c
_EPOCH = "mirror.epoch"
_AFTER = "mirror.after"  # mark of the last exchange that the primary has taken
_MARK = "mirror.mark"  # of the one that is being told: it is the same until it was taken
SUPPRESS_TRIGGERS = (
    "mirror.quiet"  # there while the primary's word is written down: that is no news to it
)
_HALT = "mirror.halt."  # … of a rollout that is halted here, until the primary has heard of it
_ASKED = "mirror.asked."  # … when it was halted that the primary has heard of
_MOVES = "mirror.moves"  # up to which move of its rollouts the primary's word is in force here
_KEYS = {
    "attempts": ("NEW.id", "INSERT", "UPDATE"),
    "reports": ("NEW.id", "INSERT"),
    "journal": ("NEW.beacon_id || '|' || NEW.seq || '|' || NEW.digest", "INSERT"),
    "events": ("NEW.id", "INSERT"),
    "beacons": ("NEW.id", "UPDATE"),
}


class Item(NamedTuple):
    """Something to tell; ``row`` is None when it is gone."""

    seq: int
    what: str
    row: Fields | None


def install_triggers(conn: Connection) -> str:
    """Set the triggers up; returns the epoch of this data."""
    for table, (key, *kinds) in _KEYS.items():
        for kind in kinds:
            name = f"mirror_{table}_{kind.lower()}"
            conn.exec_driver_sql(
                f"CREATE TRIGGER IF NOT EXISTS {name} AFTER {kind} ON {table}"
                f" WHEN NOT EXISTS (SELECT 1 FROM settings WHERE key = '{SUPPRESS_TRIGGERS}') BEGIN"
                f" DELETE FROM changes WHERE what = '{table}' AND key = {key};"
                f" INSERT INTO changes (what, key) VALUES ('{table}', {key}); END"
            )
    conn.execute(delete(settings).where(_s.key == SUPPRESS_TRIGGERS))
    epoch = get_setting(conn, _EPOCH)
    if epoch is None:
        epoch = new_id()
        set_setting(conn, _EPOCH, epoch)
    return epoch


def backlog_size(conn: Connection) -> int:
    """Return how much is still to be told."""
    return conn.scalar(select(func.count()).select_from(changes)) or 0


def read_batch(conn: Connection, limit: int) -> list[Item]:
    """Return what is to be told next, oldest first."""
    rows = conn.execute(select(changes).order_by(_c.seq).limit(limit)).all()
    return [Item(row.seq, row.what, _row(conn, row.what, row.key)) for row in rows]


def next_exchange(conn: Connection, telling: bool) -> tuple[str, str]:
    """Return where the next exchange stands in our book: the mark of the one before, and its own.

    Its own is on the disk before it is sent. So one that is told again is known for what it is, and
    one that follows another than was taken last: a copy of this disk has told something, or the
    primary has forgotten something (``books``).

    Args:
        telling: there is something to tell; otherwise the exchange may have no mark ("").
    """
    mark = get_setting(conn, _MARK) or ""
    if telling and not mark:
        mark = new_id()
        set_setting(conn, _MARK, mark)
    return get_setting(conn, _AFTER) or "", mark


def acknowledge(conn: Connection, seq: int, mark: str) -> None:
    """Forget what the primary has taken, in the exchange of this mark."""
    done = (_c.seq <= seq) & (_c.what == "halts")
    for rollout_id in conn.scalars(select(_c.key).where(done)).all():
        lift_halt(conn, rollout_id)
    conn.execute(delete(changes).where(_c.seq <= seq))
    if mark:
        set_setting(conn, _AFTER, mark)
        conn.execute(delete(settings).where(_s.key == _MARK))


def restart_book(conn: Connection) -> str:
    """Begin a new book, in which all is told that is known here; returns its epoch.

    Events are history and told once: only those that wait are told, and halts, after the attempts
    that they are about.
    """
    epoch = new_id()
    set_setting(conn, _EPOCH, epoch)
    conn.execute(delete(settings).where(_s.key.in_((_AFTER, _MARK))))
    later = _c.what.in_(("events", "halts"))
    waiting = conn.execute(select(_c.what, _c.key).where(later).order_by(_c.seq)).all()
    conn.execute(delete(changes))
    for table, (key, *_) in _KEYS.items():
        if table != "events":
            conn.exec_driver_sql(
                f"INSERT INTO changes (what, key)"
                f" SELECT '{table}', {key.replace('NEW.', '')} FROM {table} ORDER BY rowid"
            )
    for row in waiting:
        conn.execute(insert(changes).values(what=row.what, key=row.key))
    return epoch


# ---- halts ----


def record_halt(
    conn: Connection, rollout_id: str, reason: str, values: Fields, lost: list[str]
) -> None:
    """Note that a rollout is halted here, until the primary has heard of it.

    Args:
        lost: attempts that were given up, and count for it. The primary may know better of them:
            it is told of the halt after those (:func:`queue_halt`).
    """
    conn.execute(update(rollouts).where(_r.id == rollout_id).values(**values))
    said = {"reason": reason, "id": new_id(), "lost": lost}
    set_setting(conn, _HALT + rollout_id, json.dumps(said))
    if not lost:
        _tell(conn, "halts", rollout_id)


def queue_halt(conn: Connection, rollout_id: str, reason: str | None = None) -> None:
    """Have the primary told of a halt that rests on attempts that were given up."""
    said = _said(conn, rollout_id)
    if said is not None:
        said |= {"lost": []} | ({} if reason is None else {"reason": reason})
        set_setting(conn, _HALT + rollout_id, json.dumps(said))
        _tell(conn, "halts", rollout_id)


def lift_halt(conn: Connection, rollout_id: str) -> None:
    """Let go of a halt that was told, or is none any more: what the primary gives is taken."""
    conn.execute(delete(settings).where(_s.key == _HALT + rollout_id))
    text = conn.scalar(select(_r.state).where(_r.id == rollout_id))
    if text is not None:
        set_setting(conn, _ASKED + rollout_id, repr(json.loads(text)["changed_at"]))


def pending_halts(conn: Connection) -> set[str]:
    """Return the rollouts that are halted here, and the primary does not know it yet."""
    keys = select(_s.key).where(_s.key.startswith(_HALT, autoescape=True))
    return {key.removeprefix(_HALT) for key in conn.scalars(keys)}


class HaltReview(NamedTuple):
    """A halt that is still to be looked at.

    Attributes:
        lost: the attempts that it rests on.
        open: those of them whose end was not recorded, when this was read.
    """

    lost: set[str]
    open: set[str]


def halts_to_review(conn: Connection) -> dict[str, HaltReview]:
    """Return the halts that are still to be looked at, by rollout."""
    found = {}
    for key in pending_halts(conn):
        if lost := (_said(conn, key) or {}).get("lost"):
            going = select(_a.id).where(_a.id.in_(lost), _a.result.is_(None))
            found[key] = HaltReview(set(lost), set(conn.scalars(going)))
    return found


def has_queued_halts(conn: Connection) -> bool:
    """Tell whether there are halts to be told."""
    return conn.execute(select(_c.seq).where(_c.what == "halts").limit(1)).first() is not None


def _said(conn: Connection, rollout_id: str) -> Fields | None:
    text = get_setting(conn, _HALT + rollout_id)
    if text is None:
        return None
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    # The release before has noted the reason alone.
    return said if isinstance(said, dict) else {"reason": text}


def _tell(conn: Connection, what: str, key: str) -> None:
    conn.execute(delete(changes).where((_c.what == what) & (_c.key == key)))
    conn.execute(insert(changes).values(what=what, key=key))


# ---- what the primary gives ----


def get_moves(conn: Connection) -> str:
    """Return up to which move of its rollouts the primary's word is in force here."""
    return get_setting(conn, _MOVES) or ""


def set_moves(conn: Connection, word: str) -> None:
    """Keep that."""
    set_setting(conn, _MOVES, word)


def import_state(
    conn: Connection,
    state: Fields,
    without: set[str],
    fetched: set[str],
    unread: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> None:
    """Write down what the primary gives.

    Args:
        without: releases whose images are not here; nothing of theirs is taken but moves of
            rollouts that are here.
        fetched: releases whose images have just come.
        unread: ids by table of what is there but cannot be read: it stays as it was here, but for
            rollouts, which are over.
    """
    set_setting(conn, SUPPRESS_TRIGGERS, "1")
    for row in state["sites"]:  # parents come first
        _put(conn, sites, "path", row)
    _take_beacons(conn, state["beacons"], unread.get("beacons", ()))
    kept = {row["path"] for row in state["sites"]} | set(unread.get("sites", ()))
    conn.execute(delete(sites).where(sites.c.path.not_in(kept)))
    for row in state["firmwares"]:
        if row["id"] not in without:
            # What was found to be damaged here stays so until its bytes have come again.
            kept = row["damaged_at"] is None and row["id"] not in fetched
            _put(conn, firmwares, "id", row, "damaged_at" if kept else "")
    _hold_halts(conn, state["rollouts"])
    mine = pending_halts(conn)
    there: set[str] = set(conn.scalars(select(rollouts.c.id)))
    for row in state["rollouts"]:
        if (row["firmware_id"] not in without or row["id"] in there) and row["id"] not in mine:
            _put(conn, rollouts, "id", row)
            there.add(row["id"])
    _end(conn, {row["id"] for row in state["rollouts"]} | mine)
    for row in state["attempts"]:
        if row["rollout_id"] in there and row["firmware_id"] not in without:
            _take_attempt(conn, row)
    _tell_missing(conn, state, without)
    conn.execute(delete(settings).where(_s.key == SUPPRESS_TRIGGERS))


def _hold_halts(conn: Connection, given: list[Fields]) -> None:
    """Hold what the primary had halted and gives as going on, and ask it whether it knows that.

    Mostly somebody has resumed it. But a primary that was put back from a copy has forgotten it.
    """
    for row in given:
        known = conn.execute(select(rollouts).where(_r.id == row["id"])).first()
        if known is None or known.status != "halted" or row["status"] in ("halted", "aborted"):
            continue
        state = json.loads(known.state)
        if get_setting(conn, _HALT + row["id"]) is not None:
            continue  # a halt of ours, or asked for already
        if get_setting(conn, _ASKED + row["id"]) == repr(state["changed_at"]):
            continue
        reason = f"halted before, by {state['by']}: {state['reason']}"
        said = {"reason": reason, "at": state["changed_at"]}
        set_setting(conn, _HALT + row["id"], json.dumps(said))
        _tell(conn, "halts", row["id"])


def _tell_missing(conn: Connection, state: Fields, without: set[str]) -> None:
    """Tell the primary of attempts that it had given, and gives no more: it has forgotten them."""
    given = {row["id"] for row in state["attempts"]}
    fleet = {row["id"] for row in state["beacons"]}
    live = {row["id"] for row in state["firmwares"]} - without
    theirs = select(_a.id, _a.beacon_id, _a.firmware_id).where(_a.mirror.is_not(None))
    for row in conn.execute(theirs).all():
        if row.id not in given and row.beacon_id in fleet and row.firmware_id in live:
            _tell(conn, "attempts", row.id)


def _take_beacons(conn: Connection, rows: list[Fields], unread: Collection[str]) -> None:
    known: dict[str, Any] = {row.id: row for row in conn.execute(select(beacons))}
    for beacon_id in unread:
        known.pop(beacon_id, None)
    places: set[str | None] = {None, *conn.scalars(select(sites.c.path))}
    for given in rows:
        if given["site"] not in places:  # unreadable: the beacon stays where it was
            known.pop(given["id"], None)
            continue
        row = dict(given)
        # A primary of the release before knows of one given key.
        row.setdefault("given_keys", row["next_key"])
        for name in ("key", "next_key", "given_keys"):
            row[name] = None if row[name] is None else bytes.fromhex(row[name])
        mine = known.pop(row["id"], None)
        if mine is None:
            conn.execute(insert(beacons), row)
            continue
        row |= keys.columns_after_use(row, mine.key)  # what it uses here, and we have told so
        for name in HEARD:
            row.pop(name, None)
        if any(getattr(mine, name) != value for name, value in row.items()):
            conn.execute(update(beacons).where(beacons.c.id == row["id"]).values(**row))
    for beacon_id in known:
        for table in (reports, journal):
            conn.execute(delete(table).where(table.c.beacon_id == beacon_id))
        conn.execute(delete(beacons).where(beacons.c.id == beacon_id))


def _end(conn: Connection, given: set[str]) -> None:
    """Rollouts that the primary gives no more are over."""
    over = rollouts.c.status != Status.ABORTED.value
    for row in conn.execute(select(rollouts.c.id, rollouts.c.state).where(over)).all():
        if row.id not in given:
            values = {**json.loads(row.state), "status": Status.ABORTED.value}
            conn.execute(
                update(rollouts)
                .where(rollouts.c.id == row.id)
                .values(status=values["status"], state=json.dumps(values))
            )


def _take_attempt(conn: Connection, row: Fields) -> None:
    """Take what the primary knows of an attempt; tell it what it does not know."""
    row = {**dict.fromkeys(("blamed_at", *tries_of.MEASURED)), **row}  # an older one says less
    found = conn.execute(select(attempts).where(_a.id == row["id"])).first()
    if found is None:
        # The beacon may have asked here, too, while the line was down.
        conn.execute(insert(attempts), {**row, "n": tries_of.free_number(conn, row)})
        return
    known = dict(found._mapping)
    merged = {**merge_attempts(known, row), "mirror": row["mirror"]}
    if merged != known:
        conn.execute(update(attempts).where(_a.id == row["id"]).values(**merged))
    if not says_all_of(row, merged):
        _tell(conn, "attempts", row["id"])


def _put(conn: Connection, table: Table, key: str, row: Fields, kept: str = "") -> None:
    values = {name: value for name, value in row.items() if name not in (key, kept)}
    done = conn.execute(update(table).where(table.c[key] == row[key]).values(**values))
    if not done.rowcount:
        conn.execute(insert(table), row)


def _row(conn: Connection, what: str, key: str) -> Fields | None:
    if what == "halts":
        said = _said(conn, key)
        if said is None:
            return None
        return {"rollout_id": key, **{name: said.get(name) for name in ("reason", "id", "at")}}
    if what == "journal":
        beacon_id, seq, sign = key.rsplit("|", 2)
        where = (
            (journal.c.beacon_id == beacon_id)
            & (journal.c.seq == int(seq))
            & (journal.c.digest == sign)
        )
        found = conn.execute(select(journal).where(where)).first()
    else:
        table = {"attempts": attempts, "reports": reports, "events": events, "beacons": beacons}[
            what
        ]
        found = conn.execute(select(table).where(table.c.id == key)).first()
    if found is None:
        return None
    row = dict(found._mapping)
    if what == "beacons":
        row = {"id": row["id"], "key_digest": key_digest(row["key"]), **{k: row[k] for k in HEARD}}
    return row
