"""SQL, one module per table. Functions take a connection first; none commits or keeps state."""

import secrets
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.engine import Row

Fields = dict[str, Any]


def new_id() -> str:
    """Return a fresh identifier: 24 hex characters."""
    return secrets.token_hex(12)


def insert_or_ignore(conn: Connection, table: Table, rows: list[Fields]) -> None:
    """Insert rows; those that are there already (by any unique constraint) are left alone."""
    if conn.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert
    conn.execute(insert(table).on_conflict_do_nothing(), rows)


def fields(row: Row[Any] | None) -> Fields | None:
    """Return a row as a plain dictionary."""
    return None if row is None else dict(row._mapping)
