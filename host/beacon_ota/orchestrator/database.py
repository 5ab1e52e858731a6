"""The database: one writer thread with group commit, a few readers, migrations at start.

Store functions are synchronous and take a connection; they neither commit nor touch anything but
the database, so that a batch of them can be one transaction and can be run again one by one when
a single one of them fails.
"""

import asyncio
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from beacon_ota.errors import BeaconOtaError, ReachError
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.store import prepared

T = TypeVar("T")
MIGRATIONS = Path(__file__).with_name("migrations")


class StorageError(ReachError):
    """The database refused a transaction: disk full, locked, damaged."""


def connect(url: str, *, readonly: bool = False) -> Engine:
    """Return an engine for ``url``.

    SQLite runs in WAL mode with full synchronisation: a commit that returned survives a power
    cut. A writing transaction takes the write lock when it begins, so what it reads stays true.
    """
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

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


def newest_revision() -> str:
    """Return the revision that the packaged migrations lead to."""
    return max(file.stem.split("_")[0] for file in MIGRATIONS.glob("versions/[0-9]*.py"))


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest revision; the work of a moment when it is there already.

    Raises:
        StorageError: ``migration``.
    """
    with engine.connect() as conn:
        known = inspect(conn).has_table("alembic_version")
        if known and conn.scalar(text("SELECT version_num FROM alembic_version")) == (
            newest_revision()
        ):
            return
    # In a process of its own: what it takes is needed once, and would stay in memory for good.
    done = subprocess.run(
        [sys.executable, "-m", "beacon_ota.orchestrator.migrations"],
        input=engine.url.render_as_string(hide_password=False),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise StorageError("migration", f"the database could not be brought up to date: {last}")


def upgrade(engine: Engine) -> None:
    """Run the migrations that are due, in one transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "head")


@contextmanager
def offline(folder: Path) -> Iterator[Connection]:
    """Open the database of a data folder for one transaction, with or without a server running."""
    if not (folder / "beacon-ota.db").is_file():
        raise ReachError("data_missing", f"{folder} holds no orchestrator data", found=str(folder))
    engine = connect(sqlite_url(folder))
    try:
        migrate(engine)
        with engine.begin() as conn:
            yield conn
    finally:
        engine.dispose()


class _Job(NamedTuple):
    work: Callable[..., Any]
    args: tuple[Any, ...]
    then: Callable[[Any], object] | None
    future: "asyncio.Future[Any]"


class Database:
    """Runs store functions: ``await db.write(fn, …)`` and ``await db.read(fn, …)``.

    Writes that arrive while a transaction is being committed share the next one. ``write``
    returns after the commit, and ``then`` has been called with the result by that time, on the
    event loop and in the order of the commits: that is how the view in memory follows.
    """

    def __init__(self, url: str, *, readers: int = 2):
        self.url = url
        if url.startswith("sqlite:///"):
            path = Path(url.removeprefix("sqlite:///"))
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))  # it holds keys
        self._engine = connect(url)
        migrate(self._engine)
        self._reading = connect(url, readonly=True)
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="db-reader")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._run, name="db-writer", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.commits = 0
        self.writes = 0

    def start(self) -> None:
        """Start the writer; the running loop is the one that results come back to."""
        self._loop = asyncio.get_running_loop()
        self._writer.start()

    async def stop(self) -> None:
        """Commit what is queued, then close every connection."""
        self._jobs.put(None)
        await asyncio.to_thread(self._writer.join)
        self._readers.shutdown(wait=True)
        self._engine.dispose()
        self._reading.dispose()

    def write(
        self, work: Callable[..., T], *args: Any, then: Callable[[T], object] | None = None
    ) -> "asyncio.Future[T]":
        """Queue ``work(conn, *args)``; the future resolves when its transaction is durable.

        The future may be dropped: the work is done, and ``then`` called, all the same.
        """
        assert self._loop is not None
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(work, args, then, future))
        return future

    async def read(self, work: Callable[..., T], *args: Any) -> T:
        """Run ``work(conn, *args)`` on a reader's connection."""
        return await asyncio.get_running_loop().run_in_executor(
            self._readers, self._read, work, args
        )

    def read_now(self, work: Callable[..., T], *args: Any) -> T:
        """Like :meth:`read`, in the calling thread; for the time before the server listens."""
        return self._read(work, args)

    def _read(self, work: Callable[..., T], args: tuple[Any, ...]) -> T:
        with self._reading.connect() as conn:
            return work(conn, *args)

    def _run(self) -> None:
        stopping = False
        with self._engine.connect() as conn:
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
                if batch:
                    self._settle(self._transact(conn, batch))

    def _transact(self, conn: Connection, batch: list[_Job]) -> list[tuple[_Job, Any, bool]]:
        """Commit a batch as one transaction; when a job fails, each as one of its own."""
        try:
            with conn.begin():
                done = [(job, job.work(conn, *job.args), True) for job in batch]
                prepared.flush(conn)
            self.commits += 1
            self.writes += len(batch)
            return done
        except Exception as error:
            prepared.discard(conn)
            if len(batch) == 1:
                return [(batch[0], _named(error), False)]
        return [result for job in batch for result in self._transact(conn, [job])]

    def _settle(self, done: list[tuple[_Job, Any, bool]]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_resolve, done)
        except RuntimeError:
            pass  # the loop is gone: nobody is left to be told


def _named(error: Exception) -> Exception:
    if isinstance(error, SQLAlchemyError) and not isinstance(error, BeaconOtaError):
        return StorageError("storage", f"the database refused the change: {error}")
    return error


def _resolve(done: list[tuple[_Job, Any, bool]]) -> None:
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
