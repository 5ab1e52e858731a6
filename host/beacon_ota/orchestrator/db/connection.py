"""Engines for SQLite and PostgreSQL, and names for what their drivers raise."""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from beacon_ota.errors import BeaconOtaError, ReachError, UsageError

LOCK_TIMEOUT_S = 30.0  # for which a call waits for SQLite's lock while another process holds it
WRITE_LOCK_ID = 0x62656163  # the advisory lock of the transaction that writes
# A process that stops in the middle of a transaction holds the others up for no longer than this.
_PG_OPTIONS = (
    ("lock_timeout", "30s"),
    ("idle_in_transaction_session_timeout", "20s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
)


class StorageError(ReachError):
    """The database refused a transaction: disk full, locked, damaged."""


def describe_error(error: BaseException) -> str:
    """Return in a few words why a database refused, with nothing of statements or their values.

    What drivers say about an error quotes rows and parameters: digests of tokens, secrets of
    webhooks, keys of beacons. So their words are not used, only their names for errors.
    """
    origin: Any = getattr(error, "orig", None) or error
    name = getattr(origin, "sqlite_errorname", None) or getattr(origin, "sqlstate", None)
    if name is None:
        diag = getattr(origin, "diag", None)
        name = getattr(diag, "sqlstate", None)
    if name in _WORDS:
        return _WORDS[name]
    kind = type(origin).__name__
    return f"{kind} ({name})" if name else kind


_WORDS = {
    "SQLITE_FULL": "its disk is full",
    "SQLITE_BUSY": "it is locked by another process",
    "SQLITE_LOCKED": "it is locked by another process",
    "SQLITE_NOTADB": "the file is not a database",
    "SQLITE_CORRUPT": "the file is damaged",
    "SQLITE_READONLY": "it is readonly",
    "SQLITE_READONLY_DIRECTORY": "its folder is readonly",
    "SQLITE_CANTOPEN": "the file cannot be opened",
    "53100": "its disk is full",
    "55P03": "it is locked by another process",
    "57P01": "it is being shut down",
    "57P03": "it is starting or stopping",
    "28P01": "user or password are wrong",
    "28000": "this user may not use it",
    "3D000": "there is no such database",
    "25006": "it is readonly",
}


@contextmanager
def storage_errors(what: str = "the database cannot be used") -> Iterator[None]:
    """Name what a database raises (StorageError ``storage``)."""
    try:
        yield
    except BeaconOtaError:
        raise
    except Exception as error:
        if not is_driver_error(error):
            raise
        # Without its cause: a traceback would show the statement.
        raise StorageError("storage", f"{what}: {describe_error(error)}") from None


def is_driver_error(error: BaseException) -> bool:
    """Tell whether a database's driver raised this; prepared statements raise it bare."""
    psycopg = sys.modules.get("psycopg")  # 5 MB that only PostgreSQL needs
    drivers = (SQLAlchemyError, sqlite3.Error, *([psycopg.Error] if psycopg else []))
    return isinstance(error, drivers)


def connect(url: str, *, readonly: bool = False, worker: str = "") -> Engine:
    """Return an engine for ``url``.

    SQLite runs in WAL mode with full synchronisation: a commit that returned survives a power
    cut. A writing transaction takes the write lock when it begins, so what it reads stays true.

    Args:
        worker: the name under which PostgreSQL notes who changed something.

    Raises:
        UsageError: ``database_url``.
    """
    try:
        backend = make_url(url).get_backend_name()
    except (ArgumentError, ValueError):
        backend = ""
    if backend == "postgresql":
        return _postgresql(url, readonly, worker)
    if backend != "sqlite":
        raise UsageError(
            "database_url", "this is no database", expected="postgresql://user@host/name"
        )
    return _sqlite(url, readonly)


def is_shared(url: str) -> bool:
    """Tell whether other processes may work on a database, too."""
    return not url.startswith("sqlite")


def _postgresql(url: str, readonly: bool, worker: str) -> Engine:
    """Whatever driver the URL names, it is psycopg: half the time of asyncpg for our statements."""
    options = [*_PG_OPTIONS, ("beacon_ota.worker", worker)]
    if readonly:
        options.append(("default_transaction_read_only", "on"))
    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "options": " ".join(f"-c {name}={value}" for name, value in options),
            "application_name": "beacon-ota",
            "connect_timeout": 10,
        },
    )
    from psycopg.types.string import StrDumper

    class Text(StrDumper):
        """What SQLite keeps and PostgreSQL cannot: a beacon may well say NUL."""

        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "\ufffd") if "\0" in obj else obj)

    @event.listens_for(engine, "connect")
    def _text(raw: Any, _record: Any) -> None:
        raw.adapters.register_dumper(str, Text)

    if not readonly:

        @event.listens_for(engine, "begin")
        def _begin(conn: Connection) -> None:
            conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK_ID})")

    return engine


def _sqlite(url: str, readonly: bool) -> Engine:
    engine = create_engine(
        url,
        hide_parameters=True,
        connect_args={"timeout": LOCK_TIMEOUT_S, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _pragmas(raw: Any, _record: Any) -> None:
        raw.isolation_level = None  # transactions begin where we say so, below
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("PRAGMA synchronous=FULL")
        raw.execute("PRAGMA foreign_keys=ON")
        raw.execute("PRAGMA cache_size=-8000")
        if readonly:
            raw.execute("PRAGMA query_only=ON")

    @event.listens_for(engine, "begin")
    def _begin(conn: Connection) -> None:
        conn.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")

    return engine


def sqlite_url(folder: Path) -> str:
    """Return the URL of the database in a data folder."""
    return f"sqlite:///{folder / 'beacon-ota.db'}"
