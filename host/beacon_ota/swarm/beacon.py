"""One simulated beacon: what it does from power-on to power-off, call by call.

What flash and NVS hold on a real one survives :meth:`Beacon.power_cut` here as well; the rest is
in the coroutine, and goes with it.
"""

import hashlib
import json
import time
from dataclasses import dataclass, field
from typing import Any

from beacon_ota.swarm.http import Broken, Connection, Sink
from beacon_ota.swarm.ledger import Standing, Try
from beacon_ota.swarm.signing import authentic, sign
from beacon_ota.swarm.world import World
from beacon_ota.wire import auth

_CALL_S = 45.0  # wall-clock seconds without a byte
_RESUMES = 6  # pieces in which a download is tried
_RETRIES = 5  # of a report that has to arrive
_FINAL = ("success", "failed", "rolled_back")
_FORGETS = 64  # releases known to be bad
_LATER_S = 300.0  # from a success to the relapse


class Over(Exception):
    """The orchestrator says that there is nothing more to do for this attempt."""


class Dead(Exception):
    """Nothing will be heard of this beacon any more."""


@dataclass(slots=True)
class Attempt:
    """The record of an attempt in NVS."""

    id: str
    firmware: str
    version: str
    checksum: str
    size: int
    url: str
    previous: str
    fate: str
    status: str = "downloading"
    why: tuple[str, str] = ("", "")
    got: int = 0
    trials: int = 0


@dataclass(slots=True)
class Beacon:
    """A beacon; ``live`` is its power supply."""

    world: World
    id: str
    key: bytes
    building: int
    version: str
    image: str
    attempt: Attempt | None = None
    bad: set[str] = field(default_factory=set)
    tries: dict[str, int] = field(default_factory=dict)
    relapse: tuple[float, str, str] | None = None
    dead: bool = False
    cause: int = 1
    fresh: bool = False  # came back with its whole building, and has not polled since
    on_trial: bool = False
    greeted: bool = False
    fails: int = 0

    async def live(self) -> None:
        """Run until cancelled, or until the beacon is dead."""
        world = self.world
        world.stats.alive += 1
        misses = 0
        try:
            await world.time.sleep(world.scenario.boot_s * world.vary())
            self.greeted = False
            while True:
                try:
                    if self.attempt is not None and self.attempt.status not in _FINAL:
                        await self._settle(self.attempt)
                    pause = await self._round()
                    misses = 0
                except Broken as error:
                    world.stats.broken[error.code] += 1
                    pause = min(5 << min(misses, 10), int(world.scenario.poll_s))
                    misses += 1
                await world.time.sleep(pause * world.vary())
        except Dead:
            self.dead = True
        finally:
            world.stats.alive -= 1

    def power_cut(self) -> None:
        """What flash held stays; the next boot tells from the record what had been under way."""
        self.cause, self.fresh, self.on_trial = 1, True, False

    async def greet(self) -> None:
        """Say once that it is there: the first answer brings the orchestrator's time."""
        await self._report("idle", None)

    # ---- one round

    async def _round(self) -> float:
        """Deliver what is due, ask for work, do it; return the seconds until the next round."""
        world = self.world
        if self.relapse is not None and world.time.now() >= self.relapse[0]:
            _, self.version, self.image = self.relapse
            self.relapse = None
            self.greeted = False
        await self._deliver()
        began = time.perf_counter()
        status, doc, retry = await self._ask()
        world.stats.polled(time.perf_counter() - began, self.fresh)
        self.fresh = False
        if status == 204:
            self.fails = 0
            return self._pause(retry)
        if status != 200 or doc is None:
            raise Broken("http")
        world.stats.offers += 1
        entry = world.ledger.offered(doc["attempt_id"], self.id, doc["firmware_id"])
        if await self._install(doc, entry):
            await self._deliver()
        return self._pause(doc["poll_after_s"])

    async def _ask(self) -> tuple[int, dict[str, Any] | None, int | None]:
        state = "trial" if self.on_trial else "valid"
        target = (
            f"/firmwares/latest/{self.world.device_type}?version={self.version.replace('+', '%2B')}"
            f"&image={self.image}&state={state}"
        )
        return await self._call("GET", target)

    def _pause(self, asked: float | None) -> float:
        pause = self.world.scenario.poll_s if asked is None else asked
        if self.fails:
            pause = max(pause, min(30 << min(self.fails - 1, 7), 1920))
        return min(max(pause, 5), 86400)

    # ---- an attempt

    async def _install(self, offer: dict[str, Any], entry: Try) -> bool:
        """Go through with an offer; False when there is nothing to report of it."""
        number = self.tries[offer["firmware_id"]] = self.tries.get(offer["firmware_id"], 0) + 1
        fate = self.world.fate(offer["firmware_id"], self.id, number)
        if fate == "ignored":
            return False
        attempt = self.attempt = Attempt(
            offer["attempt_id"],
            offer["firmware_id"],
            offer["version"],
            offer["checksum"],
            offer["size"],
            offer["download_url"],
            self.version,
            fate,
        )
        try:
            if attempt.checksum in self.bad:
                self._end(attempt, "failed", "verify", "known_bad")
                return True
            await self._tell(attempt, entry, "downloading")
            await self._download(attempt, entry)
            if fate == "failed":
                self._end(attempt, "failed", "verify", "checksum")
                return True
            await self._insist(attempt, entry, "verifying")
            attempt.status = "rebooting"
            await self._insist(attempt, entry, "rebooting")
            await self._trial(attempt)
        except Over:
            entry.over = True
            self.attempt = None
            return False
        except Broken as error:
            if attempt.status == "rebooting":  # not acknowledged: the release is not booted
                attempt.status = "downloading"
            self._end(attempt, "failed", "download", error.code)
        return True

    async def _download(self, attempt: Attempt, entry: Try) -> None:
        world = self.world
        digest = hashlib.sha256()
        got = 0
        world.stats.downloading += 1

        def take(piece: bytes) -> None:
            nonlocal got
            digest.update(piece)
            got += len(piece)
            world.stats.bytes += len(piece)

        try:
            for number in range(_RESUMES):
                stop = world.cut(attempt.size - got)
                if attempt.fate == "dead":
                    stop = max((attempt.size - got) // 2, 1)
                sink = Sink(take, world.rate(), stop)
                try:
                    await self._fetch(attempt, entry, sink, got)
                    break
                except Broken as error:
                    if got:
                        entry.taken = True
                    if attempt.fate == "dead" and got:
                        raise Dead from None
                    if number == _RESUMES - 1 or error.code not in ("truncated", "connect"):
                        raise
                    world.stats.resumed += 1
                    await world.time.sleep(min(1 << number, 30) * world.vary())
        finally:
            attempt.got = got
            world.stats.downloading -= 1
        if digest.hexdigest() != attempt.checksum:
            raise Broken("checksum")  # would be a defect of the orchestrator: see the summary

    async def _fetch(self, attempt: Attempt, entry: Try, sink: Sink, first: int) -> None:
        more = ""
        if first:
            more = f'Range: bytes={first}-\r\nIf-Range: "{attempt.checksum}"\r\n'
        answer, nonce = await self._exchange("GET", attempt.url, b"", more, sink)
        if answer.status in (409, 410):
            raise Over
        if answer.status != (206 if first else 200):
            raise Broken("http")
        self._check(answer, nonce, attempt.checksum)
        entry.taken = True

    async def _trial(self, attempt: Attempt) -> None:
        """From the reboot on: the new release, on trial, until it is confirmed or given up."""
        world = self.world
        old = self.version, self.image
        if attempt.fate == "silent":
            raise Dead
        attempt.trials += 1
        self.cause = 3
        await world.time.sleep(world.scenario.boot_s * world.vary())
        if attempt.fate in ("rolled_back", "mute"):
            attempt.trials = 3
            await world.time.sleep(world.scenario.trial_s * 3)
            self.bad = {*list(self.bad)[-_FORGETS:], attempt.checksum}
            self.greeted = False
            if attempt.fate == "mute":
                self.attempt = None
            else:
                self._end(attempt, "rolled_back", "boot", "self_test")
            return
        self.version, self.image = attempt.version, attempt.checksum
        self.on_trial = True
        try:
            await world.time.sleep(world.scenario.trial_s)
            for _ in range(_RETRIES):  # can this release talk to the orchestrator?
                try:
                    if (await self._ask())[0] in (200, 204):
                        break
                except Broken as error:
                    world.stats.broken[error.code] += 1
                await world.time.sleep(5 * world.vary())
        finally:
            self.on_trial = False
        attempt.status = "success"
        self.fails = 0
        if attempt.fate == "relapse":
            self.relapse = (world.time.now() + _LATER_S, *old)

    async def _settle(self, attempt: Attempt) -> None:
        """Find out after a boot what the record means: as the firmware does."""
        if attempt.status == "rebooting":
            await self._trial(attempt)
        else:
            self._end(attempt, "failed", "boot", "power")

    def _end(self, attempt: Attempt, status: str, stage: str, code: str) -> None:
        attempt.status, attempt.why = status, (stage, code)
        self.fails += 1

    # ---- reports

    async def _deliver(self) -> None:
        """The end of an attempt, until it is acknowledged; else the boot, once."""
        attempt = self.attempt
        if attempt is not None and attempt.status in _FINAL:
            entry = self.world.ledger.tries[attempt.id]
            entry.said = attempt.status
            status, answer = await self._report(attempt.status, attempt)
            if status == 200 and answer is not None:
                if entry.recorded != "first":
                    entry.recorded = answer.get("recorded", "")
                entry.taken = True
            elif status in (409, 410):
                entry.over = True
            else:
                raise Broken("http")
            self.attempt = None
        elif not self.greeted and (await self._report("idle", None))[0] != 200:
            raise Broken("http")
        self.greeted = True

    async def _tell(self, attempt: Attempt, entry: Try, word: str) -> None:
        """A report that may get lost, but not be refused."""
        try:
            status, _ = await self._report(word, attempt)
        except Broken as error:
            self.world.stats.broken[error.code] += 1
            return
        self._heed(status, entry)

    async def _insist(self, attempt: Attempt, entry: Try, word: str) -> None:
        """A report that has to arrive before the next step."""
        for number in range(_RETRIES + 1):
            try:
                status, _ = await self._report(word, attempt)
                self._heed(status, entry)
                break
            except Broken as error:
                self.world.stats.broken[error.code] += 1
                if number == _RETRIES:
                    raise
                await self.world.time.sleep((2 << number) * self.world.vary())
        entry.rebooting = word == "rebooting"

    def _heed(self, status: int, entry: Try) -> None:
        if status in (409, 410):
            raise Over
        if status != 200:
            raise Broken("http")
        entry.taken = True

    async def _report(self, word: str, attempt: Attempt | None) -> tuple[int, Any]:
        now = int(self.world.time.now())
        doc: dict[str, Any] = {
            "firmware_version": self.version,
            "update_status": word,
            "updated_at": now,
            "image_sha256": self.image,
            "reset_cause": self.cause,
            "heap_free_min": 60_000,
        }
        if attempt is not None:
            doc["previous_version"] = attempt.previous
            doc["attempt_id"], doc["firmware_id"] = attempt.id, attempt.firmware
            doc["bytes"], doc["trials"] = attempt.got, attempt.trials
            if word not in ("success", "rolled_back"):
                doc["firmware_version"] = attempt.version
            if word == "downloading":
                doc["progress"] = 0
            if word in ("failed", "rolled_back"):
                doc["stage"], doc["code"] = attempt.why
        body = json.dumps(doc).encode()
        status, answer, _ = await self._call("POST", f"/api/beacons/{self.id}/ota_status", body)
        self.world.stats.reports += 1
        return status, answer

    # ---- calls

    async def _call(
        self, method: str, target: str, body: bytes = b""
    ) -> tuple[int, dict[str, Any] | None, int | None]:
        """Make a call; returns status, JSON, Retry-After. A clock that is off is put right once."""
        standing = self.world.ledger.standings.setdefault(
            self.id, Standing(self.version, self.image)
        )
        standing.sure = False
        for again in (True, False):
            answer, nonce = await self._exchange(method, target, body)
            self._check(answer, nonce, None)
            doc = json.loads(answer.body) if answer.body else None
            if doc is not None and doc.get("code") == "clock_skew" and again:
                self.world.time.set(doc["server_time"])
                continue
            break
        if answer.status < 300:
            standing.version, standing.image, standing.sure = self.version, self.image, True
        else:
            self.world.stats.refused[_code(answer.status, doc)] += 1
        retry = answer.headers.get(b"retry-after", b"")
        return answer.status, doc, int(retry) if retry.isdigit() else None

    async def _exchange(
        self, method: str, target: str, body: bytes, more: str = "", sink: Sink | None = None
    ):
        world = self.world
        world.stats.calls += 1
        if world.luck(world.scenario.air.refused):
            raise Broken("connect")
        slow = sink is not None and sink.rate is not None
        connection = await Connection.open(world.place, _CALL_S, slow)
        try:
            # Signed when it can be sent: connecting may have taken a while.
            request, nonce = sign(
                self.id, self.key, method, target, int(world.time.now()), body=body, more=more
            )
            answer = await connection.ask(request, _CALL_S, sink)
        finally:
            connection.close()
        if sink is None and world.luck(world.scenario.air.deaf):
            raise Broken("stall")
        return answer, nonce

    def _check(self, answer, nonce: str, digest: str | None) -> None:
        """Nothing is believed that the orchestrator has not signed."""
        seal = answer.headers.get(b"x-beacon-mac", b"")
        if not authentic(self.key, nonce, answer.status, digest, answer.body, seal):
            self.world.stats.forged += 1
            raise Broken("http")


def _code(status: int, doc: dict[str, Any] | None) -> str:
    return str(doc.get("code", status)) if doc else str(status)


def valid_prefix(prefix: str) -> bool:
    """Can ids begin with this?"""
    return auth.is_valid_id(f"{prefix}-00000") and prefix == prefix.lower()
