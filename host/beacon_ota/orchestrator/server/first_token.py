"""Makes the first admin token at the start, and revokes it if it could not be shown."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.db.tables import audit, tokens

log = logging.getLogger("beacon_ota.orchestrator")


class FirstToken:
    """Makes the token in a transaction and writes it before the commit: no failed start makes one.

    Args:
        file: file (mode 0600) for the token; None: the token is printed.
    """

    def __init__(self, file: Path | None):
        self._file = file
        self._id = ""
        self._token: str | None = None

    def create(self, conn: Connection, now: float) -> None:
        """Create a token unless a usable admin token exists.

        Raises:
            UsageError: ``token_file``; then no token exists either.
        """
        self._token = None  # the transaction may be run again
        if tokens.usable_admins(conn, now):
            return
        row, token = tokens.create(conn, _pick_free_name(conn), "admin", now)
        audit.append(conn, now, "orchestrator", "token.created", row["name"], "first start")
        if self._file is not None:
            _write_token_file(self._file, token)
        self._id, self._token = row["id"], token

    def show(self, announce: Callable[[str | None], object]) -> bool:
        """Announce the token, unless it is in its file; False if the announcement failed."""
        try:
            announce(self._token if self._file is None else None)
        except (OSError, ValueError, AttributeError) as error:  # standard output is closed
            log.warning("standard output takes nothing: %s", error)
            return self._token is None or self._file is not None
        return True

    def take_back(self, conn: Connection) -> None:
        """Revoke the token, which nobody knows; the next start makes another."""
        now = time.time()
        tokens.revoke(conn, self._id, now)
        audit.append(conn, now, "orchestrator", "token.revoked", self._id, "shown to nobody")
        log.error("the first admin token was shown to nobody; start again, or with --token-file")


def _pick_free_name(conn: Connection) -> str:
    taken = {row["name"] for row in tokens.list_all(conn)}
    names = (f"first-{n}" if n > 1 else "first" for n in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def _write_token_file(file: Path, token: str) -> None:
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as out:
            os.fchmod(out.fileno(), 0o600)
            out.write(token + "\n")
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise UsageError(
            "token_file", f"cannot write {file}: {error.strerror}", found=str(file)
        ) from None
