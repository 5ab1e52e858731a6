"""Sessions of browsers that have signed in with a token; only digests of both are stored."""

import hashlib
import secrets

from sqlalchemy import Connection, delete, insert, select

from beacon_ota.orchestrator.db.schema import sessions, tokens
from beacon_ota.orchestrator.db.tables.tokens import Actor

SESSION_LIFETIME_S = 12 * 3600.0


def create(conn: Connection, token_id: str, now: float) -> str:
    """Begin a session and delete old ones; return its secret, which is stored nowhere."""
    conn.execute(delete(sessions).where(sessions.c.expires_at <= now))
    secret = secrets.token_urlsafe(32)
    row = {
        "digest": _digest(secret),
        "token_id": token_id,
        "created_at": now,
        "expires_at": now + SESSION_LIFETIME_S,
    }
    conn.execute(insert(sessions), row)
    return secret


def find(conn: Connection, secret: str, now: float) -> Actor | None:
    """Return the owner of a session; None when it is over, or its token is revoked or expired."""
    t = tokens.c
    query = (
        select(t.id, t.name, t.role)
        .join(sessions, sessions.c.token_id == t.id)
        .where(
            sessions.c.digest == _digest(secret),
            sessions.c.expires_at > now,
            t.revoked_at.is_(None),
            t.expires_at.is_(None) | (t.expires_at > now),
        )
    )
    row = conn.execute(query).first()
    return None if row is None else Actor(row.id, row.name, row.role)


def remove(conn: Connection, secret: str) -> None:
    """End a session."""
    conn.execute(delete(sessions).where(sessions.c.digest == _digest(secret)))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
