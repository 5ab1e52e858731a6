"""The database: one writer thread with group commit, a few readers, migrations at start.

SQLite, or PostgreSQL with any number of processes. Both have one writing transaction at a time:
SQLite by itself, PostgreSQL by a lock that such a transaction takes first. So what a transaction
reads stays true until it commits, the chain of the audit log has one end, and whatever is
numbered is numbered in the order of the commits. A transaction carries up to 512 changes.

Store functions are synchronous and take a connection; they neither commit nor touch anything but
the database, so that a batch of them can be one transaction and can be run again one by one when
a single one of them fails. What they need of the view is read before they are queued, and given to
them as values: they run later, in another thread, and the view has gone on by then (``guard``).
"""

import asyncio
import os
import queue
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from beacon_ota import lifeline
from beacon_ota.errors import BeaconOtaError, ReachError, UsageError
from beacon_ota.orchestrator.db.tables import prepared
from beacon_ota.orchestrator.limits import LIMITS

T = TypeVar("T")
LOCK_TIMEOUT_S = 30.0  # for which a call waits for SQLite's lock while another process holds it
MIGRATIONS = Path(__file__).with_name("migrations")
WRITER_THREAD = "db-writer"  # the name of the thread that writes
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


def keep_private(path: Path) -> None:
    """Make a database file, or what is there, nobody else's: it holds keys (OSError).

    Its WAL gets the same mode, whatever the umask; one from before is changed like it.
    """
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        with suppress(FileNotFoundError, PermissionError):  # somebody else's file
            os.chmod(path.with_name(name), 0o600)


def newest_revision() -> str:
    """Return the revision that the packaged migrations lead to."""
    return max(_revisions())


def _revisions() -> set[str]:
    return {file.stem.split("_")[0] for file in MIGRATIONS.glob("versions/[0-9]*.py")}


def migrate_if_due(engine: Engine) -> None:
    """Bring the schema to the newest revision; the work of a moment when it is there already.

    Raises:
        StorageError: ``migration``; ``database_newer``: a newer release has brought it further.
    """
    newest, found = newest_revision(), None
    try:
        with engine.connect() as conn:
            if inspect(conn).has_table("alembic_version"):
                found = conn.scalar(text("SELECT version_num FROM alembic_version"))
    except SQLAlchemyError as error:
        named = StorageError("database", f"the database cannot be used: {describe_error(error)}")
        raise named from None
    if found == newest:
        return
    if found is not None:
        check_revision(found)
    # In a process of its own: what it takes is needed once, and would stay in memory for good.
    done = subprocess.run(
        [sys.executable, "-m", "beacon_ota.orchestrator.db.migrations"],
        input=engine.url.render_as_string(hide_password=False),
        capture_output=True,
        text=True,
        check=False,
        **lifeline.options(),
    )
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["it failed without a word"])[-1]
        raise StorageError("migration", f"the database could not be brought up to date: {last}")


def check_revision(found: str) -> None:
    """Refuse a database that a newer release has migrated (StorageError ``database_newer``)."""
    newest = newest_revision()
    if found not in _revisions():
        raise StorageError(
            "database_newer",
            f"the database is one of a newer release (its schema is {found}, this release knows"
            f" {newest} at most): start that release again, or put back a backup from before it",
            found=found,
            expected=newest,
        )


def run_migrations(engine: Engine) -> None:
    """Run the migrations that are due, in one transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "head")


@contextmanager
def open_offline(folder: Path) -> Iterator[Connection]:
    """Open the database of a data folder for one transaction, with or without a server running."""
    if not (folder / "beacon-ota.db").is_file():
        raise ReachError("data_missing", f"{folder} holds no orchestrator data", found=str(folder))
    engine = connect(sqlite_url(folder))
    try:
        migrate_if_due(engine)
        with storage_errors(), engine.begin() as conn:
            yield conn
    finally:
        engine.dispose()


class _Job(NamedTuple):
    work: Callable[..., Any]
    args: tuple[Any, ...]
    then: Callable[[Any], object] | None
    future: "asyncio.Future[Any]"
    reads: bool = False


class Database:
    """Runs store functions: ``await db.write(fn, …)`` and ``await db.read(fn, …)``.

    Writes that arrive while a transaction is being committed share the next one. ``write``
    returns after the commit, and ``then`` has been called with the result by that time, on the
    event loop and in the order of the commits: that is how the view in memory follows.
    """

    def __init__(self, url: str, *, readers: int = 2, worker: str = ""):
        self.url = url
        if url.startswith("sqlite:///"):
            path = Path(url.removeprefix("sqlite:///"))
            try:
                keep_private(path)
            except OSError as error:
                raise StorageError(
                    "data_unusable", f"cannot write {path}: {error.strerror}", found=str(path)
                ) from None
        self._engine = connect(url, worker=worker)
        migrate_if_due(self._engine)
        self._reading = connect(url, readonly=True)
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="db-reader")
        self._beacons_reader = ThreadPoolExecutor(1, thread_name_prefix="db-beacons")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._run, name=WRITER_THREAD, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.commits = 0
        self.writes = 0
        self.commit_in_doubt = (
            False  # a commit of ours may have been made without our knowing; the writer's
        )

    def start(self) -> None:
        """Start the writer; the running loop is the one that results come back to."""
        self._loop = asyncio.get_running_loop()
        self._writer.start()

    async def stop(self) -> None:
        """Commit what is queued, then close every connection."""
        self._jobs.put(None)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._beacons_reader, self._writer.join)
        self._readers.shutdown(wait=True)
        self._beacons_reader.shutdown(wait=True)
        self._engine.dispose()
        self._reading.dispose()

    def write(
        self, work: Callable[..., T], *args: Any, then: Callable[[T], object] | None = None
    ) -> "asyncio.Future[T]":
        """Queue ``work(conn, *args)``; the future resolves when its transaction is durable.

        The future may be dropped: the work is done, and ``then`` called, all the same.
        """
        return self._queue(work, args, then)

    def read_in_order(
        self, work: Callable[..., T], *args: Any, then: Callable[[T], object]
    ) -> "asyncio.Future[T]":
        """Run a reading ``work`` between two of our own commits; ``then`` comes between theirs.

        So what it read is never older than what ``then`` of a commit before it has told.
        """
        return self._queue(work, args, then, reads=True)

    def _queue(
        self, work: Callable[..., T], args: Any, then: Any, reads: bool = False
    ) -> "asyncio.Future[T]":
        assert self._loop is not None
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(work, args, then, future, reads))
        return future

    async def read(self, work: Callable[..., T], *args: Any) -> T:
        """Run ``work(conn, *args)`` on a reader's connection."""
        return await asyncio.get_running_loop().run_in_executor(
            self._readers, self._read, work, args
        )

    async def read_for_beacon(self, work: Callable[..., T], *args: Any) -> T:
        """Like :meth:`read`, behind no administrator's: listings and statistics take their time."""
        return await asyncio.get_running_loop().run_in_executor(
            self._beacons_reader, self._read, work, args
        )

    def read_now(self, work: Callable[..., T], *args: Any) -> T:
        """Like :meth:`read`, in the calling thread; for the time before the server listens."""
        return self._read(work, args)

    def _read(self, work: Callable[..., T], args: tuple[Any, ...]) -> T:
        with storage_errors("the database cannot be read"), self._reading.connect() as conn:
            return work(conn, *args)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            batch: list[_Job] = []
            job = self._jobs.get()
            while job is not None and len(batch) < LIMITS.write_batch:
                batch.append(job)
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            else:
                stopping = job is None
                if job is not None:  # taken beyond the bound of the batch
                    batch.append(job)
            for reads, group in groupby(batch, key=lambda job: job.reads):
                jobs = list(group)
                self._settle(self._look(jobs) if reads else self._commit(jobs))

    def _commit(self, batch: list[_Job]) -> "list[_Done]":
        try:
            with self._engine.connect() as conn:
                return self._transact(conn, batch)
        except Exception as error:  # there is no connection to be had
            return [_Done(job, self._named(error), False) for job in batch]

    def _transact(self, conn: Connection, batch: Sequence[_Job]) -> "list[_Done]":
        """Commit a batch as one transaction; when a job fails, each as one of its own."""
        try:
            with conn.begin():
                done = [_Done(job, job.work(conn, *job.args), True) for job in batch]
                prepared.flush_deferred(conn)
            self.commits += 1
            self.writes += len(batch)
            return done
        except Exception as error:
            if _is_lost(conn):  # whether the commit was made nobody knows: nothing twice
                self.commit_in_doubt = True
                conn.invalidate()
                return [_Done(job, self._named(error), False) for job in batch]
            prepared.discard_deferred(conn)
            if len(batch) == 1:
                return [_Done(batch[0], self._named(error), False)]
            return [result for job in batch for result in self._transact(conn, [job])]

    def _look(self, jobs: list[_Job]) -> "list[_Done]":
        done = []
        for job in jobs:
            try:
                done.append(_Done(job, self._read(job.work, job.args), True))
            except Exception as error:
                done.append(_Done(job, self._named(error), False))
        return done

    def _named(self, error: Exception) -> Exception:
        if is_driver_error(error) and not isinstance(error, BeaconOtaError):
            reason = describe_error(error)
            return StorageError("storage", f"the database refused the change: {reason}")
        return error

    def _settle(self, done: "list[_Done]") -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_resolve, done)
        except RuntimeError:
            pass  # the loop is gone: nobody is left to be told


class _Done(NamedTuple):
    job: _Job
    result: Any
    succeeded: bool


def _is_lost(conn: Connection) -> bool:
    """Tell whether a connection is of no use any more; SQLite's never is."""
    if conn.invalidated:
        return True
    return bool(getattr(conn.connection.dbapi_connection, "closed", False))


def _resolve(done: list[_Done]) -> None:
    for job, result, succeeded in done:
        if succeeded and job.then is not None:
            try:
                job.then(result)
            except Exception as error:  # a defect; its waiter must hear of it, the others go on
                result, succeeded = error, False
        if job.future.done():
            continue
        if succeeded:
            job.future.set_result(result)
        else:
            job.future.set_exception(result)
            # A dropped future's failure has no reader, and asyncio would complain at its end.
            job.future.exception()
