"""Many beacons, one release after the other, while everything around them fails at random.

Power cuts, WiFi that goes, connections that break, an orchestrator that restarts, releases that
crash. In the end all of that stops, and one more release has to reach everybody.
"""

import contextlib
import gc
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beacon_ota import malloc
from beacon_ota.campaign.power.cuts import CRASH
from beacon_ota.campaign.rig import builds, invariants
from beacon_ota.campaign.rig.beacon_rig import scratch_folder
from beacon_ota.campaign.rig.orchestrator import ONE_ATTEMPT_PLAN as ONCE
from beacon_ota.campaign.rig.orchestrator import InProcessOrchestrator, empty_database
from beacon_ota.campaign.runner import CampaignOptions, CaseOutcome, CasePlan
from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.db import schema
from beacon_ota.virtual.beacon import VirtualBeacon
from beacon_ota.virtual.flash.nor import Flash
from beacon_ota.virtual.net.network import LinkFaults, Network
from beacon_ota.virtual.radio.vhci import RadiolessBackend

BEACONS = 50
SCALE = 10.0
LAST_RELEASE_S = 180.0  # real seconds until the last release has to be everywhere
RELEASE_S = 60.0  # real seconds after which the next release comes, whatever became of this one
MEASURE_PERIOD_S = 2.0  # real seconds between looks at memory
HEAP_DROP, MEMORY_GROWTH = 0.05, 0.05  # shares that are still called flat
PLAN = {**ONCE, "retry": {"limit": 3, "pauses": ["20s"]}}
POLICY = {"stall_s": 20, "give_up_s": 120, "trial_s": 60}


@dataclass
class MemorySamples:
    """What was measured meanwhile.

    Args:
        heap: the least free heap that beacons had reported, as the median of the fleet.
        process: bytes that this process alone has: supervisor, orchestrator; without the beacons'
            flash, which is of fixed size and mapped from files.
    """

    heap: list[float] = field(default_factory=list)
    process: list[int] = field(default_factory=list)


def plan_cases(folder: Path, options: CampaignOptions) -> CasePlan:
    """It is one case: beacons, minutes."""
    name = f"{BEACONS}:{options.minutes:g}"
    return CasePlan([name], {"beacons": BEACONS, "minutes": options.minutes}, jobs=1)


def run_case(name: str, folder: Path, options: CampaignOptions) -> CaseOutcome:
    """Soak so many beacons for so many minutes: ``50:10``."""
    try:
        count, minutes = name.split(":")
        chosen = int(count), float(minutes)
    except ValueError:
        raise UsageError("case_name", "no such case", found=name, expected="50:10") from None
    with scratch_folder() as where:
        return soak_fleet(name, where, *chosen, random.Random(f"{options.seed} {name}"))


def soak_fleet(
    name: str, folder: Path, count: int, minutes: float, chance: random.Random
) -> CaseOutcome:
    """Soak; return what became of the fleet."""
    malloc.limit_to_one_arena()
    malloc.map_buffers()  # flash images, releases
    with _SoakFleet(folder, count, chance) as fleet:
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            fleet.run_release(min(end, time.monotonic() + RELEASE_S))
        fleet.end_faults()
        wrong = fleet.deliver_last_release()
        facts = {**fleet.counts, **summarise_memory(fleet.memory)}
        wrong += find_growth(fleet.memory)
    return CaseOutcome(name, "soak", f"{count} beacons", wrong, facts=facts)


class _SoakFleet:
    """Beacons, their network and their orchestrator, all in this process."""

    def __init__(self, folder: Path, count: int, chance: random.Random):
        self._chance, self._count, self._number = chance, count, 0
        self._stack = contextlib.ExitStack()
        self._folder = folder
        names = ("releases", "broken", "cuts", "network", "restarts")
        self.counts: dict[str, int] = dict.fromkeys(names, 0)
        self.memory = MemorySamples()
        self._last_measure = 0.0
        self._checked_boots: dict[str, int] = {}  # name -> number of the last boot that was
        self._bad_boots: list[str] = []

    def __enter__(self) -> "_SoakFleet":
        self._orchestrator = self._stack.enter_context(InProcessOrchestrator(self._folder, SCALE))
        self._orchestrator.open(empty_database())
        self._network = Network(join_time=0.5)
        self._network.add_access_point(builds.SSID, builds.PASSWORD)
        self._network.set_host(
            "orchestrator.local", "127.0.0.1", self._orchestrator.http_server.port
        )
        first = builds.build_release("0.1.0")
        self.beacons = [self._make_beacon(first, number) for number in range(self._count)]
        for beacon in self.beacons:
            beacon.power_on()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _make_beacon(self, first: bytes, number: int) -> VirtualBeacon:
        name = f"soak-{number}"
        self._orchestrator.register_beacon(name, builds.KEY, builds.DEVICE)
        content = builds.build_flash(first, policy=POLICY, given={"beacon_id": name.encode()})
        flash = Flash(content)
        self._stack.callback(flash.close)
        mac = bytes((0x7C, 0xDF, 0xA1, 0, number >> 8, number & 0xFF))
        made = VirtualBeacon(flash, mac=mac, name=name, network=self._network, scale=SCALE)
        return self._stack.enter_context(made)

    def run_release(self, end: float) -> None:
        """Bring out one release, and let things fail until it is settled everywhere."""
        firmware = self._upload_release(broken=self._chance.random() < 0.25)
        while time.monotonic() < end and not self._all_attempts_ended(firmware):
            self._inject_fault()
            self._measure_memory()
            time.sleep(self._chance.random() * 4 / self._count)

    def _upload_release(self, *, broken: bool = False) -> str:
        self._number += 1
        version = f"1.{self._number}.0"
        image = builds.build_release(version, {"main.py": CRASH} if broken else None)
        firmware = self._orchestrator.upload_release(image, version, builds.DEVICE)
        self._orchestrator.roll_out(firmware, PLAN)
        self.counts["broken" if broken else "releases"] += 1
        return firmware

    def _all_attempts_ended(self, firmware: str) -> bool:
        rows = self._orchestrator.attempt_rows(firmware)
        return len({row["beacon_id"] for row in rows if row["result"]}) == self._count

    def _inject_fault(self) -> None:
        chance = self._chance
        beacon = chance.choice(self.beacons)
        kind = chance.choices(("cut", "wifi", "link", "restart"), (4, 2, 4, 0.2))[0]
        if kind == "cut":
            beacon.power_cut()
            beacon.power_on()
            self.counts["cuts"] += 1
        elif kind == "restart":
            self._orchestrator.close()
            self._orchestrator.open()
            self.counts["restarts"] += 1
        else:
            self.counts["network"] += 1
            if kind == "wifi":
                beacon.drop_wifi()
            else:
                beacon.link.faults = chance.choice(
                    (
                        LinkFaults(),
                        LinkFaults(loss=0.05),
                        LinkFaults(latency=0.2),
                        LinkFaults(reset_after=chance.randrange(60_000)),
                        LinkFaults(stall_after=chance.randrange(60_000)),
                        LinkFaults(close_after=chance.randrange(60_000)),
                        LinkFaults(throttle=100_000),
                    )
                )

    def _measure_memory(self) -> None:
        if time.monotonic() - self._last_measure < MEASURE_PERIOD_S:
            return
        self._last_measure = time.monotonic()
        self._orchestrator.http_server.requests.clear()  # nobody asks for them here
        self._check_boots()
        rows = self._orchestrator.table_rows(schema.beacons)
        heaps = [row["heap_free_min"] for row in rows if row["heap_free_min"]]
        if len(heaps) > self._count // 2:
            self.memory.heap.append(statistics.median(heaps))
            self.memory.process.append(_anonymous_bytes())

    def _check_boots(self) -> None:
        """Look at the boots that have ended; a beacon remembers the last ones only."""
        for beacon in self.beacons:
            for boot in beacon.boots:
                judged = self._checked_boots.get(beacon.name, 0)
                if boot.ended is None or boot.number <= judged:
                    continue
                if boot.number != judged + 1:
                    self._bad_boots.append(f"{beacon.name}: nobody saw boot {judged + 1}")
                self._checked_boots[beacon.name] = boot.number
                if boot.phase in invariants.DEFECT_PHASES or boot.ended in (
                    "panic",
                    "crash",
                    "unbootable",
                ):
                    self._bad_boots.append(
                        f"{beacon.name}: {boot.slot} ended in {boot.phase}, {boot.ended}"
                    )

    def end_faults(self) -> None:
        """Nothing fails any more."""
        for beacon in self.beacons:
            beacon.link.faults = LinkFaults()
            if not beacon.powered:
                beacon.power_on()

    def deliver_last_release(self) -> list[str]:
        """Bring one more release to everybody; return what is wrong then."""
        firmware = self._upload_release()
        end = time.monotonic() + LAST_RELEASE_S
        while time.monotonic() < end and not all(
            self._has_release(b, firmware) for b in self.beacons
        ):
            time.sleep(0.1)
        return [*self._find_failed_beacons(firmware), *self._check_counts()]

    def _has_release(self, beacon: VirtualBeacon, firmware: str) -> bool:
        rows = [
            r for r in self._orchestrator.attempt_rows(firmware) if r["beacon_id"] == beacon.name
        ]
        radio = beacon.bluetooth
        up = isinstance(radio, RadiolessBackend) and radio.advertising is not None
        told = beacon.setting("attempt") is None
        return up and told and any(row["result"] == "success" for row in rows)

    def _find_failed_beacons(self, firmware: str) -> Iterator[str]:
        self._check_boots()
        yield from self._bad_boots
        for beacon in self.beacons:
            if not self._has_release(beacon, firmware):
                yield f"{beacon.name} has not got the last release: {beacon.phase}"
            held = {key: value for (_, key), value in beacon.settings().items()}
            for key, value in builds.PROVISIONED.items():
                if key != "beacon_id" and held.get(key) != value:
                    yield f"{beacon.name}: setting {key} is lost"

    def _check_counts(self) -> Iterator[str]:
        """One attempt, one result; every journal entry once."""
        attempts = self._orchestrator.attempt_rows()
        done = [(r["beacon_id"], r["firmware_id"]) for r in attempts if r["result"] == "success"]
        if len(done) != len(set(done)):
            yield "a success was counted twice"
        entries = [
            (r["beacon_id"], r["seq"]) for r in self._orchestrator.table_rows(schema.journal)
        ]
        if len(entries) != len(set(entries)):
            yield "a journal entry was taken twice"
        self.counts["attempts"] = len(attempts)
        self.counts["successes"] = len(done)
        self.counts["boots"] = sum(beacon.boots[-1].number for beacon in self.beacons)


def mean_last_thirds(values: list[Any]) -> tuple[float, float]:
    """Return the means of the second and of the last third: the first warms up."""
    size = len(values) // 3
    return statistics.mean(values[size : 2 * size]), statistics.mean(values[-size:])


def summarise_memory(memory: MemorySamples) -> dict[str, Any]:
    """Return what memory came to, for the report."""
    if len(memory.process) < 6:
        return {}
    heap, process = mean_last_thirds(memory.heap), mean_last_thirds(memory.process)
    return {
        "heap free, bytes": f"{heap[0]:.0f} then {heap[1]:.0f}",
        "process, MB": f"{process[0] / 1e6:.1f} then {process[1] / 1e6:.1f}",
    }


def find_growth(memory: MemorySamples) -> list[str]:
    """Return what grew."""
    if len(memory.process) < 6:
        return []
    wrong = []
    heap, process = mean_last_thirds(memory.heap), mean_last_thirds(memory.process)
    if heap[1] < heap[0] * (1 - HEAP_DROP):
        wrong.append(f"beacons' free heap fell from {heap[0]:.0f} to {heap[1]:.0f} bytes")
    if process[1] > process[0] * (1 + MEMORY_GROWTH):
        wrong.append(f"the process grew from {process[0]:.0f} to {process[1]:.0f} bytes")
    return wrong


def _anonymous_bytes() -> int:
    """Return the bytes in anonymous pages, after what is free was given back.

    malloc keeps what was freed, scattered over its arenas: that varies, and is not held.
    """
    gc.collect()
    malloc.trim_heap()
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(rollup.split("\nAnonymous:")[1].split()[0])
