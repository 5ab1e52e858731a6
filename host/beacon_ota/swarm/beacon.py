"""One simulated beacon, from power-on to power-off, call by call.

The fields of a beacon are the content of flash and NVS and survive :meth:`SwarmBeacon.power_cut`;
all other state is in the coroutine and ends with it.
"""

import hashlib
import json
import time
from dataclasses import dataclass, field
from typing import Any

from beacon_ota.images.blocks import SECTOR
from beacon_ota.swarm import adaptive
from beacon_ota.swarm.attempt import (
    AttemptCancelled,
    AttemptRecord,
    BeaconDead,
    report_fields,
)
from beacon_ota.swarm.expected_counts import ExpectedAttempt, ReportedVersion
from beacon_ota.swarm.http import DownloadSink, ExchangeError
from beacon_ota.swarm.signed_calls import check_signature, exchange_signed
from beacon_ota.swarm.world import World
from beacon_ota.wire import auth

_RESUMES = 6  # attempts to continue a download


_RETRIES = 5  # of a report that must be acknowledged


_FINAL = ("success", "failed", "rolled_back")


_FORGETS = 64  # releases known to be bad


_LATER_S = 300.0  # from a success to the relapse


@dataclass(slots=True)
class SwarmBeacon:
    """A beacon; it has power while :meth:`run_until_cut` runs."""

    world: World
    id: str
    key: bytes
    building: int
    version: str
    image: str
    other: str = ""  # checksum of what is in the other slot
    attempt: AttemptRecord | None = None
    denylist: set[str] = field(default_factory=set)
    tries: dict[str, int] = field(default_factory=dict)
    relapse: tuple[float, str, str] | None = None
    dead: bool = False
    cause: int = 1
    fresh: bool = False  # its building had a power cut, and it has not polled since
    on_trial: bool = False
    presence_reported: bool = False
    failed_attempts: int = 0

    async def run_until_cut(self) -> None:
        """Run until cancelled, or until the beacon is dead."""
        world = self.world
        world.stats.alive += 1
        misses = 0
        try:
            await world.clock.sleep_s(world.scenario.boot_s * world.vary_factor())
            self.presence_reported = False
            while True:
                try:
                    if self.attempt is not None and self.attempt.status not in _FINAL:
                        await self._resolve_boot_outcome(self.attempt)
                    pause = await self._run_round()
                    misses = 0
                except ExchangeError as error:
                    world.stats.broken[error.code] += 1
                    pause = min(5 << min(misses, 10), int(world.scenario.poll_s))
                    misses += 1
                await world.clock.sleep_s(pause * world.vary_factor())
        except BeaconDead:
            self.dead = True
        finally:
            world.stats.alive -= 1

    def power_cut(self) -> None:
        """Reset the volatile state; the next boot reads the record of the attempt."""
        self.cause, self.fresh, self.on_trial = 1, True, False

    async def report_presence(self) -> None:
        """Report the boot once; the first answer has the time of the orchestrator."""
        await self._send_report("idle", None)

    # ---- one round

    async def _run_round(self) -> float:
        """Report the last result, poll, install; return the seconds until the next round."""
        world = self.world
        if self.relapse is not None and world.clock.now() >= self.relapse[0]:
            _, self.version, self.image = self.relapse
            self.relapse = None
            self.presence_reported = False
        await self._deliver_result()
        began = time.perf_counter()
        status, doc, retry = await self._poll_update()
        world.stats.count_poll(time.perf_counter() - began, self.fresh)
        self.fresh = False
        if status == 204:
            self.failed_attempts = 0
            return self._next_pause(retry)
        if status != 200 or doc is None:
            raise ExchangeError("http")
        world.stats.offers += 1
        entry = world.expected.add_offer(doc["attempt_id"], self.id, doc["firmware_id"])
        if await self._install_offer(doc, entry):
            await self._deliver_result()
        return self._next_pause(doc["poll_after_s"])

    async def _poll_update(self) -> tuple[int, dict[str, Any] | None, int | None]:
        state = "trial" if self.on_trial else "valid"
        target = (
            f"/firmwares/latest/{self.world.device_type}?version={self.version.replace('+', '%2B')}"
            f"&image={self.image}&state={state}"
        )
        return await self._call_orchestrator("GET", target)

    def _next_pause(self, asked: float | None) -> float:
        pause = self.world.scenario.poll_s if asked is None else asked
        if self.failed_attempts:
            pause = max(pause, min(30 << min(self.failed_attempts - 1, 7), 1920))
        return min(max(pause, 5), 86400)

    # ---- an attempt

    async def _install_offer(self, offer: dict[str, Any], entry: ExpectedAttempt) -> bool:
        """Install an offer; return False when there is nothing to report."""
        number = self.tries[offer["firmware_id"]] = self.tries.get(offer["firmware_id"], 0) + 1
        fate = self.world.draw_outcome(offer["firmware_id"], self.id, number)
        if fate == "ignored":
            return False
        attempt = self.attempt = AttemptRecord(
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
            if attempt.checksum in self.denylist:
                self._end_attempt(attempt, "failed", "verify", "known_bad")
                return True
            await self._report_best_effort(attempt, entry, "downloading")
            await self._download_image(attempt, entry)
            if fate == "failed":
                self._end_attempt(attempt, "failed", "verify", "checksum")
                return True
            await self._report_until_acknowledged(attempt, entry, "verifying")
            attempt.status = "rebooting"
            await self._report_until_acknowledged(attempt, entry, "rebooting")
            await self._run_trial(attempt)
        except AttemptCancelled:
            entry.over = True
            self.attempt = None
            return False
        except ExchangeError as error:
            if attempt.status == "rebooting":  # not acknowledged: the release is not booted
                attempt.status = "downloading"
            self._end_attempt(attempt, "failed", "download", error.code)
        return True

    async def _download_image(self, attempt: AttemptRecord, entry: ExpectedAttempt) -> None:
        world = self.world
        digest = hashlib.sha256()
        fetched = 0  # of this download, without the index
        world.stats.downloading += 1

        def take(piece: bytes) -> None:
            nonlocal fetched
            digest.update(piece)
            fetched += len(piece)
            attempt.got += len(piece)
            attempt.fetched += len(piece)
            world.stats.bytes += len(piece)

        try:
            plan = await self._plan_download(attempt, entry)
            attempt.kept, attempt.written = plan.kept, plan.written
            attempt.got = 0
            breaks = 0
            while attempt.got < attempt.size:
                held = plan.held[attempt.got // SECTOR]
                if held is not None:
                    digest.update(held)
                    attempt.got += len(held)
                    world.stats.saved += len(held)
                    continue
                end = plan.end_of_run(attempt.got)
                left = end - attempt.got
                stop = world.draw_break(left)
                if attempt.outcome == "dead":
                    stop = max(left // 2, 1)
                sink = DownloadSink(take, world.download_rate(), stop)
                try:
                    await self._fetch_part(attempt, entry, sink, end)
                except ExchangeError as error:
                    if fetched:
                        entry.taken = True
                    if attempt.outcome == "dead" and fetched:
                        raise BeaconDead from None
                    breaks += 1
                    if breaks == _RESUMES or error.code not in ("truncated", "connect"):
                        raise
                    world.stats.resumed += 1
                    await world.clock.sleep_s(min(1 << breaks - 1, 30) * world.vary_factor())
        finally:
            world.stats.downloading -= 1
        if digest.hexdigest() != attempt.checksum:
            raise ExchangeError("checksum")  # a defect of the orchestrator, shown in the summary

    async def _plan_download(
        self, attempt: AttemptRecord, entry: ExpectedAttempt
    ) -> adaptive.DownloadPlan:
        """Fetch the block index and compare the slots; without an index, everything is fetched."""
        world = self.world
        index = bytearray()
        if not world.scenario.adaptive:
            return adaptive.plan_whole(attempt.size)
        target = attempt.url.replace("/download?", "/blocks?")
        try:
            answer, nonce = await exchange_signed(
                world, self.id, self.key, "GET", target, sink=DownloadSink(index.extend)
            )
        except ExchangeError as error:
            world.stats.broken[error.code] += 1
            return adaptive.plan_whole(attempt.size)
        if answer.status in (409, 410):
            raise AttemptCancelled
        if answer.status != 200:
            return adaptive.plan_whole(attempt.size)
        check_signature(world, self.key, answer, nonce, hashlib.sha256(index).hexdigest())
        entry.taken = True
        attempt.fetched += len(index)
        world.stats.bytes += len(index)
        world.stats.indexes += 1
        return adaptive.plan_download(
            bytes(index), attempt.size, world.images, self.image, self.other
        )

    async def _fetch_part(
        self, attempt: AttemptRecord, entry: ExpectedAttempt, sink: DownloadSink, end: int
    ) -> None:
        """Fetch from where the attempt is up to byte ``end``."""
        first, more = attempt.got, ""
        if first or end < attempt.size:
            more = f'Range: bytes={first}-{end - 1}\r\nIf-Range: "{attempt.checksum}"\r\n'
        answer, nonce = await exchange_signed(
            self.world, self.id, self.key, "GET", attempt.url, b"", more, sink
        )
        if answer.status in (409, 410):
            raise AttemptCancelled
        if answer.status != (206 if more else 200):
            raise ExchangeError("http")
        check_signature(self.world, self.key, answer, nonce, attempt.checksum)
        entry.taken = True

    async def _run_trial(self, attempt: AttemptRecord) -> None:
        """Reboot into the new release, and run its trial until it is confirmed or given up."""
        world = self.world
        old = self.version, self.image
        if attempt.outcome == "silent":
            raise BeaconDead
        attempt.trials += 1
        self.cause = 3
        await world.clock.sleep_s(world.scenario.boot_s * world.vary_factor())
        if attempt.outcome in ("rolled_back", "mute"):
            attempt.trials = 3
            await world.clock.sleep_s(world.scenario.trial_s * 3)
            self.denylist = {*list(self.denylist)[-_FORGETS:], attempt.checksum}
            self.other = attempt.checksum
            self.presence_reported = False
            if attempt.outcome == "mute":
                self.attempt = None
            else:
                self._end_attempt(attempt, "rolled_back", "boot", "self_test")
            return
        self.version, self.image = attempt.version, attempt.checksum
        self.other = old[1]
        self.on_trial = True
        try:
            await world.clock.sleep_s(world.scenario.trial_s)
            for _ in range(_RETRIES):  # the health check: a poll of the new release
                try:
                    if (await self._poll_update())[0] in (200, 204):
                        break
                except ExchangeError as error:
                    world.stats.broken[error.code] += 1
                await world.clock.sleep_s(5 * world.vary_factor())
        finally:
            self.on_trial = False
        attempt.status = "success"
        self.failed_attempts = 0
        if attempt.outcome == "relapse":
            self.relapse = (world.clock.now() + _LATER_S, *old)

    async def _resolve_boot_outcome(self, attempt: AttemptRecord) -> None:
        """Resolve the record of an attempt after a boot, as the firmware does."""
        if attempt.status == "rebooting":
            await self._run_trial(attempt)
        else:
            self._end_attempt(attempt, "failed", "boot", "power")

    def _end_attempt(self, attempt: AttemptRecord, status: str, stage: str, code: str) -> None:
        attempt.status, attempt.why = status, (stage, code)
        self.failed_attempts += 1

    # ---- reports

    async def _deliver_result(self) -> None:
        """Report the end of an attempt until it is acknowledged; else the boot, once."""
        attempt = self.attempt
        if attempt is not None and attempt.status in _FINAL:
            entry = self.world.expected.attempts[attempt.id]
            entry.final_status = attempt.status
            status, answer = await self._send_report(attempt.status, attempt)
            if status == 200 and answer is not None:
                if entry.recorded != "first":
                    entry.recorded = answer.get("recorded", "")
                entry.taken = True
            elif status in (409, 410):
                entry.over = True
            else:
                raise ExchangeError("http")
            self.attempt = None
        elif not self.presence_reported and (await self._send_report("idle", None))[0] != 200:
            raise ExchangeError("http")
        self.presence_reported = True

    async def _report_best_effort(
        self, attempt: AttemptRecord, entry: ExpectedAttempt, word: str
    ) -> None:
        """Send a report that may be lost, but not refused."""
        try:
            status, _ = await self._send_report(word, attempt)
        except ExchangeError as error:
            self.world.stats.broken[error.code] += 1
            return
        self._check_report_status(status, entry)

    async def _report_until_acknowledged(
        self, attempt: AttemptRecord, entry: ExpectedAttempt, word: str
    ) -> None:
        """Send a report that must be acknowledged before the next step."""
        for number in range(_RETRIES + 1):
            try:
                status, _ = await self._send_report(word, attempt)
                self._check_report_status(status, entry)
                break
            except ExchangeError as error:
                self.world.stats.broken[error.code] += 1
                if number == _RETRIES:
                    raise
                await self.world.clock.sleep_s((2 << number) * self.world.vary_factor())
        entry.rebooting = word == "rebooting"

    def _check_report_status(self, status: int, entry: ExpectedAttempt) -> None:
        if status in (409, 410):
            raise AttemptCancelled
        if status != 200:
            raise ExchangeError("http")
        entry.taken = True

    async def _send_report(self, word: str, attempt: AttemptRecord | None) -> tuple[int, Any]:
        doc = {
            "firmware_version": self.version,
            "update_status": word,
            "updated_at": int(self.world.clock.now()),
            "image_sha256": self.image,
            "reset_cause": self.cause,
            "heap_free_min": 60_000,
            **(report_fields(attempt, word) if attempt is not None else {}),
        }
        body = json.dumps(doc).encode()
        status, answer, _ = await self._call_orchestrator(
            "POST", f"/api/beacons/{self.id}/ota_status", body
        )
        self.world.stats.reports += 1
        return status, answer

    async def _call_orchestrator(
        self, method: str, target: str, body: bytes = b""
    ) -> tuple[int, dict[str, Any] | None, int | None]:
        """Make a call; return status, JSON, Retry-After. A clock skew is corrected once."""
        standing = self.world.expected.reported_versions.setdefault(
            self.id, ReportedVersion(self.version, self.image)
        )
        standing.sure = False
        for again in (True, False):
            answer, nonce = await exchange_signed(
                self.world, self.id, self.key, method, target, body
            )
            check_signature(self.world, self.key, answer, nonce)
            doc = json.loads(answer.body) if answer.body else None
            if doc is not None and doc.get("code") == "clock_skew" and again:
                self.world.clock.set_utc(doc["server_time"])
                continue
            break
        if answer.status < 300:
            standing.version, standing.image, standing.sure = self.version, self.image, True
        else:
            self.world.stats.refused[_error_code(answer.status, doc)] += 1
        retry = answer.headers.get(b"retry-after", b"")
        return answer.status, doc, int(retry) if retry.isdigit() else None


def _error_code(status: int, doc: dict[str, Any] | None) -> str:
    return str(doc.get("code", status)) if doc else str(status)


def valid_prefix(prefix: str) -> bool:
    """Return whether beacon ids may begin with ``prefix``."""
    return auth.is_valid_id(f"{prefix}-00000") and prefix == prefix.lower()
