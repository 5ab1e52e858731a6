"""The database: one writer thread with group commit, a few readers, migrations at start.

SQLite, or PostgreSQL with any number of processes. Both have one writing transaction at a time:
SQLite by itself, PostgreSQL by a lock that such a transaction takes first. So what a transaction
reads stays true until it commits, the chain of the audit log has one end, and numbers that rows
get follow the order of the commits. A transaction carries up to 512 changes.

Store functions are synchronous and take a connection. They neither commit nor use anything but the
database, so that many of them can share one transaction, and each can run again by itself when one
of them fails. They get the values that they need of the fleet state as arguments, because they run
later, in another thread, when the fleet state may have changed (``guard``).
"""

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection

from beacon_ota.errors import BeaconOtaError
from beacon_ota.orchestrator.db.connection import (
    StorageError,
    connect,
    describe_error,
    is_driver_error,
    storage_errors,
)
from beacon_ota.orchestrator.db.schema_version import migrate_if_due
from beacon_ota.orchestrator.db.tables import prepared
from beacon_ota.orchestrator.limits import LIMITS

T = TypeVar("T")
WRITER_THREAD = "db-writer"  # the name of the thread that writes


def keep_private(path: Path) -> None:
    """Make a database file, or what is there, nobody else's: it holds keys (OSError).

    Its WAL gets the same mode, whatever the umask; one from before is changed like it.
    """
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        with suppress(FileNotFoundError, PermissionError):  # somebody else's file
            os.chmod(path.with_name(name), 0o600)


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
