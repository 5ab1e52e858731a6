"""Prepared statements for frequent calls: compiled once, then run on the driver's own cursor.

SQLAlchemy writes the SQL, for either database; its own work around each execution would cost five
times what SQLite needs for the statement.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.sql import ClauseElement

from beacon_ota.orchestrator.db.tables import Fields


class PreparedStatement:
    """A statement with named parameters; values and results are plain (no column types).

    Args:
        statement: an update, select, or insert; every value in it is a named parameter.
        columns: for an insert, the columns that are given.
    """

    def __init__(self, statement: ClauseElement, columns: Sequence[str] | None = None):
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, tuple[str, Callable[[Fields], Any]]] = {}

    def fetch_first(self, conn: Connection, values: Fields) -> Fields | None:
        """Execute in the connection's transaction; return the first row, if there is one."""
        sql, bind = self._for(conn)
        cursor = conn.connection.cursor()
        try:
            cursor.execute(sql, bind(values))
            row = cursor.fetchone() if cursor.description else None
            if row is None:
                return None
            return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}
        finally:
            cursor.close()

    def execute_many(self, conn: Connection, rows: Sequence[Fields]) -> None:
        """Execute once for each row."""
        sql, bind = self._for(conn)
        cursor = conn.connection.cursor()
        try:
            cursor.executemany(sql, [bind(row) for row in rows])
        finally:
            cursor.close()

    def _for(self, conn: Connection) -> tuple[str, Callable[[Fields], Any]]:
        found = self._compiled.get(conn.dialect.name)
        if found is None:
            compiled: Any = self._statement.compile(
                dialect=conn.dialect,
                column_keys=self._columns,  # type: ignore[call-arg]
            )
            bind = _binder(compiled.positiontup)
            found = self._compiled[conn.dialect.name] = (str(compiled), bind)
        return found


def _binder(order: list[str] | None) -> Callable[[Fields], Any]:
    """Return a function that puts values into the driver's form: by name, or by position."""
    if order is None:
        return dict
    names = tuple(order)
    return lambda values: tuple([values[name] for name in names])


def defer_insert(conn: Connection, statement: PreparedStatement, row: Fields) -> None:
    """Insert a row when the transaction ends, together with the others of its kind.

    For history that nothing in the transaction reads; the writer calls :func:`flush_deferred`.
    """
    conn.info.setdefault("appended", {}).setdefault(statement, []).append(row)


def flush_deferred(conn: Connection) -> None:
    """Insert the deferred rows."""
    for statement, rows in conn.info.pop("appended", {}).items():
        statement.execute_many(conn, rows)


def discard_deferred(conn: Connection) -> None:
    """Discard the deferred rows of a transaction that failed."""
    conn.info.pop("appended", None)
