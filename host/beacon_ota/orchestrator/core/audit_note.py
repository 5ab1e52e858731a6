"""Notes the newest entry of the audit log in a file beside the database, which no backup contains.

A database that was restored from a backup does not know what was done since, so rollouts that had
been halted would go on. The note shows at the next start that the database is older.
"""

import contextlib
import os
import re
from pathlib import Path

from sqlalchemy import Connection

from beacon_ota.orchestrator.db.tables import audit

_LINE = re.compile(rb"([0-9]{1,15}) ([0-9a-f]{64})\n")
NOTE_FILE = "audit-head"  # in the data folder: number and hash of an entry


def note_restored(folder: Path) -> None:
    """Note in a data folder that its database was restored, by an entry no log has (OSError)."""
    (folder / NOTE_FILE).write_text(f"{10**15 - 1} {'0' * 64}\n", "ascii")


class AuditHeadNote:
    """The note in a data folder."""

    def __init__(self, folder: Path):
        self._path = folder / NOTE_FILE
        self._noted = ""

    def is_database_older(self, conn: Connection) -> bool:
        """Tell whether the database lacks the noted entry, as an older copy or another one does."""
        try:
            with self._path.open("rb") as file:
                noted = _LINE.fullmatch(file.read(128))
        except OSError:
            noted = None
        if noted is None:
            return False  # no note, or none that can be read
        return audit.hash_of(conn, int(noted[1])) != noted[2].decode()

    def write(self, conn: Connection) -> None:
        """Note how far the audit log has come (OSError)."""
        seq, digest = audit.read_head(conn)
        line = f"{seq} {digest}\n"
        if line == self._noted:
            return
        part = self._path.with_name(f"{NOTE_FILE}.{os.getpid()}")
        try:
            part.write_text(line, "ascii")
            part.replace(self._path)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        self._noted = line
