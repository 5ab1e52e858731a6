"""Stores images in an object store (S3-compatible, Google, Azure), or in another folder.

The guarantees are those of ``blobs.local``: complete before the row that refers to it, hashed on
the way into memory. A store that does not answer withdraws no release: the request is repeated.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from beacon_ota.errors import ReachError, UsageError
from beacon_ota.orchestrator.blobs.local import BlobDamaged, LocalBlobStore

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_TIMEOUT = timedelta(seconds=20)
_RETRIES = 3


def open_blob_store(data: Path, images: str | None) -> LocalBlobStore:
    """Return the store for ``images``: a URL or a folder; None is the data folder.

    Raises:
        UsageError: ``images_url``; ``images_support`` without the package for object stores.
    """
    if not images:
        return LocalBlobStore(data)
    parts = urlsplit(images)
    if parts.scheme in SCHEMES:
        return ObjectBlobStore(data, images)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return LocalBlobStore(Path(unquote(parts.path)))
    if parts.scheme and len(parts.scheme) > 1:
        raise UsageError(
            "images_url",
            "images cannot be kept there",
            found=images,
            expected=[*(f"{scheme}://" for scheme in SCHEMES), "a folder"],
        )
    return LocalBlobStore(Path(images))


class ObjectBlobStore(LocalBlobStore):
    """Images as objects named by their digest; uploads and downloads grow in the data folder.

    Credentials and endpoint come from the environment, in the names of the store's own tools
    (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS`` …). All methods
    block.
    """

    def __init__(self, data: Path, url: str):
        super().__init__(data)
        try:
            from obstore import exceptions
            from obstore.store import from_url
        except ImportError:
            raise UsageError(
                "images_support",
                "object stores need another package",
                expected="pip install 'beacon-ota[objects]'",
            ) from None
        self._url = url
        plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
        self._errors = exceptions
        with self._translate_errors():
            self._objects: Any = from_url(
                url,
                client_options={
                    "timeout": _TIMEOUT,
                    "connect_timeout": _TIMEOUT / 2,
                    "allow_http": plain,
                },
                retry_config={"max_retries": _RETRIES, "retry_timeout": _TIMEOUT},
            )

    def has(self, digest: str) -> bool:
        """Tell whether the object with a digest exists."""
        try:
            with self._translate_errors():
                self._objects.head(digest)
        except FileNotFoundError:
            return False
        return True

    def commit(self, file: BinaryIO, digest: str) -> bool:
        """Store a temporary file; durable on return. False if the digest is stored already."""
        if self.has(digest):
            return False
        file.seek(0)
        with self._translate_errors():
            self._objects.put(digest, file.read())
        return True

    def remove(self, digest: str) -> None:
        """Remove an object that no release refers to."""
        self.evict(digest)
        self.block_indexes.remove(digest)
        try:
            with self._translate_errors():
                self._objects.delete(digest)
        except FileNotFoundError:
            pass

    def orphans(self, referenced: set[str], horizon: float) -> list[str]:
        """Return the digests without a release, stored before ``horizon`` (UTC seconds)."""
        before = datetime.fromtimestamp(horizon, UTC)
        with self._translate_errors():
            return [
                one["path"]
                for some in self._objects.list()
                for one in some
                if one["path"] not in referenced and one["last_modified"] <= before
            ]

    def read(self, digest: str) -> bytes:
        """Read an object.

        Raises:
            BlobDamaged: ``blob_missing``. ReachError: ``images_unreachable``.
        """
        try:
            with self._translate_errors():
                return bytes(self._objects.get(digest).bytes())
        except FileNotFoundError:
            raise BlobDamaged("blob_missing", "the image is not in its store") from None

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Turn the store's errors into FileNotFoundError and ReachError."""
        try:
            yield
        except (FileNotFoundError, self._errors.NotFoundError) as error:
            raise FileNotFoundError(str(error)) from None
        except (self._errors.BaseError, OSError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise ReachError(
                "images_unreachable",
                f"the store of the images cannot be used: {reason}",
                found=self._url,
            ) from None
