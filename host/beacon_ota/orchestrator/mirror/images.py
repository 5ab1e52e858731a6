"""Fetches the images that a mirror needs, in the background, one after the other.

The exchange with the primary goes on meanwhile, so that a halt does not wait for a download.
"""

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path

import requests

from beacon_ota.client import Client
from beacon_ota.errors import BeaconOtaError, InputError, ReachError
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.releases import validate

log = logging.getLogger("beacon_ota.orchestrator")

PIECE = 1024  # bytes of an image per read; an incomplete piece is lost when the line breaks
BAD_S = 300.0  # until an image that was refused is fetched again
AGAIN_S = 2.0  # until a download that broke off is resumed, in real (unscaled) seconds


class Images:
    """The images that are wanted, and those that have arrived.

    Args:
        client: a client for the primary, used for nothing else: a download occupies its connection.
    """

    def __init__(self, service: Service, client: Client):
        self.service = service
        self._client = client
        self._wanted: dict[str, Fields] = {}  # rows of releases, by id
        self._bad: dict[str, float] = {}  # images that were refused, and until when
        self._wake = asyncio.Event()
        self.fetched: set[str] = set()  # images here, release rows not stored yet
        self.faults: dict[str, BeaconOtaError] = {}  # by the release's id
        self.on_fetched = lambda: None

    def start(self) -> None:
        """Begin; the service runs."""
        self.service.run_in_background(self._fetching())

    def want(self, rows: list[Fields]) -> None:
        """Fetch these releases' images, and no longer any others."""
        self._wanted = {row["id"]: row for row in rows}
        self.faults = {key: error for key, error in self.faults.items() if key in self._wanted}
        self._wake.set()

    async def lacks(self, row: Fields) -> bool:
        """Tell whether the image of a release is not here, or is damaged here."""
        if row["id"] in self.fetched:
            return False
        mine = self.service.fleet.releases.get(row["id"])
        if mine is not None and mine.row["damaged_at"] is not None:
            return True
        return not await asyncio.to_thread(self.service.blobs.has, row["blob"])

    def wake(self) -> None:
        """Resume downloads that broke off, as the primary can be reached again."""
        if self._wanted:
            self._wake.set()

    async def _fetching(self) -> None:
        left = False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S if left else None):
                    await self._wake.wait()
            self._wake.clear()
            left = False
            for key, row in list(self._wanted.items()):
                if self._wanted.get(key) is not row:
                    continue  # not wanted any more
                left |= not await self._try(row)

    async def _try(self, row: Fields) -> bool:
        """Fetch an image; return False when the fetch must be tried again."""
        key = row["id"]
        if self._bad.get(row["blob"], 0.0) > time.monotonic():
            return False
        try:
            await self._fetch(row)
        except BeaconOtaError as error:
            if (known := self.faults.get(key)) is None or known.code != error.code:
                log.warning("release %s is not here yet: %s", key, error)
            self.faults[key] = error
            if isinstance(error, InputError):  # the same bytes would come again
                self._bad[row["blob"]] = time.monotonic() + BAD_S
            return False
        except Exception as error:
            log.exception("release %s could not be fetched", key)
            self.faults[key] = ReachError("internal", f"it could not be fetched: {error!r}"[:200])
            return False
        self.faults.pop(key, None)
        if self._wanted.get(key) is row:
            del self._wanted[key]
        self.fetched.add(key)
        self.on_fetched()
        return True

    async def _fetch(self, row: Fields) -> None:
        """Fetch the image of a release and examine it like an upload."""
        blobs = self.service.blobs
        mine = self.service.fleet.releases.get(row["id"])
        if mine is not None and mine.row["damaged_at"] is not None:
            await asyncio.to_thread(blobs.remove, row["blob"])
        if await asyncio.to_thread(blobs.has, row["blob"]):
            return
        part = blobs.partial_path(row["blob"])
        await asyncio.to_thread(self._download, row, part)
        try:
            with part.open("rb") as file:
                claim = validate.UploadClaim(
                    device_type=row["device_type"],
                    version=row["version"],
                    description=row["description"],
                    channel="stable",
                    required=row["required"],
                    manifest=row["manifest"],
                    size=part.stat().st_size,
                    sha256=row["blob"],
                )
                settings = self.service.settings
                found = await asyncio.to_thread(
                    validate.examine_image,
                    file,
                    claim,
                    settings.trusted,
                    settings.insecure,
                    self.service.clock.now(),
                )
                if (found.checksum, found.blob) != (row["checksum"], row["blob"]):
                    raise InputError(
                        "image_checksum",
                        "what came is not the release",
                        found=found.blob,
                        expected=row["blob"],
                    )
                await asyncio.to_thread(blobs.commit, file, found.blob)
        finally:
            part.unlink(missing_ok=True)

    def _download(self, row: Fields, part: Path) -> None:
        """Fetch an image, from where an earlier try broke off."""
        size = row["size"]
        with part.open("ab") as out:
            done = out.tell()
            if done > size:
                out.truncate(0)
                done = 0
            if done == size:
                return
            headers = {"Range": f"bytes={done}-", "If-Range": f'"{row["blob"]}"'} if done else {}
            with self._client.stream_response(f"/api/mirror/images/{row['id']}", headers) as answer:
                if answer.status_code == 200:
                    out.truncate(0)
                    done = 0
                try:
                    for piece in answer.iter_content(PIECE):
                        done += len(piece)
                        if done > min(size, LIMITS.upload_image):
                            raise InputError("image_too_large", "more came than was announced")
                        out.write(piece)
                except requests.RequestException as error:
                    raise ReachError("unreachable", f"the image broke off: {error}") from None
                finally:
                    out.flush()
                    os.fsync(out.fileno())
        if done < size:
            raise ReachError("unreachable", "the image broke off", found=done, expected=size)
