"""Copies tokens and sessions into memory, for stops while the database does not answer.

The copy is seconds old and serves stops only. A token that was revoked from another machine a
moment before the outage can therefore still stop a rollout, and do nothing else.
"""

import hashlib
from typing import NamedTuple

from sqlalchemy import Connection, select

from beacon_ota.orchestrator.db.schema import sessions, tokens
from beacon_ota.orchestrator.db.tables.tokens import Actor


class CachedCredential(NamedTuple):
    """A credential: its owner and its end of validity."""

    actor: Actor
    expires_at: float | None


class CredentialCache:
    """Credentials by the SHA-256 of their secrets, never the secrets themselves."""

    def __init__(self) -> None:
        self._tokens: dict[str, CachedCredential] = {}
        self._sessions: dict[str, CachedCredential] = {}

    def replace(
        self, tokens: dict[str, CachedCredential], sessions: dict[str, CachedCredential]
    ) -> None:
        """Replace the copy by what was read from the database."""
        self._tokens, self._sessions = tokens, sessions

    def find_token(self, secret: str, now: float) -> Actor | None:
        """Return the owner of a token when the database last answered; None if it is unknown."""
        return _find(self._tokens, secret, now)

    def find_session(self, secret: str, now: float) -> Actor | None:
        """Return the owner of a session when the database last answered; None if it is unknown."""
        return _find(self._sessions, secret, now)


def _find(known: dict[str, CachedCredential], secret: str, now: float) -> Actor | None:
    found = known.get(hashlib.sha256(secret.encode()).hexdigest())
    if found is None or (found.expires_at is not None and found.expires_at <= now):
        return None
    return found.actor


def read_credentials(
    conn: Connection,
) -> tuple[dict[str, CachedCredential], dict[str, CachedCredential]]:
    """Read the credentials to copy: valid tokens, and their sessions."""
    t, s = tokens.c, sessions.c
    query = select(t.id, t.name, t.role, t.digest, t.expires_at).where(t.revoked_at.is_(None))
    by_id: dict[str, CachedCredential] = {}
    found: dict[str, CachedCredential] = {}
    for row in conn.execute(query):
        known = CachedCredential(Actor(row.id, row.name, row.role), row.expires_at)
        by_id[row.id] = found[row.digest] = known
    begun: dict[str, CachedCredential] = {}
    for row in conn.execute(select(s.digest, s.token_id, s.expires_at)):
        if (known := by_id.get(row.token_id)) is not None:
            until = min(known.expires_at or row.expires_at, row.expires_at)
            begun[row.digest] = CachedCredential(known.actor, until)
    return found, begun
