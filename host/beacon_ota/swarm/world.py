"""The state that all beacons of a swarm share: server, clock, scenario, counts, randomness."""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from beacon_ota.swarm import outcome_model
from beacon_ota.swarm.clock import SwarmClock
from beacon_ota.swarm.expected_counts import ExpectedCounts
from beacon_ota.swarm.http import ServerAddress
from beacon_ota.swarm.latency import LatencyHistogram
from beacon_ota.swarm.outcome_model import OutcomeShares
from beacon_ota.swarm.scenario import Scenario


@dataclass(slots=True)
class TrafficStats:
    """Statistics of the traffic of the swarm."""

    calls: int = 0
    offers: int = 0
    reports: int = 0
    bytes: int = 0
    indexes: int = 0  # block indexes fetched
    saved: int = 0  # bytes of releases that beacons had already
    resumed: int = 0
    downloading: int = 0
    alive: int = 0
    forged: int = 0  # answers whose signature is not the orchestrator's
    polls: LatencyHistogram = field(default_factory=LatencyHistogram)
    burst: LatencyHistogram = field(
        default_factory=LatencyHistogram
    )  # first polls after a power cut of a building
    broken: Counter[str] = field(default_factory=Counter)  # failed exchanges, by code
    refused: Counter[str] = field(default_factory=Counter)  # by code

    def count_poll(self, seconds: float, fresh: bool) -> None:
        """Count a poll that was answered."""
        self.polls.add_call(seconds)
        if fresh:
            self.burst.add_call(seconds)


@dataclass(slots=True)
class World:
    """Server, clock, scenario, randomness, expected counts and statistics.

    Attributes:
        seed: determines the outcome on each beacon.
        outcome_shares: of each release, by firmware id.
        images: content of each release, by checksum: what is in the slots of beacons that have it.
    """

    server: ServerAddress
    clock: SwarmClock
    scenario: Scenario
    seed: str
    device_type: str
    expected: ExpectedCounts = field(default_factory=ExpectedCounts)
    stats: TrafficStats = field(default_factory=TrafficStats)
    outcome_shares: dict[str, OutcomeShares] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)
    random: Random = field(default_factory=Random)

    def draw_outcome(self, firmware: str, beacon: str, number: int) -> str:
        """Return the outcome of an attempt; success for releases outside of the scenario."""
        shares = self.outcome_shares.get(firmware)
        if shares is None:
            return "success"
        return outcome_model.draw_outcome(shares, self.seed, beacon.rpartition("-")[2], number)

    def vary_factor(self) -> float:
        """Return a random factor around 1, so that beacons do not act at the same moment."""
        return self.random.uniform(0.75, 1.25)

    def happens(self, share: float) -> bool:
        """Return True with the probability ``share``."""
        return share > 0 and self.random.random() < share

    def draw_break(self, size: int) -> int | None:
        """Return the bytes after which a download breaks off, None when it does not."""
        return self.random.randrange(1, size) if self.happens(self.scenario.air.cut) else None

    def download_rate(self) -> float | None:
        """Return bytes per second of the wall clock for a download."""
        speed = self.scenario.speed
        return None if speed is None else speed * self.clock.scale
