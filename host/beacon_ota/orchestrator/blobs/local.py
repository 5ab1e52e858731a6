"""Stores image files by their SHA-256: written once, never changed.

A file is written under a temporary name, synchronised and linked before the row that refers to it
is committed. So every row has its bytes, and a crash leaves only files without a row, which are
removed later (``sweep``). Images are served from memory and hashed on the way there: damage on the
disk is noticed before the first byte is sent.
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import re
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from beacon_ota.errors import InputError, ReachError
from beacon_ota.orchestrator.blobs.block_index import BlockIndexes
from beacon_ota.orchestrator.folder import data_unusable
from beacon_ota.orchestrator.limits import LIMITS

log = logging.getLogger("beacon_ota.orchestrator")

_PART_SUFFIX = ".part"
_DIGEST = re.compile("[0-9a-f]{64}")
# Errors that say nothing about the bytes: missing resources or permissions, a network file system
# that does not answer. They withdraw no release; the read is tried again.
_TRANSIENT_ERRNOS = frozenset(
    number
    for number, name in errno.errorcode.items()
    if name
    in {
        *("EACCES", "EAGAIN", "EBUSY", "EHOSTDOWN", "EHOSTUNREACH", "EINTR", "EMFILE", "ENETDOWN"),
        *("ENETUNREACH", "ENFILE", "ENOMEM", "ENOTCONN", "EPERM", "ESTALE", "ETIMEDOUT"),
    }
)
_READERS = 4  # images read at once; few are needed, and each stays in memory


class BlobDamaged(InputError):
    """The file is missing, or its bytes have changed."""


class LocalBlobStore:
    """A folder of files by digest, and a cache of those in use."""

    def __init__(self, folder: Path):
        self._folder = folder / "blobs"
        self._incoming = folder / "incoming"
        for path in (self._folder, self._incoming):
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                next(path.iterdir(), None)
            except OSError as error:
                raise data_unusable(path, error) from None
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._loading: dict[str, asyncio.Future[bytes]] = {}
        # Threads for beacons only, so that downloads do not wait for administrators' work.
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="images")
        self.block_indexes = BlockIndexes(folder / "blocks", self.read_verified, self._readers)

    def path(self, digest: str) -> Path:
        """Return the path of the file with a digest."""
        return self._folder / digest

    def has(self, digest: str) -> bool:
        """Tell whether the file with a digest exists."""
        return self.path(digest).exists()

    def partial_path(self, digest: str) -> Path:
        """Return the path of a download in progress, which a start of the server keeps."""
        return self._incoming / f"{digest}{_PART_SUFFIX}"

    def open_incoming(self) -> BinaryIO:
        """Return a new temporary file; it is removed when closed, unless committed."""
        return tempfile.NamedTemporaryFile(  # type: ignore[return-value]
            dir=self._incoming, prefix="upload-", delete=True
        )

    def commit(self, file: BinaryIO, digest: str) -> bool:
        """Store a temporary file under its digest; durable on return.

        Returns:
            False if the digest is stored already.
        """
        path = self.path(digest)
        if path.exists():
            return False
        file.flush()
        os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process stored the same bytes
            os.link(file.name, path)  # the temporary name is removed when the file is closed
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return True

    def remove(self, digest: str) -> None:
        """Remove a file that no release refers to."""
        self.evict(digest)
        self.block_indexes.remove(digest)
        self.path(digest).unlink(missing_ok=True)

    def evict(self, digest: str) -> None:
        """Remove an image from the cache."""
        self._cache.pop(digest, None)

    def sweep(self, referenced: set[str], age_s: float = 0.0) -> list[str]:
        """Remove unfinished uploads and files without a release.

        Args:
            referenced: digests of all releases.
            age_s: files that were written in the last so many seconds stay.

        Returns:
            The digests of the removed files.
        """
        horizon = time.time() - age_s
        for file in self._incoming.iterdir():
            if file.suffix != _PART_SUFFIX and _modified_at(file) <= horizon:
                with _log_failed_removal(file):
                    file.unlink(missing_ok=True)
        removed = []
        for digest in self.orphans(referenced, horizon):
            with _log_failed_removal(self.path(digest)):
                self.remove(digest)
                removed.append(digest)
        return removed

    def orphans(self, referenced: set[str], horizon: float) -> list[str]:
        """Return the digests without a release, written before ``horizon`` (UTC seconds)."""
        return [
            file.name
            for file in self._folder.iterdir()
            if _DIGEST.fullmatch(file.name)
            and file.name not in referenced
            and _modified_at(file) <= horizon
        ]

    async def load(self, digest: str) -> bytes:
        """Return an image from the cache, or read and verify it.

        Raises:
            BlobDamaged: ``blob_missing`` or ``blob_damaged``. ReachError: ``images_unreachable``.
        """
        data = self._cache.get(digest)
        if data is not None:
            self._cache.move_to_end(digest)
            return data
        task = self._loading.get(digest)
        if task is None:  # concurrent readers share one task
            loop = asyncio.get_running_loop()
            task = loop.run_in_executor(self._readers, self.read_verified, digest)
            self._loading[digest] = task
            task.add_done_callback(lambda done: self._cache_loaded(digest, done))
        return await asyncio.shield(task)

    def read_verified(self, digest: str) -> bytes:
        """Read a file and verify its digest; blocks."""
        data = self.read(digest)
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            raise BlobDamaged(
                "blob_damaged",
                "the image file changed on the disk",
                found=found,
                expected=digest,
            )
        return data

    def read(self, digest: str) -> bytes:
        """Read a file.

        Raises:
            BlobDamaged: ``blob_missing``. ReachError: ``images_unreachable``.
        """
        try:
            return self.path(digest).read_bytes()
        except OSError as error:
            why = f"the image file cannot be read: {error.strerror or error}"
            if error.errno in _TRANSIENT_ERRNOS:
                raise ReachError("images_unreachable", why, found=digest) from None
            raise BlobDamaged("blob_missing", why) from None

    def close(self) -> None:
        """Cancel reads that have not begun."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _cache_loaded(self, digest: str, task: "asyncio.Future[bytes]") -> None:
        del self._loading[digest]
        if task.cancelled() or task.exception() is not None:
            return
        self._cache[digest] = task.result()
        while len(self._cache) > 1 and sum(map(len, self._cache.values())) > LIMITS.blob_cache:
            self._cache.popitem(last=False)


@contextlib.contextmanager
def _log_failed_removal(file: Path) -> Iterator[None]:
    """Log a file that cannot be removed: it must not keep the server from starting."""
    try:
        yield
    except OSError as error:
        log.warning("%s is left over and cannot be removed: %s", file, error.strerror)


def _modified_at(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return float("inf")  # another process has removed it
