"""Puts a backup into an empty data folder.

A file in the folder says that this is under way, and keeps a server from starting on half of it.
The last step is a note that makes the next start pause every rollout: the database does not know
what was halted since the backup was made.
"""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator import folder
from beacon_ota.orchestrator.backup.contents import (
    DATABASE,
    IMAGES,
    KEYS,
    BackupIndex,
    BackupReader,
    damaged,
    open_backup,
)
from beacon_ota.orchestrator.backup.create import check_database, revision
from beacon_ota.orchestrator.blobs.object_store import open_blob_store
from beacon_ota.orchestrator.core.audit_note import note_restored
from beacon_ota.orchestrator.db.connection import StorageError, storage_errors
from beacon_ota.orchestrator.db.schema_version import check_revision

_IGNORED = {
    folder.LOCK_FILE,
    "lost+found",
}  # "in-use" is empty; a file system of its own has the other


def restore_backup(
    backup: Path,
    data: Path,
    *,
    images: str | None = None,
    told: Callable[[int, int], object] = lambda done, total: None,
) -> BackupIndex:
    """Put a backup into a data folder that is new or empty; whole or not at all.

    Args:
        images: where images go, as ``beacon-ota serve`` will be told; None: into the data folder.
        told: called with the bytes done and the bytes in all.

    Raises:
        InputError: ``backup_missing``, ``backup_damaged``, ``backup_newer``.
        StorageError: ``database_newer``. UsageError: ``data_in_use``, ``data_not_empty``,
            ``data_unusable``. ReachError: ``images_unreachable``.
    """
    with open_backup(backup) as source:
        check_revision(source.index.schema)  # before anything is copied
        _refuse(data)
        new = not data.exists()
        folder.make_folder(data, restoring=True)
        try:
            with folder.lock_folder(data), _whole_or_nothing(data), _named(data):
                done = _copy(source, data, images, told)
                told(done, done)
        except BaseException:
            if new and {file.name for file in data.iterdir()} <= {folder.LOCK_FILE}:
                _remove(data)
            raise
        return source.index


def _refuse(data: Path) -> None:
    if not data.exists():
        return
    if not data.is_dir():
        raise UsageError("data_unusable", f"{data} is no folder", found=str(data))
    with (
        folder.lock_folder(data, instead="another --data, or stop that orchestrator first")
        if (data / folder.LOCK_FILE).exists()
        else contextlib.nullcontext()
    ):
        there = sorted(file.name for file in data.iterdir() if file.name not in _IGNORED)
    if there:
        raise UsageError(
            "data_not_empty",
            f"{data} is not empty, and nothing in it is overwritten: move it away, or name another",
            found=", ".join(there[:5]),
            expected="an empty folder, or a name that is free",
        )


def _copy(
    source: BackupReader, data: Path, images: str | None, told: Callable[[int, int], object]
) -> int:
    index, done = source.index, 0

    def write(name: str, file: Path) -> None:
        nonlocal done
        with _created(file) as descriptor:
            for piece in source.pieces(name):
                view = memoryview(piece)
                while view:
                    view = view[os.write(descriptor, view) :]
                done += len(piece)
                told(done, index.size)
            os.fsync(descriptor)

    blobs = open_blob_store(data, images)
    try:
        for digest in index.images:
            with blobs.open_incoming() as file:
                for piece in source.pieces(f"{IMAGES}/{digest}"):
                    file.write(piece)
                    done += len(piece)
                blobs.commit(file, digest)
            told(done, index.size)
    finally:
        blobs.close()
    if KEYS in index.files:
        write(KEYS, data / KEYS)
    write(DATABASE, data / DATABASE)
    _check(data / DATABASE)
    note_restored(data)
    return done


def _check(file: Path) -> None:
    """See that the database is whole, and one that this release can run."""
    with storage_errors(f"{file} cannot be read"), closing(sqlite3.connect(file)) as conn:
        try:
            check_database(conn)
        except StorageError as error:
            raise damaged("its database is", found=error.found) from None
        found = revision(conn)
        if found is None:
            raise damaged("its database is not one of an orchestrator")
        check_revision(found)


@contextlib.contextmanager
def _whole_or_nothing(data: Path) -> Iterator[None]:
    """Mark the folder as one that is being filled; empty it again when that fails."""
    mark = data / folder.RESTORING
    before = {file.name for file in data.iterdir()}
    with _named(data):
        with _created(mark):
            pass
        folder.synchronise(data)
    try:
        yield
    except BaseException:
        for file in data.iterdir():
            if file.name not in before and file != mark:
                _remove(file)
        _remove(mark)
        raise
    with _named(data):
        folder.synchronise(data)
        mark.unlink()
        folder.synchronise(data)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def _named(data: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise folder.data_unusable(data, error) from None


@contextlib.contextmanager
def _created(file: Path) -> Iterator[int]:
    """Make a file that nobody else reads, whatever the umask."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        yield descriptor
    finally:
        os.close(descriptor)
