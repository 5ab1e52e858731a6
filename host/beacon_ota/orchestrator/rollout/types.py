"""The values that rollout decisions are made of and made from.

Units: times are UTC seconds since 1970 (``at``, ``now``, ``…_at``), durations are seconds
(``…_s``), shares lie in (0, 1]. Every value is frozen; a decision never changes one.
The words (``StrEnum``) are stable: they appear in answers, metrics, the audit log and the docs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

# ---- what decisions see of the world ----


@dataclass(frozen=True, slots=True)
class Window:
    """Daily maintenance window: minutes after local midnight, and an IANA zone name.

    ``end`` before ``start`` runs over midnight; 0 to 1440 is any time.
    """

    start: int = 180
    end: int = 300
    zone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Site:
    """A node of the site tree; ``zone`` and ``window`` are inherited from above when None.

    ``path`` is like ``campus/building-a/floor-2``; ``kind`` is ``site``, ``building`` or
    ``floor``, taken from the depth when None.
    """

    path: str
    zone: str | None = None
    window: str | None = None
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """What a site path comes down to: the building it counts in, and the window in force."""

    building: str
    window: Window


@dataclass(frozen=True, slots=True)
class Beacon:
    """A beacon as decisions see it.

    Attributes:
        version: running version; image: SHA-256 of the running release image, "" if unknown.
        version_at: when it last stated that version (a poll or a report).
        on_trial: the running image is not confirmed yet.
        quarantined: withheld from all rollouts, by hand.
        cleared_at: attempts that ended before this no longer count against its limit, and what it
            called bad before this may be offered again.
        said_type: the device type that it says it is; "" while it has not said.
    """

    id: str
    device_type: str
    version: str
    image: str = ""
    version_at: float = 0.0
    channel: str = "stable"
    site: str = ""
    tags: frozenset[str] = frozenset()
    on_trial: bool = False
    quarantined: bool = False
    cleared_at: float = 0.0
    said_type: str = ""

    @property
    def questioned(self) -> bool:
        """True while it says that it is another board than it is registered as."""
        return bool(self.said_type) and self.said_type != self.device_type

    @property
    def open_channel(self) -> str | None:
        """The channel by which it may be offered something; None while it is quarantined."""
        return None if self.quarantined else self.channel


class Result(StrEnum):
    """How an attempt ended. The first four are outcomes; the last two count for nothing."""

    SUCCESS = "success"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    LOST = "lost"
    EXPIRED = "expired"  # offered, never taken
    STOPPED = "stopped"  # withdrawn by a halt, an abort or a newer offer


@dataclass(frozen=True, slots=True)
class Attempt:
    """One offer to one beacon, and what became of it.

    ``wave`` and ``stage`` are where the beacon stood when it was offered. ``failed_in`` is the
    stage of the failure that the beacon reported (``download``, ``boot`` …). ``is_remote``:
    another orchestrator hears from the beacon, and concludes the attempt. ``undone_at``: when the
    beacon said that it went back from a release which it had confirmed; ``blamed_at``: when it
    said that the release is bad.
    """

    id: str
    beacon_id: str
    rollout_id: str
    firmware_id: str
    wave: int
    stage: int
    offered_at: float
    taken_at: float | None = None
    rebooting_at: float | None = None
    ended_at: float | None = None
    result: Result | None = None
    failed_in: str | None = None
    is_remote: bool = False
    undone_at: float | None = None
    blamed_at: float | None = None

    @property
    def final_at(self) -> float:
        """When the last was heard of how it ended; 0 while it has not."""
        return self.undone_at or self.ended_at or 0.0


# ---- what a rollout has come to ----


class Status(StrEnum):
    """Where a rollout stands."""

    SCHEDULED = "scheduled"
    ACTIVE = "active"
    PAUSED = "paused"
    HALTED = "halted"
    COMPLETED = "completed"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class WaveState:
    """How far a wave is. ``stage`` is -1 before it opens; the stamps of the present stage follow.

    ``sampled_at``: when the stage's sample was complete; soaking counts from there.
    """

    stage: int = -1
    opened_at: float | None = None
    stage_at: float | None = None
    sampled_at: float | None = None
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class RolloutState:
    """Everything that changes in a rollout: the fold of its transitions.

    ``since``: failures up to here were accepted by whoever resumed the rollout after a halt.
    """

    start_at: float
    waves: tuple[WaveState, ...]
    status: Status = Status.SCHEDULED
    since: float = 0.0
    reason: str = ""
    by: str = ""
    changed_at: float = 0.0


class Kind(StrEnum):
    """What happened to a rollout."""

    STARTED = "started"
    WAVE_OPENED = "wave_opened"
    STAGE_OPENED = "stage_opened"
    SAMPLED = "sampled"
    WAVE_COMPLETED = "wave_completed"
    COMPLETED = "completed"
    HALTED = "halted"
    PAUSED = "paused"
    RESUMED = "resumed"
    ABORTED = "aborted"
    CLOCK_BACK = "clock_back"
    CLOCK_AHEAD = "clock_ahead"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of a rollout, to be recorded and then applied.

    Attributes:
        wave, stage: where, for changes of a wave; stage is the one that opens, or that tripped.
        reason: a stable word; detail: a sentence with the numbers.
        by: who did it; ``engine`` for the gates.
    """

    at: float
    kind: Kind
    wave: int | None = None
    stage: int | None = None
    reason: str = ""
    detail: str = ""
    by: str = "engine"


@dataclass(frozen=True, slots=True)
class StageCounts:
    """Beacons of one wave and stage; each counts once, under its latest outcome.

    Attributes:
        healthy: confirmed by the new image, and heard from lately.
        gone: confirmed, but silent for longer than the gate's presence.
        failed: failed, rolled back or lost.
        accepted: the same, before the last resume by hand.
        open: taken the offer, no outcome yet.
        waiting: due for the release and present; away: due, not heard from lately.
        failure_streak: longest run of failures, in the order in which the offers were taken.
    """

    healthy: int = 0
    gone: int = 0
    failed: int = 0
    accepted: int = 0
    open: int = 0
    waiting: int = 0
    away: int = 0
    failure_streak: int = 0

    @property
    def decided(self) -> int:
        """Beacons with an outcome that counts."""
        return self.healthy + self.gone + self.failed

    @property
    def attempted(self) -> int:
        """Beacons that took the offer."""
        return self.decided + self.open

    @property
    def tried(self) -> int:
        """Beacons that ever took the offer, accepted failures included."""
        return self.attempted + self.accepted

    @property
    def reach(self) -> int:
        """Beacons that can be judged or waited for."""
        return self.attempted + self.waiting

    @property
    def members(self) -> int:
        """All beacons of the cell that the release is or was for."""
        return self.reach + self.accepted + self.away


@dataclass(frozen=True, slots=True)
class OutcomeCounts:
    """Counts by wave and stage (``stages[wave][stage]``), and their sums.

    ``common`` leaves out the waves that have a gate of their own.
    """

    stages: tuple[tuple[StageCounts, ...], ...]
    total: StageCounts
    common: StageCounts


# ---- what a beacon is told ----


class Reason(StrEnum):
    """Why a beacon is offered a release, or not now."""

    OFFER = "offer"
    NO_RELEASE = "no_release"
    UP_TO_DATE = "up_to_date"
    VERSION = "version"
    CHANNEL = "channel"
    WITHDRAWN = "withdrawn"
    QUARANTINED = "quarantined"
    BOARD = "board"
    TRIAL = "trial"
    SCHEDULED = "scheduled"
    PAUSED = "paused"
    HALTED = "halted"
    ABORTED = "aborted"
    WAVE = "wave"
    STAGE = "stage"
    BLAMED = "blamed"
    ATTEMPTS = "attempts"
    RETRY = "retry"
    REBOOTING = "rebooting"
    WINDOW = "window"
    BUSY = "busy"
    LEASE = "lease"


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one poll.

    Attributes:
        again_at: when time alone may change the answer; None when it takes something else.
        attempt_id: the open attempt that this offer goes on with; None starts a new one.
        number: which attempt of this beacon at this release it would be, from 1.
        not_before, not_after: the maintenance window in force; None when any time will do.
    """

    reason: Reason
    rollout_id: str | None = None
    firmware_id: str | None = None
    wave: int | None = None
    stage: int | None = None
    again_at: float | None = None
    attempt_id: str | None = None
    number: int = 0
    not_before: float | None = None
    not_after: float | None = None
    required: bool = False

    @property
    def offered(self) -> bool:
        """True when the beacon is to be given the release."""
        return self.reason is Reason.OFFER


# ---- what would happen ----


@dataclass(frozen=True, slots=True)
class PreviewSlot:
    """When one beacon would be offered the release; ``at`` is None if never, for ``reason``."""

    beacon_id: str
    wave: int | None
    stage: int | None
    at: float | None
    reason: Reason = Reason.OFFER


@dataclass(frozen=True, slots=True)
class Timeline:
    """A preview: who would get the release when, and what the rollout would do by itself."""

    slots: tuple[PreviewSlot, ...]
    transitions: tuple[Transition, ...]
    ends_at: float | None
    left_out: Mapping[Reason, int] = field(default_factory=dict)
