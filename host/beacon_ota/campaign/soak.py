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
from beacon_ota.campaign.rig.bench import scratch
from beacon_ota.campaign.rig.orchestrator import PLAN as ONCE
from beacon_ota.campaign.rig.orchestrator import Orchestrator, empty
from beacon_ota.campaign.runner import Options, Outcome, Plan
from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.db import schema
from beacon_ota.virtual.beacon import VirtualBeacon
from beacon_ota.virtual.flash.nor import Flash
from beacon_ota.virtual.net.network import Faults, Network
from beacon_ota.virtual.radio.vhci import Advertiser

BEACONS = 50
SCALE = 10.0
PATIENCE = 180.0  # real seconds until the last release has to be everywhere
TURN = 60.0  # real seconds after which the next release comes, whatever became of this one
EVERY = 2.0  # real seconds between looks at memory
HEAP_DROP, MEMORY_GROWTH = 0.05, 0.05  # shares that are still called flat
PLAN = {**ONCE, "retry": {"limit": 3, "pauses": ["20s"]}}
POLICY = {"stall_s": 20, "give_up_s": 120, "trial_s": 60}


@dataclass
class Memory:
    """What was measured meanwhile.

    Args:
        heap: the least free heap that beacons had reported, as the median of the fleet.
        process: bytes that this process alone has: supervisor, orchestrator; without the beacons'
            flash, which is of fixed size and mapped from files.
    """

    heap: list[float] = field(default_factory=list)
    process: list[int] = field(default_factory=list)


def plan(folder: Path, options: Options) -> Plan:
    """It is one case: beacons, minutes."""
    name = f"{BEACONS}:{options.minutes:g}"
    return Plan([name], {"beacons": BEACONS, "minutes": options.minutes}, jobs=1)


def case(name: str, folder: Path, options: Options) -> Outcome:
    """Soak so many beacons for so many minutes: ``50:10``."""
    try:
        count, minutes = name.split(":")
        chosen = int(count), float(minutes)
    except ValueError:
        raise UsageError("case_name", "no such case", found=name, expected="50:10") from None
    with scratch() as where:
        return run(name, where, *chosen, random.Random(f"{options.seed} {name}"))


def run(name: str, folder: Path, count: int, minutes: float, chance: random.Random) -> Outcome:
    """Soak; return what became of the fleet."""
    malloc.limit_to_one_arena()
    malloc.map_buffers()  # flash images, releases
    with _Fleet(folder, count, chance) as fleet:
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            fleet.turn(min(end, time.monotonic() + TURN))
        fleet.rest()
        wrong = fleet.finish()
        facts = {**fleet.counts, **flat(fleet.memory)}
        wrong += leaks(fleet.memory)
    return Outcome(name, "soak", f"{count} beacons", wrong, facts=facts)


class _Fleet:
    """Beacons, their network and their orchestrator, all in this process."""

    def __init__(self, folder: Path, count: int, chance: random.Random):
        self._chance, self._count, self._number = chance, count, 0
        self._stack = contextlib.ExitStack()
        self._folder = folder
        names = ("releases", "broken", "cuts", "network", "restarts")
        self.counts: dict[str, int] = dict.fromkeys(names, 0)
        self.memory = Memory()
        self._seen = 0.0
        self._judged: dict[str, int] = {}  # name -> number of the last boot that was
        self._bad_boots: list[str] = []

    def __enter__(self) -> "_Fleet":
        self._orchestrator = self._stack.enter_context(Orchestrator(self._folder, SCALE))
        self._orchestrator.open(empty())
        self._network = Network(join_time=0.5)
        self._network.add(builds.SSID, builds.PASSWORD)
        self._network.host("orchestrator.local", "127.0.0.1", self._orchestrator.front.port)
        first = builds.build("0.1.0")
        self.beacons = [self._beacon(first, number) for number in range(self._count)]
        for beacon in self.beacons:
            beacon.power_on()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _beacon(self, first: bytes, number: int) -> VirtualBeacon:
        name = f"soak-{number}"
        self._orchestrator.register(name, builds.KEY, builds.DEVICE)
        content = builds.flash_image(first, policy=POLICY, given={"beacon_id": name.encode()})
        flash = Flash(content)
        self._stack.callback(flash.close)
        mac = bytes((0x7C, 0xDF, 0xA1, 0, number >> 8, number & 0xFF))
        made = VirtualBeacon(flash, mac=mac, name=name, network=self._network, scale=SCALE)
        return self._stack.enter_context(made)

    def turn(self, end: float) -> None:
        """Bring out one release, and let things fail until it is settled everywhere."""
        firmware = self._release(broken=self._chance.random() < 0.25)
        while time.monotonic() < end and not self._settled(firmware):
            self._fail()
            self._look()
            time.sleep(self._chance.random() * 4 / self._count)

    def _release(self, *, broken: bool = False) -> str:
        self._number += 1
        version = f"1.{self._number}.0"
        image = builds.build(version, {"main.py": CRASH} if broken else None)
        firmware = self._orchestrator.upload(image, version, builds.DEVICE)
        self._orchestrator.roll_out(firmware, PLAN)
        self.counts["broken" if broken else "releases"] += 1
        return firmware

    def _settled(self, firmware: str) -> bool:
        rows = self._orchestrator.attempts(firmware)
        return len({row["beacon_id"] for row in rows if row["result"]}) == self._count

    def _fail(self) -> None:
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
                        Faults(),
                        Faults(loss=0.05),
                        Faults(latency=0.2),
                        Faults(reset_after=chance.randrange(60_000)),
                        Faults(stall_after=chance.randrange(60_000)),
                        Faults(close_after=chance.randrange(60_000)),
                        Faults(throttle=100_000),
                    )
                )

    def _look(self) -> None:
        if time.monotonic() - self._seen < EVERY:
            return
        self._seen = time.monotonic()
        self._orchestrator.front.requests.clear()  # nobody asks for them here
        self._judge()
        rows = self._orchestrator.rows(schema.beacons)
        heaps = [row["heap_free_min"] for row in rows if row["heap_free_min"]]
        if len(heaps) > self._count // 2:
            self.memory.heap.append(statistics.median(heaps))
            self.memory.process.append(_held())

    def _judge(self) -> None:
        """Look at the boots that have ended; a beacon remembers the last ones only."""
        for beacon in self.beacons:
            for boot in beacon.boots:
                judged = self._judged.get(beacon.name, 0)
                if boot.ended is None or boot.number <= judged:
                    continue
                if boot.number != judged + 1:
                    self._bad_boots.append(f"{beacon.name}: nobody saw boot {judged + 1}")
                self._judged[beacon.name] = boot.number
                if boot.phase in invariants.DEFECTS or boot.ended in (
                    "panic",
                    "crash",
                    "unbootable",
                ):
                    self._bad_boots.append(
                        f"{beacon.name}: {boot.slot} ended in {boot.phase}, {boot.ended}"
                    )

    def rest(self) -> None:
        """Nothing fails any more."""
        for beacon in self.beacons:
            beacon.link.faults = Faults()
            if not beacon.powered:
                beacon.power_on()

    def finish(self) -> list[str]:
        """Bring one more release to everybody; return what is wrong then."""
        firmware = self._release()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and not all(self._has(b, firmware) for b in self.beacons):
            time.sleep(0.1)
        return [*self._bricks(firmware), *self._counts()]

    def _has(self, beacon: VirtualBeacon, firmware: str) -> bool:
        rows = [r for r in self._orchestrator.attempts(firmware) if r["beacon_id"] == beacon.name]
        radio = beacon.bluetooth
        up = isinstance(radio, Advertiser) and radio.advertising is not None
        told = beacon.setting("attempt") is None
        return up and told and any(row["result"] == "success" for row in rows)

    def _bricks(self, firmware: str) -> Iterator[str]:
        self._judge()
        yield from self._bad_boots
        for beacon in self.beacons:
            if not self._has(beacon, firmware):
                yield f"{beacon.name} has not got the last release: {beacon.phase}"
            held = {key: value for (_, key), value in beacon.settings().items()}
            for key, value in builds.GIVEN.items():
                if key != "beacon_id" and held.get(key) != value:
                    yield f"{beacon.name}: setting {key} is lost"

    def _counts(self) -> Iterator[str]:
        """One attempt, one result; every journal entry once."""
        attempts = self._orchestrator.attempts()
        done = [(r["beacon_id"], r["firmware_id"]) for r in attempts if r["result"] == "success"]
        if len(done) != len(set(done)):
            yield "a success was counted twice"
        entries = [(r["beacon_id"], r["seq"]) for r in self._orchestrator.rows(schema.journal)]
        if len(entries) != len(set(entries)):
            yield "a journal entry was taken twice"
        self.counts["attempts"] = len(attempts)
        self.counts["successes"] = len(done)
        self.counts["boots"] = sum(beacon.boots[-1].number for beacon in self.beacons)


def thirds(values: list[Any]) -> tuple[float, float]:
    """Return the means of the second and of the last third: the first warms up."""
    size = len(values) // 3
    return statistics.mean(values[size : 2 * size]), statistics.mean(values[-size:])


def flat(memory: Memory) -> dict[str, Any]:
    """Return what memory came to, for the report."""
    if len(memory.process) < 6:
        return {}
    heap, process = thirds(memory.heap), thirds(memory.process)
    return {
        "heap free, bytes": f"{heap[0]:.0f} then {heap[1]:.0f}",
        "process, MB": f"{process[0] / 1e6:.1f} then {process[1] / 1e6:.1f}",
    }


def leaks(memory: Memory) -> list[str]:
    """Return what grew."""
    if len(memory.process) < 6:
        return []
    wrong = []
    heap, process = thirds(memory.heap), thirds(memory.process)
    if heap[1] < heap[0] * (1 - HEAP_DROP):
        wrong.append(f"beacons' free heap fell from {heap[0]:.0f} to {heap[1]:.0f} bytes")
    if process[1] > process[0] * (1 + MEMORY_GROWTH):
        wrong.append(f"the process grew from {process[0]:.0f} to {process[1]:.0f} bytes")
    return wrong


def _held() -> int:
    """Return the bytes in anonymous pages, after what is free was given back.

    malloc keeps what was freed, scattered over its arenas: that varies, and is not held.
    """
    gc.collect()
    malloc.trim_heap()
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(rollup.split("\nAnonymous:")[1].split()[0])
