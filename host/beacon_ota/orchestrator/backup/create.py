"""Takes a backup of a data folder, whether or not a server runs on it.

SQLite's own backup copies the database as it is at one moment, while the server goes on writing.
Images never change, so they are copied after it: whatever the copy refers to was there before.
"""

import contextlib
import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import quote

from beacon_ota import __version__
from beacon_ota.errors import InputError, ReachError, UsageError
from beacon_ota.orchestrator import folder
from beacon_ota.orchestrator.backup.contents import (
    ARCHIVE,
    DATABASE,
    IMAGES,
    INDEX,
    KEYS,
    BackupIndex,
    Entry,
)
from beacon_ota.orchestrator.blobs.local import BlobDamaged
from beacon_ota.orchestrator.blobs.object_store import open_blob_store
from beacon_ota.orchestrator.db.connection import (
    LOCK_TIMEOUT_S,
    StorageError,
    describe_error,
    storage_errors,
)

_PAGES = 2048  # of the database, between two looks at the progress
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")


@dataclass(frozen=True, slots=True)
class BackupSource:
    """What is backed up: as ``beacon-ota serve`` was told.

    Attributes:
        keys: of trusted keys; None: that of the data folder, if it has one.
        images: where they are; None: in the data folder.
    """

    data: Path
    keys: Path | None = None
    images: str | None = None


def create_backup(
    what: BackupSource, target: Path, told: Callable[[int, int], object] = lambda done, total: None
) -> BackupIndex:
    """Take a backup; whole or not at all.

    Args:
        target: a name that ends with ``.tar``, or a folder that is new or empty.
        told: called with the bytes done and the bytes in all, as far as they are known.

    Returns:
        Its index; ``missing`` in it are images that were damaged, and are not in the backup.

    Raises:
        ReachError: ``data_missing``, ``images_unreachable``. StorageError: ``storage``,
            ``database_damaged``. UsageError: ``backup_name``, ``backup_exists``,
            ``backup_unwritable``, ``restore_unfinished``. InputError: ``keys_missing``.
    """
    database = what.data / DATABASE
    if not database.is_file():
        raise ReachError(
            "data_missing",
            f"{what.data} holds no database; that of an orchestrator on PostgreSQL is saved by"
            " pg_dump (docs/postgresql.md)",
            found=str(what.data),
        )
    folder.refuse_unfinished(what.data)
    _refuse(target)
    with _named(target), _sink(target) as sink:
        with sink.database() as copy:
            schema, digests = _copy_database(database, copy, told)
            files = {DATABASE: _entry(copy)}
        keys = what.keys or what.data / KEYS
        if what.keys is not None or keys.is_file():
            files[KEYS] = sink.put(KEYS, _read_keys(keys))
        missing = []
        blobs = open_blob_store(what.data, what.images)
        try:
            for number, digest in enumerate(sorted(digests)):
                try:
                    data = blobs.read_verified(digest)
                except BlobDamaged:
                    missing.append(digest)
                    continue
                files[f"{IMAGES}/{digest}"] = sink.put(f"{IMAGES}/{digest}", data)
                done = sum(entry.size for entry in files.values())
                told(done, done + (len(digests) - number - 1) * len(data))
        finally:
            blobs.close()
        made_at = datetime.fromtimestamp(int(time.time()), UTC).isoformat()
        index = BackupIndex(made_at, __version__, schema, files, tuple(missing))
        sink.put(INDEX, index.text())
    told(index.size, index.size)
    return index


def _refuse(target: Path) -> None:
    if target.suffix in _COMPRESSED:
        raise UsageError(
            "backup_name",
            "a backup is not compressed: images hardly get smaller",
            found=target.name,
            expected="a name that ends with .tar, or a folder",
        )
    there = target.exists() or target.is_symlink()
    if there and (target.suffix == ARCHIVE or not target.is_dir() or any(target.iterdir())):
        raise UsageError(
            "backup_exists",
            f"{target} is there already, and is not overwritten",
            found=str(target),
            expected="a new file, or a folder that is new or empty",
        )


def _copy_database(
    source: Path, copy: Path, told: Callable[[int, int], object]
) -> tuple[str, set[str]]:
    """Copy the database as it is now; return its revision, and the digests of its images."""

    def went_on(_status: int, left: int, pages: int) -> None:
        told((pages - left) * size, pages * size)

    with (
        storage_errors(f"{source} cannot be copied"),
        closing(_open(source)) as here,
        closing(sqlite3.connect(copy, isolation_level=None)) as there,
    ):
        (size,) = here.execute("PRAGMA page_size").fetchone()
        # Within a transaction that reads: else it begins anew whenever the server has written.
        here.execute("BEGIN")
        here.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        here.backup(there, pages=_PAGES, progress=went_on)
        there.execute("PRAGMA journal_mode=DELETE")  # the copy is one file
        check_database(there)
        schema = revision(there)
        if schema is None:
            raise ReachError("data_missing", f"{source} is no database of an orchestrator")
        return schema, {row[0] for row in there.execute("SELECT DISTINCT blob FROM firmwares")}


def check_database(conn: sqlite3.Connection) -> None:
    """Have SQLite look at every page of a database (StorageError ``database_damaged``)."""
    try:
        found = [row[0] for row in conn.execute("PRAGMA integrity_check(1)")]
    except sqlite3.DatabaseError as error:
        found = [describe_error(error)]
    if found != ["ok"]:
        raise StorageError(
            "database_damaged", "the database is damaged", found=str(found[0]).splitlines()[0][:120]
        )


def revision(conn: sqlite3.Connection) -> str | None:
    """Return the revision of a database's schema; None when it is no orchestrator's."""
    try:
        row = conn.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError:
        return None
    return None if row is None else str(row[0])[:64]


def _open(file: Path) -> sqlite3.Connection:
    """Open a database that is there."""
    uri = f"file:{quote(str(file.absolute()))}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT_S, isolation_level=None)


def _read_keys(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(
            "keys_missing", f"{file} cannot be read: {error.strerror}", found=str(file)
        ) from None


def _entry(file: Path) -> Entry:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return Entry(opened.tell(), digest)


@contextlib.contextmanager
def _named(target: Path) -> Iterator[None]:
    """Name what a disk refuses."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            "backup_unwritable",
            f"{target} cannot be written: {error.strerror or error}",
            found=str(target),
        ) from None


class _Sink(Protocol):
    """Where a backup grows; gone again unless it became whole."""

    def database(self) -> contextlib.AbstractContextManager[Path]:
        """Give an empty file to copy the database to, and take it when the block ends."""
        ...

    def put(self, name: str, data: bytes) -> Entry:
        """Store a file."""
        ...


@contextlib.contextmanager
def _sink(target: Path) -> Iterator[_Sink]:
    """Have a backup grow beside its place, and go there when it is whole and on the disk."""
    place = target.absolute()
    growing = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))  # mode 0700
    try:
        os.chmod(growing, 0o700)
        if place.suffix == ARCHIVE:
            file = growing / place.name
            with _created(file) as out:
                with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
                    yield _Archive(growing, archive)
                out.flush()
                os.fsync(out.fileno())
            file.rename(place)
        else:
            (growing / IMAGES).mkdir()
            os.chmod(growing / IMAGES, 0o700)
            yield _Folder(growing)
            folder.synchronise(growing / IMAGES)
            folder.synchronise(growing)
            growing.rename(place)  # an empty folder gives way
        folder.synchronise(place.parent)
    finally:
        shutil.rmtree(growing, ignore_errors=True)


class _Folder:
    def __init__(self, path: Path):
        self._path = path

    @contextlib.contextmanager
    def database(self) -> Iterator[Path]:
        file = self._path / DATABASE
        _created(file).close()
        yield file
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())

    def put(self, name: str, data: bytes) -> Entry:
        with _created(self._path / name) as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        return Entry(len(data), hashlib.sha256(data).hexdigest())


class _Archive:
    def __init__(self, path: Path, archive: tarfile.TarFile):
        self._path, self._archive = path, archive

    @contextlib.contextmanager
    def database(self) -> Iterator[Path]:
        file = self._path / DATABASE
        _created(file).close()
        yield file
        with file.open("rb") as opened:
            self._add(DATABASE, file.stat().st_size, opened)
        file.unlink()

    def put(self, name: str, data: bytes) -> Entry:
        self._add(name, len(data), io.BytesIO(data))
        return Entry(len(data), hashlib.sha256(data).hexdigest())

    def _add(self, name: str, size: int, file: BinaryIO) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o600, int(time.time())
        self._archive.addfile(info, file)


def _created(file: Path) -> BinaryIO:
    """Make a file that nobody else reads, whatever the umask."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)
    return os.fdopen(descriptor, "wb")
