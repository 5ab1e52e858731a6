"""Runs a scenario: registers beacons, rolls out releases, cuts power, and compares the counts."""

import asyncio
import hashlib
import io
import os
import resource
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from beacon_ota.client import Client
from beacon_ota.errors import ReachError, UsageError
from beacon_ota.orchestrator.server.subprocess import process_usage
from beacon_ota.swarm import check, release
from beacon_ota.swarm.beacon import SwarmBeacon
from beacon_ota.swarm.clock import SwarmClock
from beacon_ota.swarm.enrol import enrol_beacons
from beacon_ota.swarm.http import ExchangeError, ServerAddress
from beacon_ota.swarm.scenario import WINDOW, Scenario, ScenarioEvent, ScenarioRelease
from beacon_ota.swarm.world import World

BEFORE = "1.0.0"  # the version that all beacons run at first
_LOOK_S = 0.5  # wall-clock, between two looks at the rollouts
_QUIET_S = 1.0  # for requests on their way when the beacons are switched off
_AGAIN = 5  # comparisons, because the orchestrator may still be writing
_GREETINGS = 30  # tries of the first report
_OVER = ("completed", "halted", "aborted")

Rows = list[dict[str, Any]]


@dataclass
class Swarm:
    """A swarm and its orchestrator.

    Args:
        prefix: of ids, of the tag and of the path of the sites.
        seed: determines the beacons that fail.
        on_message: called with a sentence at the start of each phase.
        on_snapshot: called with :meth:`snapshot`, twice a second.
        on_enrolled: called with the number of registered beacons.
    """

    scenario: Scenario
    url: str
    token: str
    prefix: str = field(default_factory=lambda: f"swarm-{secrets.token_hex(2)}")
    device_type: str = "esp32c3"
    seed: str = "1"
    on_message: Callable[[str], object] = lambda text: None
    on_snapshot: Callable[[dict[str, Any]], object] = lambda snapshot: None
    on_enrolled: Callable[[int], object] = lambda done: None

    def __post_init__(self) -> None:
        scenario = self.scenario
        self.client = Client(self.url, self.token)
        self.world = World(
            ServerAddress.parse_url(self.url),
            SwarmClock(scenario.scale),
            scenario,
            self.seed,
            self.device_type,
        )
        self.world.random.seed(self.seed)
        self.beacons: list[SwarmBeacon] = []
        self.rollouts: dict[str, str] = {}  # id -> version, in the order of their start
        self.rollout_docs: dict[str, dict[str, Any]] = {}  # rollouts as last seen
        self._power: dict[int, asyncio.Task[None]] = {}
        self._start = self.world.clock.now()
        self.events = 0

    # ---- the run

    async def run(self) -> dict[str, Any]:
        """Run the scenario; return the summary.

        Raises:
            BeaconOtaError: a refusal of the orchestrator, or no connection to it.
        """
        _raise_file_limit()
        began = time.monotonic()
        await self._enrol_beacons()
        await self._set_clock()
        self._start = self.world.clock.now()
        wall, cpu = time.monotonic(), time.process_time()
        drops = [asyncio.create_task(self._roll_out_release(one)) for one in self.scenario.releases]
        events = [asyncio.create_task(self._cut_power(one)) for one in self.scenario.events]
        spread = self.scenario.spread_s
        for number in range(len(self.beacons)):
            self._switch_on(number, spread * self.world.random.random())
        try:
            await self._watch_run([*drops, *events])
        finally:
            took, used = time.monotonic() - wall, time.process_time() - cpu
            await self._stop_tasks([*drops, *events, *self._power.values()])
        self.on_message("comparing the books")
        mismatches = await self._compare_counts()
        summary = self.snapshot()
        return {
            **summary,
            "scenario": self.scenario.name,
            "prefix": self.prefix,
            "time_scale": self.scenario.scale,
            "wall_s": round(took, 1),
            "whole_s": round(time.monotonic() - began, 1),
            "swarm_cpu": round(used / took, 3),
            "swarm_rss_mb": process_usage(os.getpid()).get("rss_mb"),
            "polls_per_s": round(self.world.stats.polls.count / took, 1),
            "broken": dict(self.world.stats.broken),
            "refused": dict(self.world.stats.refused),
            "forged": self.world.stats.forged,
            "events": self.events,
            "touched": self.count_touched(),
            "serving": round(self.share_updated(), 4),
            "mismatches": mismatches,
            "unexpected": self._find_unexpected(),
        }

    def snapshot(self) -> dict[str, Any]:
        """Return the current state of the swarm."""
        stats = self.world.stats
        return {
            "beacons": len(self.beacons),
            "alive": stats.alive,
            "elapsed_s": round(self.world.clock.now() - self._start, 1),
            "polls": stats.polls.as_dict(),
            "burst": stats.burst.as_dict(),
            "downloading": stats.downloading,
            "downloaded_mb": round(stats.bytes / 1e6, 1),
            "saved_mb": round(stats.saved / 1e6, 1),
            "indexes": stats.indexes,
            "resumed": stats.resumed,
            "own": self.world.expected.count_attempts(),
            "rollouts": [
                {
                    "rollout_id": key,
                    "version": version,
                    "status": self.rollout_docs.get(key, {}).get("status"),
                    "reason": self.rollout_docs.get(key, {}).get("reason"),
                    "results": self.rollout_docs.get(key, {}).get("results", {}),
                }
                for key, version in self.rollouts.items()
            ],
        }

    # ---- its parts

    async def _enrol_beacons(self) -> None:
        scenario = self.scenario
        self.on_message(f"registering {scenario.beacons} beacons in {scenario.buildings} buildings")
        await self._call_in_thread(self.client.create_site, self.prefix, kind="site", window=WINDOW)
        sites = [f"{self.prefix}/{number}" for number in range(scenario.buildings)]
        for site in sites:
            await self._call_in_thread(self.client.create_site, site, kind="building")
        names = [
            (f"{self.prefix}-{number:05}", number % len(sites), sites[number % len(sites)])
            for number in range(scenario.beacons)
        ]
        place = self.world.server
        for one in await enrol_beacons(
            place, self.token, names, self.device_type, self.prefix, self.on_enrolled
        ):
            self.beacons.append(
                SwarmBeacon(
                    self.world,
                    one.id,
                    one.key,
                    one.building,
                    BEFORE,
                    release.initial_checksum(BEFORE),
                )
            )

    async def _set_clock(self) -> None:
        """Set the clock by the first answer to the first beacon."""
        for left in range(_GREETINGS, 0, -1):  # the scenario's air may lose some
            try:
                await self.beacons[0].report_presence()
                return
            except ExchangeError as error:
                if left == 1:
                    raise ReachError("unreachable", f"no report arrives: {error.code}") from None

    def _switch_on(self, number: int, after_s: float) -> None:
        async def power() -> None:
            await self.world.clock.sleep_s(after_s)
            await self.beacons[number].run_until_cut()

        task = self._power[number] = asyncio.create_task(power())
        task.add_done_callback(_retrieve_exception)

    async def _roll_out_release(self, drop: ScenarioRelease) -> None:
        await self.world.clock.sleep_s(drop.at_s)
        content = release.build_image(
            drop.version,
            self.device_type,
            drop.size,
            modules=drop.modules,
            base=drop.base,
            changed=drop.changed,
        )
        self.world.images[hashlib.sha256(content).hexdigest()] = content
        firmware = await self._call_in_thread(
            self.client.upload_firmware,
            io.BytesIO(content),
            device_type=self.device_type,
            version=drop.version,
            channel=drop.channel,
        )
        self.world.outcome_shares[firmware["firmware_id"]] = drop.fates
        wave = {"name": "swarm", "tags": [self.prefix]}
        plan = {"window": WINDOW, **drop.plan, "waves": [wave]}
        made = await self._call_in_thread(self.client.create_rollout, firmware["firmware_id"], plan)
        self.rollouts[made["rollout_id"]] = drop.version
        self.on_message(f"{drop.version} is being rolled out")

    async def _cut_power(self, event: ScenarioEvent) -> None:
        await self.world.clock.sleep_s(event.at_s)
        hit = [n for n, one in enumerate(self.beacons) if one.building < event.buildings]
        self.on_message(f"power cut: {len(hit)} beacons")
        for number in hit:
            self._power[number].cancel()
        for number in hit:
            with suppress(asyncio.CancelledError):
                await self._power[number]
            self.beacons[number].power_cut()
        await self.world.clock.sleep_s(event.off_s)
        self.on_message("power is back")
        for number in hit:
            if not self.beacons[number].dead:
                self._switch_on(number, 0.0)
        self.events += 1

    async def _watch_run(self, plans: list[asyncio.Task[None]]) -> None:
        """Wait until the time is over, or all attempts have ended."""
        end = self._start + self.scenario.for_s
        while self.world.clock.now() < end:
            await asyncio.sleep(_LOOK_S)
            for plan in plans:
                if plan.done():
                    plan.result()
            for task in self._power.values():
                if task.done() and not task.cancelled() and (error := task.exception()):
                    raise error
            await self._fetch_rollouts()
            self.on_snapshot(self.snapshot())
            if plans and all(plan.done() for plan in plans) and self._all_settled():
                return

    async def _fetch_rollouts(self) -> None:
        for key in self.rollouts:
            self.rollout_docs[key] = await self._call_in_thread(self.client.get_rollout, key)

    def _all_settled(self) -> bool:
        """Return whether all rollouts have ended, or the expected share is reached."""
        last, expect = list(self.rollout_docs.values()), self.scenario.expect
        if len(last) < len(self.scenario.releases) or not last:
            return False
        if any(one.attempt is not None and not one.dead for one in self.beacons):
            return False
        if expect.serving is not None and self.share_updated() < expect.serving:
            return False
        if expect.serving is not None and expect.status is None:
            return True
        return all(one["status"] in _OVER and not one["results"].get("open") for one in last)

    async def _stop_tasks(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(_QUIET_S)

    async def _compare_counts(self) -> list[str]:
        found: list[str] = []
        for _ in range(_AGAIN):
            attempts: Rows = []
            for key in self.rollouts:
                attempts += await self._call_in_thread(
                    lambda key=key: list(self.client.list_attempts(key))
                )
            await self._fetch_rollouts()
            rows = await self._call_in_thread(
                lambda: list(self.client.list_beacons(tag=self.prefix, limit=1000))
            )
            results = {key: one["results"] for key, one in self.rollout_docs.items()}
            found = check.compare_counts(self.world.expected, attempts, rows, results)
            if not found:
                break
            await asyncio.sleep(_QUIET_S)
        return found

    def _find_unexpected(self) -> list[str]:
        """Return the expectations of the scenario that are not met."""
        expect, found = self.scenario.expect, []
        if expect.status is not None:
            last = list(self.rollout_docs.values())[-1] if self.rollout_docs else {}
            if last.get("status") != expect.status:
                found.append(f"the rollout is {last.get('status')}, expected {expect.status}")
        if expect.touched is not None:
            touched = self.count_touched() / len(self.beacons)
            if touched > expect.touched:
                found.append(f"{touched:.1%} were touched, expected {expect.touched:.1%} at most")
        if expect.serving is not None and self.share_updated() < expect.serving:
            found.append(
                f"{self.share_updated():.1%} run it, expected {expect.serving:.1%} at least"
            )
        if self.world.stats.forged:
            found.append(f"{self.world.stats.forged} answers were not authentic")
        return found

    def count_touched(self) -> int:
        """Return the number of beacons that have taken the last release."""
        if not self.rollout_docs:
            return 0
        last = list(self.rollout_docs.values())[-1]["firmware_id"]
        return len(
            {
                t.beacon
                for t in self.world.expected.attempts.values()
                if t.taken and t.firmware == last
            }
        )

    def share_updated(self) -> float:
        """Return the share of the beacons that run the last release."""
        last = self.scenario.releases[-1].version if self.scenario.releases else BEFORE
        return sum(one.version == last for one in self.beacons) / len(self.beacons)

    async def _call_in_thread(self, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return await asyncio.to_thread(work, *args, **options)


def _retrieve_exception(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # _watch_run raises it; asyncio need not log it


def _raise_file_limit() -> None:
    """Raise the limit of open files, because each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run_swarm(fleet: Swarm) -> dict[str, Any]:
    """Run a scenario on an event loop of its own."""
    import sys

    if fleet.scenario.beacons < 1:
        raise UsageError("swarm_empty", "a swarm needs a beacon")
    if sys.platform == "win32":
        return asyncio.run(fleet.run())
    import uvloop

    return uvloop.run(fleet.run())
