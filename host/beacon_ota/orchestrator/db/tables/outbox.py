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
_MARK = "mirror.mark"  # mark of the exchange being sent; unchanged until it is taken
SUPPRESS_TRIGGERS = (
    "mirror.quiet"  # set while the primary's state is stored: those changes are not sent back to it
)
_HALT = "mirror.halt."  # + rollout id: a halt made here that the primary has not taken
_ASKED = "mirror.asked."  # + rollout id: time of the halt that the primary has taken
_MOVES = "mirror.moves"  # newest move of the primary's rollouts that is in force here
_KEYS = {
    "attempts": ("NEW.id", "INSERT", "UPDATE"),
    "reports": ("NEW.id", "INSERT"),
    "journal": ("NEW.beacon_id || '|' || NEW.seq || '|' || NEW.digest", "INSERT"),
    "events": ("NEW.id", "INSERT"),
    "beacons": ("NEW.id", "UPDATE"),
}


class Item(NamedTuple):
    """A change to send; ``row`` is None when the row was deleted since."""

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
    """Return the number of changes that are still to be sent."""
    return conn.scalar(select(func.count()).select_from(changes)) or 0


def read_batch(conn: Connection, limit: int) -> list[Item]:
    """Return the next changes to send, oldest first."""
    rows = conn.execute(select(changes).order_by(_c.seq).limit(limit)).all()
    return [Item(row.seq, row.what, _row(conn, row.what, row.key)) for row in rows]


def next_exchange(conn: Connection, telling: bool) -> tuple[str, str]:
    """Return the marks of the previous exchange and of the next one in this mirror's book.

    The new mark is on the disk before the exchange is sent. So the primary recognises an exchange
    that is sent again. It also notices when the previous mark is not that of the last exchange it
    took: then a copy of this disk has sent changes, or the primary was restored (``mirror_books``).

    Args:
        telling: there are changes to send; otherwise the exchange may have no mark ("").
    """
    mark = get_setting(conn, _MARK) or ""
    if telling and not mark:
        mark = new_id()
        set_setting(conn, _MARK, mark)
    return get_setting(conn, _AFTER) or "", mark


def acknowledge(conn: Connection, seq: int, mark: str) -> None:
    """Delete the changes that the primary has taken in the exchange with this mark."""
    done = (_c.seq <= seq) & (_c.what == "halts")
    for rollout_id in conn.scalars(select(_c.key).where(done)).all():
        lift_halt(conn, rollout_id)
    conn.execute(delete(changes).where(_c.seq <= seq))
    if mark:
        set_setting(conn, _AFTER, mark)
        conn.execute(delete(settings).where(_s.key == _MARK))


def restart_book(conn: Connection) -> str:
    """Begin a new book, in which all rows of this mirror are sent again; return its epoch.

    Events and halts are sent only if they were still waiting. They come after the attempts to
    which they refer.
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
    """Note that a rollout is halted here, until the primary has taken the halt.

    Args:
        lost: attempts that were given up and count towards the halt. The primary may know how they
            really ended, so the halt is sent after them (:func:`queue_halt`).
    """
    conn.execute(update(rollouts).where(_r.id == rollout_id).values(**values))
    said = {"reason": reason, "id": new_id(), "lost": lost}
    set_setting(conn, _HALT + rollout_id, json.dumps(said))
    if not lost:
        _tell(conn, "halts", rollout_id)


def queue_halt(conn: Connection, rollout_id: str, reason: str | None = None) -> None:
    """Queue for the primary a halt that rests on attempts that were given up."""
    said = _said(conn, rollout_id)
    if said is not None:
        said |= {"lost": []} | ({} if reason is None else {"reason": reason})
        set_setting(conn, _HALT + rollout_id, json.dumps(said))
        _tell(conn, "halts", rollout_id)


def lift_halt(conn: Connection, rollout_id: str) -> None:
    """Delete a halt that was sent or no longer holds; from then on the primary's state applies."""
    conn.execute(delete(settings).where(_s.key == _HALT + rollout_id))
    text = conn.scalar(select(_r.state).where(_r.id == rollout_id))
    if text is not None:
        set_setting(conn, _ASKED + rollout_id, repr(json.loads(text)["changed_at"]))


def pending_halts(conn: Connection) -> set[str]:
    """Return the rollouts whose halt here the primary has not taken yet."""
    keys = select(_s.key).where(_s.key.startswith(_HALT, autoescape=True))
    return {key.removeprefix(_HALT) for key in conn.scalars(keys)}


class HaltReview(NamedTuple):
    """A halt to reconsider once the primary has answered.

    Attributes:
        lost: the attempts on which the halt rests.
        open: those of them whose end was not recorded when this was read.
    """

    lost: set[str]
    open: set[str]


def halts_to_review(conn: Connection) -> dict[str, HaltReview]:
    """Return the halts to reconsider, by rollout."""
    found = {}
    for key in pending_halts(conn):
        if lost := (_said(conn, key) or {}).get("lost"):
            going = select(_a.id).where(_a.id.in_(lost), _a.result.is_(None))
            found[key] = HaltReview(set(lost), set(conn.scalars(going)))
    return found


def has_queued_halts(conn: Connection) -> bool:
    """Tell whether halts wait to be sent."""
    return conn.execute(select(_c.seq).where(_c.what == "halts").limit(1)).first() is not None


def _said(conn: Connection, rollout_id: str) -> Fields | None:
    text = get_setting(conn, _HALT + rollout_id)
    if text is None:
        return None
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    # The previous release stored only the reason.
    return said if isinstance(said, dict) else {"reason": text}


def _tell(conn: Connection, what: str, key: str) -> None:
    conn.execute(delete(changes).where((_c.what == what) & (_c.key == key)))
    conn.execute(insert(changes).values(what=what, key=key))


# ---- received from the primary ----


def get_moves(conn: Connection) -> str:
    """Return the newest move of the primary's rollouts that is in force here."""
    return get_setting(conn, _MOVES) or ""


def set_moves(conn: Connection, word: str) -> None:
    """Store the newest move of the primary's rollouts that is in force here."""
    set_setting(conn, _MOVES, word)


def import_state(
    conn: Connection,
    state: Fields,
    without: set[str],
    fetched: set[str],
    unread: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> None:
    """Store the state that the primary sends.

    Args:
        without: releases whose images are not here; of their rows, only the moves of rollouts
            that are already here are stored.
        fetched: releases whose images have just arrived.
        unread: by table, ids of rows that the primary sent but this release cannot read. Such
            rows stay as they were here; such rollouts are over.
    """
    set_setting(conn, SUPPRESS_TRIGGERS, "1")
    for row in state["sites"]:  # parents come first
        _put(conn, sites, "path", row)
    _take_beacons(conn, state["beacons"], unread.get("beacons", ()))
    kept = {row["path"] for row in state["sites"]} | set(unread.get("sites", ()))
    conn.execute(delete(sites).where(sites.c.path.not_in(kept)))
    for row in state["firmwares"]:
        if row["id"] not in without:
            # An image that was found damaged here stays so until it has been fetched again.
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
    """Keep rollouts halted that the primary had halted and now sends as going on; report the halt.

    Usually an administrator has resumed the rollout. But a primary that was restored from a copy
    does not know of the halt.
    """
    for row in given:
        known = conn.execute(select(rollouts).where(_r.id == row["id"])).first()
        if known is None or known.status != "halted" or row["status"] in ("halted", "aborted"):
            continue
        state = json.loads(known.state)
        if get_setting(conn, _HALT + row["id"]) is not None:
            continue  # halted by this mirror, or already reported
        if get_setting(conn, _ASKED + row["id"]) == repr(state["changed_at"]):
            continue
        reason = f"halted before, by {state['by']}: {state['reason']}"
        said = {"reason": reason, "at": state["changed_at"]}
        set_setting(conn, _HALT + row["id"], json.dumps(said))
        _tell(conn, "halts", row["id"])


def _tell_missing(conn: Connection, state: Fields, without: set[str]) -> None:
    """Queue for the primary the attempts that it had sent and now lacks, as it has lost them."""
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
        # A primary of the previous release has only one given key per beacon.
        row.setdefault("given_keys", row["next_key"])
        for name in ("key", "next_key", "given_keys"):
            row[name] = None if row[name] is None else bytes.fromhex(row[name])
        mine = known.pop(row["id"], None)
        if mine is None:
            conn.execute(insert(beacons), row)
            continue
        row |= keys.columns_after_use(row, mine.key)  # the key in use here, as reported
        for name in HEARD:
            row.pop(name, None)
        if any(getattr(mine, name) != value for name, value in row.items()):
            conn.execute(update(beacons).where(beacons.c.id == row["id"]).values(**row))
    for beacon_id in known:
        for table in (reports, journal):
            conn.execute(delete(table).where(table.c.beacon_id == beacon_id))
        conn.execute(delete(beacons).where(beacons.c.id == beacon_id))


def _end(conn: Connection, given: set[str]) -> None:
    """Mark rollouts as over that the primary does not send any more."""
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
    """Merge the primary's row of an attempt; queue the result if the primary lacks part of it."""
    row = {**dict.fromkeys(("blamed_at", *tries_of.MEASURED)), **row}  # older primaries send less
    found = conn.execute(select(attempts).where(_a.id == row["id"])).first()
    if found is None:
        # The beacon may have polled this mirror, too, while the uplink was down.
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
