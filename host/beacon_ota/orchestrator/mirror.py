"""``serve --upstream URL``: a distribution point on a site's LAN.

An orchestrator with a database of its own that serves the beacons of its site by the same code,
within the stages that the primary has opened. It opens none itself; what it decides alone is to
stop: when failures among its own beacons trip a gate, the release is withheld here at once, and
everywhere as soon as the primary hears of it. All that its beacons do is told to the primary in
order and once; while the uplink is down it waits in the database, through restarts and for days.
"""

import asyncio
import json
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import requests
from sqlalchemy import Connection

from beacon_ota import __version__
from beacon_ota.client import Client
from beacon_ota.errors import BeaconOtaError, DeniedError, InputError, ReachError, UsageError
from beacon_ota.orchestrator import checks
from beacon_ota.orchestrator.engine import load_state
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.mirror_engine import LocalEngine
from beacon_ota.orchestrator.rollout.types import Status
from beacon_ota.orchestrator.service import Service
from beacon_ota.orchestrator.store import (
    Fields,
    attempts,
    beacons,
    firmwares,
    outbox,
    rollouts,
    sites,
)
from beacon_ota.orchestrator.view import attempt_of

log = logging.getLogger("beacon_ota.orchestrator")

SYNC_S = 2.0  # of the wall clock, between two exchanges with the primary
_TIMEOUT_S = (5.0, 30.0)
_ITEMS = 500
_BYTES = 128 * 1024  # of an exchange's changes; the primary takes twice that
_PIECE = 1024  # of an image: what is left of one when the line breaks is lost
_BAD_S = 300.0  # before an image that was refused is fetched again


class Mirror:
    """The exchange with the primary, in the background."""

    def __init__(self, service: Service, engine: LocalEngine):
        self.service, self.engine = service, engine
        self.address = ""  # where this mirror listens
        given = service.settings
        self._client = Client(given.upstream, given.upstream_token, given.upstream_ca, _TIMEOUT_S)
        self._epoch = ""
        self._have = ""
        self._state: Fields | None = None  # given, and not wholly taken yet
        self._damaged_there: set[str] = set()
        self._bad: dict[str, float] = {}  # images that were refused, and until when
        self._wake = asyncio.Event()
        self.error: str | None = None
        self.contact: float | None = None  # the last exchange that worked
        self.told_at: float | None = None  # when nothing was left to tell
        self.backlog = 0

    def start(self) -> None:
        """Begin; the service runs."""
        self.service.run(self._going())

    def wake(self) -> None:
        """Do not wait for the next exchange."""
        self._wake.set()

    def lag_s(self) -> float | None:
        """Return for how long something has been waiting to be told; None before the first time."""
        if self.told_at is None:
            return None
        return self.service.clock.now() - self.told_at if self.backlog else 0.0

    def status(self) -> Fields:
        """Return what the mirror says of itself."""
        lag = self.lag_s()
        return {
            "backlog": self.backlog,
            "lag_s": None if lag is None else round(lag, 1),
            "releases": sorted(
                f"{one.row['device_type']}/{one.row['version']}"
                for one in self.service.view.releases.values()
            )[-32:],
            "version": __version__,
            "url": self.address,
        }

    async def _going(self) -> None:
        self._epoch = await self.service.db.write(outbox.prepare)
        pause = 0.0
        while True:
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            pause = SYNC_S
            try:
                await self.exchange()
                if self.error is not None:
                    log.warning("the primary answers again")
                self.error = None
            except BeaconOtaError as error:
                if self.error != error.code:
                    log.warning("the primary is out of reach: %s", error)
                self.error = error.code
                if isinstance(error, DeniedError | UsageError | InputError):
                    pause = 10 * SYNC_S  # it will not be otherwise in a moment
            except Exception:
                log.exception("the exchange with the primary failed")

    async def exchange(self) -> None:
        """Tell what is new, and take what is new, until both sides are even.

        Raises:
            BeaconOtaError: whatever the primary or the way to it says.
        """
        db = self.service.db
        await self.service.flush()
        more = True
        while more:
            self.backlog = await db.read(outbox.waiting)
            items, more = _fitting(await db.read(outbox.batch, _ITEMS))
            body = {
                "epoch": self._epoch,
                "have": self._have,
                "status": self.status(),
                "changes": [item._asdict() for item in items],
            }
            reply = await asyncio.to_thread(
                self._client.call, "POST", "/api/mirror/sync", json=body
            )
            seq, etag = _checked(reply)
            if items:
                await db.write(outbox.told, min(seq, items[-1].seq))
            self.contact = self.service.clock.now()
            if self._damaged():
                etag = self._have = ""  # ask for everything: it is to be fetched again
            if reply["state"] is not None:
                self._state, self._have = reply["state"], ""
                self._damaged_there = {
                    row["id"]
                    for row in reply["state"]["firmwares"]
                    if row["damaged_at"] is not None
                }
            if self._state is not None and await self._take(self._state):
                self._state, self._have = None, etag
        self.backlog = await db.read(outbox.waiting)
        if not self.backlog:
            self.told_at = self.service.clock.now()

    def _damaged(self) -> bool:
        """Tell whether an image is damaged here that is not, as far as we know, at the primary."""
        damaged = {
            one.row["id"]
            for one in self.service.view.releases.values()
            if one.row["damaged_at"] is not None
        }
        return bool(damaged - self._damaged_there)

    # ---- what the primary gives ----

    async def _take(self, state: Fields) -> bool:
        """Take what the primary gives; False when something is left for another time."""
        without: set[str] = set()
        fetched: set[str] = set()
        gone: set[str] = set()  # withdrawn before they were here: nothing to wait for
        for row in state["firmwares"]:
            if row["state"] == "deprecated" or row["damaged_at"] is not None:
                if row["id"] not in self.service.view.releases:
                    gone.add(row["id"])
                continue
            if self._bad.get(row["blob"], 0.0) > time.monotonic():
                without.add(row["id"])
                continue
            try:
                if await self._fetch(row):
                    fetched.add(row["id"])
            except BeaconOtaError as error:
                log.warning("release %s is not here yet: %s", row["id"], error)
                without.add(row["id"])
                if isinstance(error, InputError):  # the same bytes would come again
                    self._bad[row["blob"]] = time.monotonic() + _BAD_S
        await asyncio.shield(
            self.service.db.write(_written, state, without | gone, fetched, then=self._put)
        )
        self.engine.wake()
        return not without

    def _put(self, rows: Fields) -> None:
        view = self.service.view
        view.put_sites(rows["sites"])
        for row in rows["beacons"]:
            view.put_beacon(row)
        for beacon_id in set(view.nodes) - {row["id"] for row in rows["beacons"]}:
            view.drop_beacon(beacon_id)
        for row in rows["firmwares"]:
            view.put_release(row)
        for row in rows["rollouts"]:
            entry = view.entries.get(row["id"])
            if entry is None:
                self.engine.take(row)
            else:
                state = load_state(row["state"])
                view.put_rollout(entry.rollout, state, row["revision"], entry.created_at)
        for key in set(view.entries) - {row["id"] for row in rows["rollouts"]}:
            entry = view.entries[key]  # over, with nothing under way
            over = replace(entry.state, status=Status.ABORTED)
            view.put_rollout(entry.rollout, over, entry.revision, entry.created_at)
        for row in rows["attempts"]:
            view.put_attempt(attempt_of(row))

    # ---- images ----

    async def _fetch(self, row: Fields) -> bool:
        """Have the image of a release here, examined like an upload; False when it was."""
        blobs = self.service.blobs
        mine = self.service.view.releases.get(row["id"])
        if mine is not None and mine.row["damaged_at"] is not None:
            await asyncio.to_thread(blobs.remove, row["blob"])
        if await asyncio.to_thread(blobs.has, row["blob"]):
            return False
        part = blobs.part(row["blob"])
        await asyncio.to_thread(self._download, row, part)
        try:
            with part.open("rb") as file:
                claim = checks.Claim(
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
                    checks.examine,
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
                await asyncio.to_thread(blobs.keep, file, found.blob)
            return True
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
            with self._client.stream(f"/api/mirror/images/{row['id']}", headers) as answer:
                if answer.status_code == 200:
                    out.truncate(0)
                    done = 0
                try:
                    for piece in answer.iter_content(_PIECE):
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


def _fitting(items: list[outbox.Item]) -> tuple[list[outbox.Item], bool]:
    """Return as many as one exchange holds, and whether there are more."""
    size = 0
    for index, item in enumerate(items):
        size += len(json.dumps(item.row)) + 64
        if size > _BYTES and index:
            return items[:index], True
    return items, len(items) == _ITEMS


def _checked(reply: Any) -> tuple[int, str]:
    try:
        seq, etag, state = reply["seq"], reply["etag"], reply["state"]
        if isinstance(seq, int) and isinstance(etag, str) and isinstance(state, dict | None):
            return seq, etag
    except (KeyError, TypeError):
        pass
    raise ReachError("not_an_orchestrator", "the primary answers, but not as one")


def _written(conn: Connection, state: Fields, without: set[str], fetched: set[str]) -> Fields:
    """Write down what the primary gave; returns all rows as they are now."""
    outbox.take(conn, state, without, fetched)
    releases = [row["id"] for row in firmwares.every(conn)]
    return {
        "sites": sites.every(conn),
        "beacons": [dict(row._mapping) for row in beacons.every(conn)],
        "firmwares": firmwares.every(conn),
        "rollouts": rollouts.under_way(conn),
        "attempts": [dict(row._mapping) for row in attempts.of_firmwares(conn, releases)],
    }
