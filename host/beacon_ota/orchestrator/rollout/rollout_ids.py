"""Chooses a rollout's id so that its stages have the sizes that were ordered.

The rollout's id decides in which stage a beacon is. A share of 10 % is 60 of 600 beacons only on
average: half of all rollouts would have more canaries than were ordered, and in a building of five
there would mostly be none. So several ids are tried on the present fleet, and the one is taken that
comes closest to the shares, with one canary in the smallest waves, too.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from .decide import blocked_by_channel
from .plan_types import Plan
from .rules import Rollout
from .types import Beacon

TRIES_MAX = 1500
TRIES_MIN = 8
DRAWS_MAX = 30_000  # over all tries; a draw takes a microsecond


def choose_rollout_id(
    plan: Plan, beacons: Iterable[Beacon], salt: str, *, release_state: str = "stable"
) -> str:
    """Return an id for a plan, 24 hex; the same for the same plan, fleet and salt.

    Args:
        plan: its own id does not matter.
        beacons: all that are registered.
        salt: must differ between rollouts.
    """
    due = (
        beacon for beacon in beacons if blocked_by_channel(release_state, beacon.channel) is None
    )
    waves = _members(Rollout(plan), due)
    size = sum(map(len, waves))
    tries = max(TRIES_MIN, min(TRIES_MAX, DRAWS_MAX // max(size, 1)))
    return min((_candidate(salt, n) for n in range(tries)), key=lambda it: _unfair(plan, it, waves))


def _candidate(salt: str, number: int) -> str:
    return hashlib.sha256(f"{salt}\n{number}".encode()).hexdigest()[:24]


def _members(rollout: Rollout, beacons: Iterable[Beacon]) -> list[list[str]]:
    """Return the ids of the beacons that each wave's stages are to be filled with."""
    waves: list[list[str]] = [[] for _ in rollout.ladders]
    for beacon in beacons:
        if rollout.targets(beacon) and (wave := rollout.wave_of(beacon)) is not None:
            waves[wave].append(beacon.id)
    return waves


def _unfair(plan: Plan, rollout_id: str, waves: list[list[str]]) -> tuple[int, int]:
    """Return how many beacons too many, and too few, an id puts into stages.

    A wave without canaries counts as too many: its second stage takes their part.
    """
    rollout = Rollout(replace(plan, rollout_id=rollout_id))
    over = under = 0
    for wave, members in enumerate(waves):
        ladder = rollout.ladders[wave]
        counts = [0] * len(ladder)
        for beacon_id in members:
            counts[rollout.stage_of(beacon_id, wave)] += 1
        over += bool(members) and not counts[0]
        reached = 0
        for stage, count in zip(ladder, counts, strict=True):
            reached += count
            wanted = max(int(stage.share * len(members)), min(1, len(members)))
            over += max(reached - wanted, 0)
            under += max(wanted - reached, 0)
    return over, under
