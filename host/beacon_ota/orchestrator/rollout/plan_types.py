"""A plan as an administrator orders it: frozen values.

Units: durations are seconds (``…_s``), shares lie in (0, 1]. ``plans`` reads and writes the tables
that people write.
"""

from dataclasses import dataclass
from enum import StrEnum

MINUTE, HOUR, DAY, WEEK = 60.0, 3600.0, 86_400.0, 604_800.0


@dataclass(frozen=True, slots=True)
class Release:
    """The release image that a rollout hands out.

    ``checksum`` is the SHA-256 of the plain image, hex: what a beacon reports as its image.
    """

    firmware_id: str
    version: str
    device_type: str
    checksum: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One rung of a ladder: the cumulative share it opens, and how long it is watched."""

    share: float
    soak_s: float = 0.0


LADDER = (Stage(0.10, 24 * HOUR), Stage(0.55, 12 * HOUR), Stage(1.0))


@dataclass(frozen=True, slots=True)
class Gate:
    """What a stage must show before the next opens, and what stops the rollout.

    Attributes:
        min_sample: beacons with an outcome needed to judge a stage (all present when fewer).
        healthy_share: confirmed healthy among the attempted, needed to go on.
        failure_share: failed among those with an outcome; more than this halts …
        failure_sample: … once so many have an outcome.
        max_consecutive_failures: halt after this many consecutive failures of different beacons,
            regardless of the sample size (``in_a_row`` in a plan).
        report_timeout_s: from an offer taken to its outcome; longer is ``lost``, a failure
            (``silence`` in a plan).
        liveness_window_s: a beacon heard from within this time is present; a stage does not wait
            for the others (``presence`` in a plan).
        stage_timeout_s: a stage waits no longer than this for present beacons to come to an end
            (``patience`` in a plan).
        retry_first: stages of failure (``download`` …) that count only once the beacon has used
            up its attempts, or has not tried again within
            ``report_timeout_s``.
    """

    min_sample: int = 3
    healthy_share: float = 0.9
    failure_share: float = 0.05
    failure_sample: int = 5
    max_consecutive_failures: int = 3
    report_timeout_s: float = 30 * MINUTE
    liveness_window_s: float = 6 * HOUR
    stage_timeout_s: float = WEEK
    retry_first: tuple[str, ...] = ("download",)


@dataclass(frozen=True, slots=True)
class Selector:
    """Which beacons belong to a wave.

    Attributes:
        sites: paths in the site tree; a path stands for everything below it. Empty: anywhere.
        tags: the beacon has all of these …
        without: … and none of these.
        rest: everything that no other wave of the rollout selects; excludes the other fields.
    """

    sites: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    rest: bool = False


class Base(StrEnum):
    """What a wave's opening is counted from."""

    START = "start"
    PREVIOUS_START = "previous_start"
    PREVIOUS_END = "previous_end"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Opening:
    """When a wave opens: ``seconds`` after ``base``, or at UTC ``seconds`` when base is TIME."""

    base: Base = Base.START
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Wave:
    """A part of the fleet that climbs the ladder by itself.

    ``ladder`` and ``gate`` stand in for the plan's when given.
    """

    name: str
    selector: Selector
    opens: Opening = Opening()
    ladder: tuple[Stage, ...] | None = None
    gate: Gate | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """How often one beacon may try one release, and the pauses between (the last repeats)."""

    limit: int = 3
    pauses_s: tuple[float, ...] = (120.0, 240.0, 480.0, 960.0, 1920.0)


@dataclass(frozen=True, slots=True)
class Plan:
    """A rollout as it was ordered; it never changes afterwards.

    Attributes:
        required: installed whatever the hour and without soaking; the gates stay.
        window: ``HH:MM-HH:MM`` in each building's own zone, instead of the building's window.
        concurrency: updates under way in one building at a time; None is no cap.
        offer_s: how long an offer that nobody takes holds its place in the building.
    """

    rollout_id: str
    release: Release
    waves: tuple[Wave, ...] = (Wave("all", Selector(rest=True)),)
    ladder: tuple[Stage, ...] = LADDER
    gate: Gate = Gate()
    retry: Retry = Retry()
    required: bool = False
    window: str | None = None
    concurrency: int | None = None
    offer_s: float = 10 * MINUTE
