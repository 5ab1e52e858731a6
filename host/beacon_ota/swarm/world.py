"""What all beacons of a swarm share."""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from beacon_ota.swarm import outcome_model
from beacon_ota.swarm.clock import Time
from beacon_ota.swarm.outcome_model import Fates
from beacon_ota.swarm.http import Place
from beacon_ota.swarm.latency import Latency
from beacon_ota.swarm.expected_counts import Ledger
from beacon_ota.swarm.scenario import Scenario


@dataclass(slots=True)
class Stats:
    """What the swarm sees of the traffic."""

    calls: int = 0
    offers: int = 0
    reports: int = 0
    bytes: int = 0
    resumed: int = 0
    downloading: int = 0
    alive: int = 0
    forged: int = 0  # answers whose signature is not the orchestrator's
    polls: Latency = field(default_factory=Latency)
    burst: Latency = field(default_factory=Latency)  # first polls after a power cut of a building
    broken: Counter[str] = field(default_factory=Counter)  # exchanges that came to nothing
    refused: Counter[str] = field(default_factory=Counter)  # by code

    def polled(self, seconds: float, fresh: bool) -> None:
        """Count a poll that was answered."""
        self.polls.add(seconds)
        if fresh:
            self.burst.add(seconds)


@dataclass(slots=True)
class World:
    """Place, time, scenario, chance; the ledger and the statistics.

    Attributes:
        seed: decides which beacon meets which fate.
        fates_of: of each release, by firmware id.
    """

    place: Place
    time: Time
    scenario: Scenario
    seed: str
    device_type: str
    ledger: Ledger = field(default_factory=Ledger)
    stats: Stats = field(default_factory=Stats)
    fates_of: dict[str, Fates] = field(default_factory=dict)
    random: Random = field(default_factory=Random)

    def fate(self, firmware: str, beacon: str, number: int) -> str:
        """Return what becomes of a beacon's attempt; of a release that is not ours, success."""
        shares = self.fates_of.get(firmware)
        if shares is None:
            return "success"
        return outcome_model.draw(shares, self.seed, beacon.rpartition("-")[2], number)

    def vary(self) -> float:
        """Return a factor around 1: nothing happens at once by itself."""
        return self.random.uniform(0.75, 1.25)

    def luck(self, share: float) -> bool:
        """Return True in so large a share of the cases."""
        return share > 0 and self.random.random() < share

    def cut(self, size: int) -> int | None:
        """Return after how many bytes a download breaks off, None when it does not."""
        return self.random.randrange(1, size) if self.luck(self.scenario.air.cut) else None

    def rate(self) -> float | None:
        """Return bytes per second of the wall clock for a download."""
        speed = self.scenario.speed
        return None if speed is None else speed * self.time.scale
