"""Finds the beacons that a rollout's waves select but its release does not fit: other boards."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .rules import Rollout
from .types import Beacon


@dataclass(frozen=True, slots=True)
class Uncovered:
    """Beacons that a rollout's waves select and its release is not for.

    Attributes:
        questioned: of its board by what they are registered as or by what they say, not by both.
        boards: the others, by device type, most first.
    """

    questioned: int
    boards: Mapping[str, int]


def count_uncovered(rollout: Rollout, beacons: Iterable[Beacon]) -> Uncovered:
    """Count the beacons that a rollout leaves out because of their board."""
    own = rollout.plan.release.device_type
    questioned = 0
    boards: Counter[str] = Counter()
    for beacon in beacons:
        if beacon.device_type == own and not beacon.questioned:
            continue
        if rollout.wave_of(beacon) is None:
            continue
        if beacon.questioned and own in (beacon.device_type, beacon.said_type):
            questioned += 1
        else:
            boards[beacon.device_type] += 1
    found = sorted(boards.items(), key=lambda one: (-one[1], one[0]))
    return Uncovered(questioned, dict(found))
