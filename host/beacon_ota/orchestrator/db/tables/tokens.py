"""Administrators' tokens: 256 random bits, kept only as their SHA-256."""

import hashlib
import secrets
import unicodedata
from typing import NamedTuple

from sqlalchemy import Connection, func, insert, select, update

from beacon_ota.errors import InputError, UsageError
from beacon_ota.orchestrator.db.schema import tokens
from beacon_ota.orchestrator.db.tables import Fields

ROLES = ("viewer", "operator", "admin")  # each role includes the rights of the roles before it
MIRROR = "mirror"  # has none of those rights: only the calls that mirrors make
# The orchestrator's own names in the audit log; "mirror <name>" stands for a mirror.
RESERVED = frozenset(("engine", "orchestrator", "mirror", "command line", "upstream"))
_SHOWN = (
    tokens.c.id,
    tokens.c.name,
    tokens.c.role,
    tokens.c.created_at,
    tokens.c.expires_at,
    tokens.c.revoked_at,
)


class Actor(NamedTuple):
    """The sender of a request: the id, name and role of its token."""

    id: str
    name: str
    role: str


def create(
    conn: Connection, name: str, role: str, now: float, expires_at: float | None = None
) -> tuple[Fields, str]:
    """Make a token; return its row and the token itself, which is stored nowhere."""
    if role not in (*ROLES, MIRROR):
        raise InputError("role_unknown", "no such role", found=role, expected=list(ROLES))
    _check_name(conn, name, role)
    token_id = secrets.token_hex(4)
    token = f"bota_{token_id}_{secrets.token_urlsafe(32)}"
    row = {
        "id": token_id,
        "name": name,
        "role": role,
        "created_at": now,
        "expires_at": expires_at,
        "revoked_at": None,
    }
    conn.execute(insert(tokens), {**row, "digest": _digest(token)})
    return row, token


def _check_name(conn: Connection, name: str, role: str) -> None:
    """Refuse a name that could be mistaken for another actor in the audit log.

    Names are compared as people read them: differences of case, width or composition do not count.
    """
    if not 0 < len(name) <= 64:
        raise InputError("name_length", "a token's name has 1 to 64 characters", found=len(name))
    if not name.isprintable() or name != name.strip():
        raise InputError(
            "name_characters",
            "a token's name is printable, without spaces at its ends",
            found=ascii(name),
        )
    read = _as_read(name)
    if read in RESERVED or (role != MIRROR and read.split(" ")[0] == MIRROR):
        raise UsageError("name_reserved", "the orchestrator itself goes by this name", found=name)
    held = select(tokens.c.name).where(tokens.c.revoked_at.is_(None))
    if any(_as_read(one) == read for one in conn.scalars(held)):
        raise UsageError(
            "name_taken", "another token that is not revoked has this name", found=name
        )


def _as_read(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def find(conn: Connection, token: str, now: float) -> Actor | None:
    """Return the owner of a token, or None when it is unknown, revoked or expired."""
    row = conn.execute(select(tokens).where(tokens.c.digest == _digest(token))).first()
    if row is None or row.revoked_at is not None:
        return None
    if row.expires_at is not None and row.expires_at <= now:
        return None
    return Actor(row.id, row.name, row.role)


def list_all(conn: Connection) -> list[Fields]:
    """Return all tokens, without anything that could be used as one."""
    return [dict(row._mapping) for row in conn.execute(select(*_SHOWN).order_by("created_at"))]


def revoke(conn: Connection, token_id: str, now: float) -> Fields | None:
    """Revoke a token for good; None when no token has that id."""
    conn.execute(
        update(tokens)
        .where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    row = conn.execute(select(*_SHOWN).where(tokens.c.id == token_id)).first()
    return None if row is None else dict(row._mapping)


def usable_admins(conn: Connection, now: float) -> int:
    """Return how many admin tokens would be accepted now."""
    query = select(func.count()).where(
        tokens.c.role == "admin",
        tokens.c.revoked_at.is_(None),
        tokens.c.expires_at.is_(None) | (tokens.c.expires_at > now),
    )
    return conn.scalar(query) or 0


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
