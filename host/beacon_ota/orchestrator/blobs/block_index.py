"""Keeps the block indexes of images: in memory, on the disk, and computed from the image.

An index on the disk is a cache. Its file ends with a SHA-256 over the image's digest and the index,
so that a damaged file, or one of another image, is noticed, computed again and replaced. A folder
that cannot be written costs the computation, and nothing else.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from beacon_ota.images import blocks
from beacon_ota.orchestrator.limits import LIMITS

log = logging.getLogger("beacon_ota.orchestrator")

_SUM_SIZE = 32  # bytes at the end of a file
_IN_MEMORY = 64  # indexes; 4 KiB each at most


class BlockIndexes:
    """The indexes of one store of images.

    Args:
        folder: where their files are, each named by its image's digest.
        read_image: returns an image by its digest, verified; blocks.
        readers: threads for that.
    """

    def __init__(self, folder: Path, read_image: Callable[[str], bytes], readers: Executor):
        self._folder = folder
        self._read_image = read_image
        self._readers = readers
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._loading: dict[str, asyncio.Future[bytes]] = {}

    async def load(self, digest: str) -> bytes:
        """Return the index of a plain image; reading and computing do not block the event loop.

        Raises:
            BlobDamaged, ReachError: as ``LocalBlobStore.load``, if the image has to be read.
        """
        index = self._cache.get(digest)
        if index is not None:
            self._cache.move_to_end(digest)
            return index
        task = self._loading.get(digest)
        if task is None:  # concurrent readers share one task
            loop = asyncio.get_running_loop()
            task = loop.run_in_executor(self._readers, self._read_or_compute, digest)
            self._loading[digest] = task
            task.add_done_callback(lambda done: self._loaded(digest, done))
        return await asyncio.shield(task)

    def read(self, digest: str) -> bytes:
        """Return the index of a plain image; blocks. Raises as :meth:`load`."""
        return self._cache.get(digest) or self._read_or_compute(digest)

    def remove(self, digest: str) -> None:
        """Forget the index of an image that is removed."""
        self._cache.pop(digest, None)
        with contextlib.suppress(OSError):
            (self._folder / digest).unlink(missing_ok=True)

    def _loaded(self, digest: str, task: "asyncio.Future[bytes]") -> None:
        del self._loading[digest]
        if task.cancelled() or task.exception() is not None:
            return
        self._cache[digest] = task.result()
        while len(self._cache) > _IN_MEMORY:
            self._cache.popitem(last=False)

    def _read_or_compute(self, digest: str) -> bytes:
        path = self._folder / digest
        try:
            with path.open("rb") as file:
                data = file.read(blocks.index_size(LIMITS.upload_image) + _SUM_SIZE + 1)
            index = data[:-_SUM_SIZE]
            if data == index + _sum_of(digest, index):
                return index
            log.warning("the block index %s changed on the disk; it is computed again", digest)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("the block index %s cannot be read: %s", digest, error.strerror)
        index = blocks.hash_sectors(self._read_image(digest))
        try:
            self._write(path, index + _sum_of(digest, index))
        except OSError as error:
            log.warning("the block index %s cannot be kept: %s", digest, error.strerror)
        return index

    def _write(self, path: Path, data: bytes) -> None:
        """Replace a file in one step; the oldest files go where there are too many."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.replace(file.name, path)
            except OSError:
                Path(file.name).unlink(missing_ok=True)
                raise
        files = []
        with os.scandir(self._folder) as found:
            for one in found:
                with contextlib.suppress(FileNotFoundError):  # another process removed it
                    files.append((one.stat().st_mtime, one.path))
        for _, name in sorted(files)[: -LIMITS.block_indexes]:
            Path(name).unlink(missing_ok=True)


def _sum_of(digest: str, index: bytes) -> bytes:
    return hashlib.sha256(digest.encode() + index).digest()
