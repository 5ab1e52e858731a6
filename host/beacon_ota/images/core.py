"""Finds, reads and fetches cores: ``--core FILE``, else BEACON_OTA_CORE, else the fetched one.

The stock MicroPython for the C3 is fetched once into the user's cache, checked against the
SHA-256 below.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from beacon_ota.errors import InputError, ReachError, UsageError
from beacon_ota.images import combined
from beacon_ota.images.combined import Core

if TYPE_CHECKING:
    import requests

ENV = "BEACON_OTA_CORE"
_CONNECT_S = 10
_STALL_S = 30
_CHUNK = 64 * 1024

Progress = Callable[[int, int], None]  # bytes so far, bytes in all


@dataclass(frozen=True)
class StockCore:
    """An official build: where it is, and what it is."""

    version: str
    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """File name in the cache."""
        return self.url.rpartition("/")[2]


STOCK = StockCore(
    version="v1.27.0",
    url="https://micropython.org/resources/firmware/ESP32_GENERIC_C3-20251209-v1.27.0.bin",
    size=1_724_720,
    sha256="41388c500efaed40ca912e4917421f3fc44a99b708dcb4f68f0892df0425ecf4",
)


def cache_folder() -> Path:
    """Return the folder of fetched cores."""
    from platformdirs import user_cache_path

    return user_cache_path("beacon-ota", appauthor=False) / "cores"


def locate_core(given: Path | None = None) -> tuple[Path, str]:
    """Return a core's file and the source of its name: ``option``, ``environment`` or ``cache``.

    Raises:
        UsageError: ``core_missing``: no core was named and none was fetched.
    """
    if given is not None:
        return given, "option"
    named = os.environ.get(ENV)
    if named:
        return Path(named), "environment"
    fetched = cache_folder() / STOCK.name
    if fetched.is_file():
        return fetched, "cache"
    raise UsageError(
        "core_missing",
        f"no core: fetch one with `beacon-ota core fetch`, or name one with --core or {ENV}",
        expected=str(fetched),
    )


def read_core(file: Path) -> Core:
    """Read a core from a file: an app image, a combined image, or a release.

    Raises:
        UsageError: ``file_missing``.
        ImageError, PartitionError: it holds no core.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError("file_missing", f"cannot read {file}: {error.strerror}") from error
    return combined.parse_core(data)


def fetch_core(
    stock: StockCore = STOCK,
    folder: Path | None = None,
    progress: Progress | None = None,
    *,
    again: bool = False,
    url: str | None = None,
) -> Path:
    """Download a core into the cache, unless it is there; return its file.

    The file appears under its name only when its hash was right.

    Args:
        stock: which.
        folder: the cache.
        progress: is told bytes so far and in all.
        again: download it even if it is there.
        url: another place that serves the same bytes.

    Raises:
        ReachError: ``core_download``.
        InputError: ``core_size``, ``core_sha256``: other bytes than were expected.
    """
    import requests

    folder = cache_folder() if folder is None else folder
    url = url or stock.url
    target = folder / stock.name
    if not again and target.is_file() and _hash_file(target) == stock.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=stock.name, suffix=".part", dir=folder)
    try:
        with os.fdopen(handle, "wb") as out:
            try:
                with requests.get(url, stream=True, timeout=(_CONNECT_S, _STALL_S)) as answer:
                    answer.raise_for_status()
                    _copy_body(answer, out, stock, progress)
            except requests.RequestException as error:
                raise ReachError(
                    "core_download",
                    f"cannot fetch {url}: {_describe_failure(error)}",
                    expected="an internet connection; or fetch the file elsewhere, and name it "
                    f"with --core or {ENV}",
                ) from error
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def _describe_failure(error: "requests.RequestException") -> str:
    import requests

    if error.response is not None:
        return f"it answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate does not verify"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the answer broke off"
    if isinstance(error, requests.ConnectionError):
        return "the server cannot be reached"
    return str(error)


def _copy_body(
    answer: "requests.Response", out: BinaryIO, stock: StockCore, progress: Progress | None
) -> None:
    """Copy a response's body, bounded by the size expected, and check its hash."""
    digest, done = hashlib.sha256(), 0
    for chunk in answer.iter_content(_CHUNK):
        done += len(chunk)
        if done > stock.size:
            break
        digest.update(chunk)
        out.write(chunk)
        if progress is not None:
            progress(done, stock.size)
    if done != stock.size:
        raise InputError(
            "core_size",
            f"what came has another size than {stock.version}",
            found=f"{done} bytes" if done < stock.size else "more",
            expected=f"{stock.size} bytes",
        )
    if digest.hexdigest() != stock.sha256:
        raise InputError(
            "core_sha256",
            f"what came is not {stock.version}; nothing was kept",
            found=digest.hexdigest(),
            expected=stock.sha256,
        )


def _hash_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
