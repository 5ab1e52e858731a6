"""Short ways to write rollouts, beacons and attempts down."""

from dataclasses import replace
from datetime import UTC, datetime

from beacon_ota.orchestrator.rollout.advance import advance, apply_transition, initial_state
from beacon_ota.orchestrator.rollout.counting import count_outcomes, locate_beacons
from beacon_ota.orchestrator.rollout.decide import ActiveRollout
from beacon_ota.orchestrator.rollout.plan_types import Release
from beacon_ota.orchestrator.rollout.plans import parse_plan
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.types import (
    Attempt,
    Beacon,
    Place,
    Result,
    RolloutState,
    Site,
    Status,
    Transition,
    WaveState,
    Window,
)
from beacon_ota.orchestrator.rollout.windows import Places

MONDAY = datetime(2026, 3, 2, 10, tzinfo=UTC).timestamp()  # in no window of PLACES
NEW = Release("f" * 24, "1.2.3", "esp32c3", "ab" * 32)
NEWER = Release("e" * 24, "1.3.0", "esp32c3", "cd" * 32)
ANY_TIME = Place("hq/a", Window(0, 1440))

# Three buildings of one company, far apart.
PLACES = Places(
    [
        Site("hq/a", zone="Europe/Berlin"),
        Site("hq/b", zone="America/New_York"),
        Site("hq/c", zone="Asia/Tokyo"),
    ]
)


def utc(*when: int) -> float:
    """UTC seconds of year, month, day, hour …"""
    return datetime(*when, tzinfo=UTC).timestamp()


def rollout(rollout_id: str = "r1", release: Release = NEW, **fields) -> Rollout:
    """A rollout from the fields of a plan's table."""
    return Rollout(parse_plan(fields, rollout_id=rollout_id, release=release))


def live(rollout: Rollout, status: Status = Status.ACTIVE, *stages: int, **fields) -> ActiveRollout:
    """A rollout with each wave open up to a stage; by default the last."""
    stages = stages or tuple(len(ladder) - 1 for ladder in rollout.ladders)
    waves = tuple(
        WaveState() if stage < 0 else WaveState(stage, MONDAY, MONDAY) for stage in stages
    )
    return ActiveRollout(rollout, RolloutState(MONDAY, waves, status), **fields)


def beacon(name: str = "b1", version: str = "1.2.2", **fields) -> Beacon:
    return Beacon(name, "esp32c3", version, **{"site": "hq/a/1", **fields})


def fleet(size: int, **fields) -> list[Beacon]:
    """Beacons spread over the three buildings."""
    return [beacon(f"b{n:04}", **{"site": f"hq/{'abc'[n % 3]}/1", **fields}) for n in range(size)]


_serial = iter(range(10**9))


def attempt(
    beacon: Beacon,
    rollout: Rollout,
    result: Result | None = None,
    *,
    taken: float | None = MONDAY,
    ended: float | None = None,
    **fields,
) -> Attempt:
    """An attempt of a beacon at a rollout's release, where the beacon belongs."""
    wave = rollout.wave_of(beacon)
    assert wave is not None
    if result is not None and ended is None:
        ended = (taken or MONDAY) + 60
    return Attempt(
        f"{next(_serial):024x}",
        beacon.id,
        rollout.plan.rollout_id,
        rollout.plan.release.firmware_id,
        wave,
        rollout.stage_of(beacon.id, wave),
        MONDAY if taken is None else taken,
        taken,
        ended_at=ended,
        result=result,
        **fields,
    )


def updated(beacon: Beacon, rollout: Rollout, at: float = MONDAY) -> Beacon:
    """The beacon after it has confirmed the release."""
    release = rollout.plan.release
    return replace(beacon, version=release.version, image=release.checksum, version_at=at)


def by_stage(rollout: Rollout, beacons: list[Beacon], wave: int = 0) -> list[list[Beacon]]:
    """The beacons of a wave, sorted into its stages."""
    cells: list[list[Beacon]] = [[] for _ in rollout.ladders[wave]]
    for one in beacons:
        if rollout.wave_of(one) == wave:
            cells[rollout.stage_of(one.id, wave)].append(one)
    return cells


class Bench:
    """A rollout on the table: outcomes are put in by hand, and the gates looked at."""

    def __init__(self, rollout: Rollout, beacons: list[Beacon], start: float = MONDAY):
        self.rollout = rollout
        self.beacons = {one.id: one for one in beacons}
        self.attempts: dict[str, list[Attempt]] = {}
        self.seen = {one.id: float("inf") for one in beacons}
        self.state = initial_state(rollout, start)
        self.now = start
        self.made: list[Transition] = []
        self.listening_since = 0.0

    def tally(self):
        return self._look(count_outcomes)

    def members(self):
        return self._look(locate_beacons)

    def _look(self, how):
        return how(
            self.rollout,
            self.state,
            self.beacons.values(),
            self.attempts,
            self.seen,
            self.now,
            listening_since=self.listening_since,
        )

    def tick(self, after: float = 0.0) -> list[str]:
        """Let time pass, look at the gates, and return the words of what they did."""
        self.now += after
        return self.apply(advance(self.rollout, self.state, self.tally(), self.now))

    def apply(self, changes) -> list[str]:
        for change in changes:
            self.state = apply_transition(self.state, change)
        self.made += changes
        return [change.kind.value for change in changes]

    def end(self, one: Beacon, result: Result | None, **fields) -> None:
        """A beacon has taken the offer just now, and come to a result."""
        done = attempt(one, self.rollout, result, taken=self.now, ended=None, **fields)
        if result is not None:
            done = replace(done, ended_at=self.now)
        self.attempts.setdefault(one.id, []).append(done)
        if result is Result.SUCCESS:
            self.beacons[one.id] = updated(one, self.rollout, self.now)

    @property
    def stages(self) -> list[int]:
        return [wave.stage for wave in self.state.waves]
