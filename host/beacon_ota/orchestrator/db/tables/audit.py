"""The audit log: append-only, every entry carries the hash of the one before it.

``hash = SHA-256(previous hash, newline, canonical JSON of the entry)``; the first entry follows
64 zeros. Changing, dropping or reordering entries breaks the chain; cutting off its end does not,
which is why ``verify_chain`` takes and returns a head to keep elsewhere.
"""

import hashlib
import json
from collections.abc import Iterable

from sqlalchemy import Connection, insert, select

from beacon_ota.errors import InputError
from beacon_ota.orchestrator.db.schema import audit
from beacon_ota.orchestrator.db.tables import Fields

EMPTY_HASH = "0" * 64
_LAST = select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)
_HASHED = ("seq", "at", "actor", "action", "target", "reason", "detail")


class AuditError(InputError):
    """The log was altered or cut off after it was written."""


def append(
    conn: Connection,
    at: float,
    actor: str,
    action: str,
    target: str,
    reason: str = "",
    detail: Fields | None = None,
) -> Fields:
    """Append one entry: who did what to which, and why.

    The caller's transaction must hold the write lock, so that two entries never follow the same
    one.
    """
    last = conn.execute(_LAST).first()
    # Hash the text as every database returns it; otherwise the entry would look forged.
    entry: Fields = {
        "seq": last.seq + 1 if last else 1,
        "at": float(at),
        "actor": _as_kept(actor),
        "action": action,
        "target": _as_kept(target),
        "reason": _as_kept(reason),
        "detail": json.dumps(detail or {}, sort_keys=True, separators=(",", ":"), default=str),
    }
    entry["previous"] = last.hash if last else EMPTY_HASH
    entry["hash"] = entry_hash(entry)
    conn.execute(insert(audit), entry)
    return entry


def _as_kept(text: str) -> str:
    """Return text as a database returns it: PostgreSQL cannot store NUL."""
    return text.replace("\0", "\ufffd")


def read_head(conn: Connection) -> tuple[int, str]:
    """Return number and hash of the last entry; those of an empty log are 0 and
    ``EMPTY_HASH``."""
    found = conn.execute(_LAST).first()
    return (found.seq, found.hash) if found else (0, EMPTY_HASH)


def hash_of(conn: Connection, seq: int) -> str | None:
    """Return an entry's hash, None when there is no such entry."""
    return EMPTY_HASH if seq == 0 else conn.scalar(select(audit.c.hash).where(audit.c.seq == seq))


def entry_hash(entry: Fields) -> str:
    """Return the hash that an entry must carry."""
    text = json.dumps({name: entry[name] for name in _HASHED}, sort_keys=True)
    return hashlib.sha256(f"{entry['previous']}\n{text}".encode()).hexdigest()


def list_entries(
    conn: Connection,
    *,
    after: int = 0,
    limit: int = 100,
    action: str | None = None,
    actor: str | None = None,
    target: str | None = None,
    newest: bool = False,
    before: int | None = None,
) -> list[Fields]:
    """Return entries in order, filtered; with ``newest`` the last ones, newest first."""
    query = select(audit).where(audit.c.seq > after).limit(limit)
    query = query.order_by(audit.c.seq.desc() if newest else audit.c.seq)
    if before is not None:
        query = query.where(audit.c.seq < before)
    for column, value in ((audit.c.actor, actor), (audit.c.target, target)):
        if value is not None:
            query = query.where(column == value)
    if action is not None:
        query = query.where(audit.c.action.startswith(action, autoescape=True))
    return [dict(row._mapping) for row in conn.execute(query)]


def verify_chain(conn: Connection, head: str | None = None) -> Fields:
    """Walk the whole chain.

    Args:
        head: a hash noted earlier; it must still be in the chain.

    Returns:
        ``entries`` and ``head``, the hash of the last entry.

    Raises:
        AuditError: ``audit_broken`` with the entry that does not fit, or ``audit_truncated``
            when ``head`` is not there any more.
    """
    rows = conn.execution_options(yield_per=500).execute(select(audit).order_by(audit.c.seq))
    return verify_entries((dict(row._mapping) for row in rows), head)


def verify_entries(chain: Iterable[Fields], head: str | None = None) -> Fields:
    """Verify entries as :func:`verify_chain` does, wherever they come from."""
    previous, seq, found = EMPTY_HASH, 0, head in (None, EMPTY_HASH)
    for entry in chain:
        if entry["seq"] != seq + 1 or entry["previous"] != previous:
            raise AuditError(
                "audit_broken",
                f"entry {entry['seq']} does not follow entry {seq}",
                found=entry["previous"],
                expected=previous,
            )
        if entry_hash(entry) != entry["hash"]:
            raise AuditError(
                "audit_broken",
                f"entry {entry['seq']} was changed after it was written",
                found=entry_hash(entry),
                expected=entry["hash"],
            )
        previous, seq = entry["hash"], entry["seq"]
        found = found or previous == head
    if not found:
        raise AuditError(
            "audit_truncated",
            "the head noted earlier is not in the log",
            found=previous,
            expected=head,
        )
    return {"entries": seq, "head": previous}
