"""The records that make up the fleet's state: a beacon, a release, a rollout in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from beacon_ota.orchestrator.core.replay import ReplaySlot
from beacon_ota.orchestrator.db.guard import keep_from_writer
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.db.tables.attempts import Progress
from beacon_ota.orchestrator.db.tables.firmwares import effective_state
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.types import Attempt, Beacon, Result, RolloutState


@dataclass(frozen=True, slots=True)
class UnprovenClaim:
    """Requests in a beacon's name, since it was last heard, without proof that it sent them.

    Kept in memory only, so that strangers cannot fill the database.

    Attributes:
        code, at, address: the last such request's error code, time and sender.
        count: the number of such requests.
    """

    code: str
    at: float
    address: str
    count: int


@dataclass(slots=True, eq=False)
class BeaconState:
    """A registered beacon."""

    beacon: Beacon
    key: bytes = field(repr=False)
    next_key: bytes | None = field(repr=False)
    given_keys: tuple[bytes, ...] = field(repr=False)
    replay: ReplaySlot
    last_seen: float | None
    address: str = ""
    query: bytes = b""  # of the last poll: the same one need not be read again
    attempts: list[Attempt] = field(default_factory=list)  # of the rollouts in memory
    offering: Any = None  # the future of an offer that is being committed
    back_at: float | None = None  # first poll from the old image after it went to reboot
    progress: int | None = None
    questioned_at: float | None = None  # last event that it states another type
    refused_code: str | None = None  # of its last authenticated request that was refused
    refused_at: float | None = None
    refusals: int = 0  # since its last poll that was answered
    refusal_told_at: float | None = None
    claim: UnprovenClaim | None = None  # unproven requests in its name


@dataclass(slots=True, eq=False)
class Release:
    """A stored release, with the part of its offer that is the same for everybody."""

    row: Fields
    static: str  # JSON members, without braces

    @property
    def state(self) -> str:
        """The release state that decisions see."""
        return effective_state(self.row)


@dataclass(slots=True, eq=False)
class RolloutEntry:
    """A rollout that may still hand out its release, and its attempts."""

    rollout: Rollout
    state: RolloutState  # the committed state with later stops applied
    stored: RolloutState  # the committed state
    revision: int
    created_at: float
    attempts: dict[str, Attempt] = field(default_factory=dict)
    open_ids: set[str] = field(default_factory=set)
    due: float | None = None  # when its next evaluation is due
    retired: bool = False  # makes no new offers; open attempts may end


keep_from_writer(BeaconState, Release, RolloutEntry)


def progress_of(attempt: Attempt) -> Progress:
    """Return how far an attempt has come."""
    return Progress(attempt.offered_at, attempt.taken_at, attempt.rebooting_at)


def attempt_from_row(row: Mapping[Any, Any]) -> Attempt:
    """Return a row of the table as decisions see it."""
    return Attempt(
        id=row["id"],
        beacon_id=row["beacon_id"],
        rollout_id=row["rollout_id"],
        firmware_id=row["firmware_id"],
        wave=row["wave"],
        stage=row["stage"],
        offered_at=row["offered_at"],
        taken_at=row["taken_at"],
        rebooting_at=row["rebooting_at"],
        ended_at=row["ended_at"],
        result=None if row["result"] is None else Result(row["result"]),
        failed_in=row["failed_in"],
        is_remote=row["mirror"] is not None,
        undone_at=row["late_at"]
        if row["result"] == "success" and row["late_result"] == "rolled_back"
        else None,
        blamed_at=row["blamed_at"],
    )
