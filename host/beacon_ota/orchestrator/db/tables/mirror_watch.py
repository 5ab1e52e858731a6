"""Stores a mirror's health at its primary: which stops are in force there, and what was refused.

A mirror reports up to which entry of the audit log the primary's changes are *in force* there:
stored, and used for decisions. Every move of a rollout is an entry, and entries are committed in
their order, so a mirror confirms a stop by naming the stop's entry or a later one. An entry is
named by its number and the beginning of its hash: after a database was restored, another entry may
have the same number.
"""

import json
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select, update

from beacon_ota.orchestrator.db.schema import audit, mirrors
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.db.tables import audit as log
from beacon_ota.orchestrator.db.tables import mirror_rows as rows

LOST_S = 60.0  # without a word: the uplink is down; in contact without acting: it fails
SKEW_S = 30.0  # between the clocks, which is said
OK, NEVER = "ok", "never_seen"
WORDS = (OK, NEVER, "silent", "refused", "failing", "behind", "clock")
_HASH = 16
_m, _a = mirrors.c, audit.c


class MirrorHealth(NamedTuple):
    """A mirror's health: one of ``WORDS``, and a sentence ("" when it is well)."""

    word: str
    why: str = ""

    @property
    def well(self) -> bool:
        """Whether the mirror needs no attention; one that never connected is not missed."""
        return self.word in (OK, NEVER)


def newest_entry(conn: Connection) -> str:
    """Return the name of the newest entry; a state that is read later includes it."""
    seq, found = log.read_head(conn)
    return f"{seq}.{found[:_HASH]}"


def entry_number(conn: Connection, name: Any) -> int | None:
    """Return the number of the entry with this name, None when there is none."""
    seq, _, sign = name.partition(".") if isinstance(name, str) else ("", "", "")
    if not (seq.isascii() and seq.isdecimal()) or len(seq) > 18:
        return None
    known = log.hash_of(conn, int(seq))
    return int(seq) if known is not None and known[:_HASH] == sign else None


def build_status(conn: Connection, mirror: Fields, says: Any) -> str:
    """Return the document to store about a mirror that has just reported."""
    status = rows.check_status(says)
    watch = {**mirror["watch"], "refused": None, "moves": entry_number(conn, status.get("moves"))}
    return json.dumps({**status, "watch": watch})


def watch_of(document: Any) -> Fields:
    """Return the primary's own notes about a mirror."""
    watch = document.get("watch") if isinstance(document, dict) else None
    return watch if isinstance(watch, dict) else {}


def update_watch(conn: Connection, mirror_id: str, **values: Any) -> None:
    """Add to the primary's own notes about a mirror."""
    text = conn.scalar(select(_m.status).where(_m.id == mirror_id))
    if text is None:
        return
    document = json.loads(text)
    document["watch"] = {**watch_of(document), **values}
    conn.execute(update(mirrors).where(_m.id == mirror_id).values(status=json.dumps(document)))


def record_refusal(
    conn: Connection, mirror_id: str, now: float, code: str, detail: str, says: Any
) -> None:
    """Note that a mirror's changes were refused, and that the mirror was heard from."""
    conn.execute(update(mirrors).where(_m.id == mirror_id).values(seen_at=now))
    version = rows.check_status(says).get("version")
    refused = {"code": code, "detail": detail[:300], "at": now, "version": version}
    update_watch(conn, mirror_id, refused=refused)


def record_confirmation(conn: Connection, mirror_id: str, name: str) -> None:
    """Note up to which entry a mirror acts that does not report it: all that it was given."""
    update_watch(conn, mirror_id, moves=entry_number(conn, name))


def lease_ends_at(row: Fields) -> float | None:
    """Return until when a mirror without contact may hand out releases, UTC seconds.

    None: without limit, because the mirror knows of no lease or was never heard from.
    """
    lease = row["status"].get("lease_s")
    return None if lease is None or row["seen_at"] is None else row["seen_at"] + lease


def list_unconfirmed(
    conn: Connection, every: list[Fields], target: str, actions: tuple[str, ...], since: float
) -> list[Fields]:
    """Return the mirrors that have not confirmed the last stop of a target.

    Args:
        every: the mirrors in use.
        target: the rollout or release that was stopped.
        actions: the names of such stops in the audit log.
        since: when the target was created; a mirror not heard from since then cannot have it.

    Returns:
        Rows with ``stopped_at``, UTC seconds.
    """
    entry = conn.execute(
        select(_a.seq, _a.at)
        .where(_a.target == target, _a.action.in_(actions))
        .order_by(_a.seq.desc())
        .limit(1)
    ).first()
    if entry is None:
        return []
    return [
        {**row, "stopped_at": entry.at}
        for row in heard_since(every, since)
        if row["watch"].get("moves") is None or row["watch"]["moves"] < entry.seq
    ]


def heard_since(every: list[Fields], since: float) -> list[Fields]:
    """Return the mirrors that may have what was created at a time: heard from since then."""
    return [row for row in every if row["seen_at"] is not None and row["seen_at"] + LOST_S >= since]


def settled(conn: Connection, now: float) -> int:
    """Return the number of the newest entry that a mirror in contact has had time to take."""
    return conn.scalar(select(func.max(_a.seq)).where(_a.at < now - LOST_S)) or 0


def judge_mirror(row: Fields, now: float, needed: int) -> MirrorHealth:
    """Return a mirror's health.

    Args:
        needed: the number of the entry that the mirror must have reached (:func:`settled`).
    """
    says, watch, seen = row["status"], row["watch"], row["seen_at"]
    if seen is None:
        return MirrorHealth(NEVER)
    if now - seen >= LOST_S:
        return MirrorHealth("silent", "nothing was heard of it")
    if (refused := watch.get("refused")) is not None:
        version = refused.get("version") or says.get("version") or "unknown release"
        return MirrorHealth(
            "refused", f"what it tells is refused: {refused['detail']} (it is {version})"
        )
    if (error := says.get("error")) is not None and error["code"] != "clock_skew":
        return MirrorHealth("failing", f"{error['code']}: {error['detail']}")
    moves = watch.get("moves")
    if moves is not None and moves < needed:
        return MirrorHealth(
            "behind", "it answers, but what it was given last is not in force there"
        )
    skew = says.get("skew_s")
    if skew is not None and abs(skew) >= SKEW_S:
        return MirrorHealth("clock", f"its clock is {skew:+.0f} s off this one's")
    return MirrorHealth(OK)
