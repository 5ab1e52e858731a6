"""Decides what a beacon is offered: the answer to one poll, and to one report of an attempt.

The newest rollout that has reached a beacon decides about it. Older ones count only where newer
ones stand aside (halted, aborted, not open for this beacon yet, not for this beacon at all);
a *required* older one is not held back by a newer one either.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .plan_types import Base
from .rules import Rollout, version_key
from .types import Attempt, Beacon, Decision, Place, Reason, Result, RolloutState, Status
from .windows import DEFAULT_WINDOW, next_window

OUTCOMES = frozenset((Result.SUCCESS, Result.FAILED, Result.ROLLED_BACK, Result.LOST))
ANYWHERE = Place("", DEFAULT_WINDOW)


@dataclass(frozen=True, slots=True)
class ActiveRollout:
    """A rollout as it stands. ``release_state`` is ``testing``, ``stable`` or ``deprecated``."""

    rollout: Rollout
    state: RolloutState
    release_state: str = "stable"


# With one of these a rollout stands aside: an older one may serve the beacon.
_ASIDE = frozenset(
    (
        Reason.UP_TO_DATE,
        Reason.CHANNEL,
        Reason.WITHDRAWN,
        Reason.SCHEDULED,
        Reason.HALTED,
        Reason.ABORTED,
        Reason.WAVE,
    )
)
_STOPPED = {Status.HALTED: Reason.HALTED, Status.ABORTED: Reason.ABORTED}
_NO_RELEASE = Decision(Reason.NO_RELEASE)
_QUARANTINED = Decision(Reason.QUARANTINED)
_BOARD = Decision(Reason.BOARD)
_TRIAL = Decision(Reason.TRIAL)
_VERSION = Decision(Reason.VERSION)


def decide(
    rollouts: Sequence[ActiveRollout],
    beacon: Beacon,
    now: float,
    *,
    attempts: Sequence[Attempt] = (),
    place: Place = ANYWHERE,
    busy: int = 0,
) -> Decision:
    """Answer a poll.

    Args:
        rollouts: newest first.
        now: UTC seconds.
        attempts: this beacon's own, of any rollout, in any order.
        place: of the beacon's site.
        busy: attempts under way in the beacon's building, its own not counted.

    Returns:
        The offer, or the reason that holds it back and when time alone may change that.
    """
    if beacon.quarantined:
        return _QUARANTINED
    if beacon.questioned:
        return _BOARD
    if beacon.on_trial:
        return _TRIAL
    running = version_key(beacon.version)
    if running is None:
        return _VERSION
    held = aside = None
    halted: tuple[str | None, ...] = ()  # releases
    for live in rollouts:
        if held is not None and not live.rollout.plan.required:
            continue
        if halted and live.rollout.plan.release.firmware_id in halted:
            continue  # what was stopped does not come by a rollout that was started before
        answer = _ask(live, beacon, running, now, attempts, place, busy)
        if answer is None:
            continue
        reason = answer.reason
        if reason is Reason.OFFER:
            return answer
        if reason is Reason.HALTED:
            halted += (answer.firmware_id,)
        if reason in _ASIDE:
            if aside is None or aside.reason is Reason.CHANNEL:
                aside = answer
        elif held is None:
            held = answer
    return held or aside or _NO_RELEASE


def _ask(
    live: ActiveRollout,
    beacon: Beacon,
    running: tuple,
    now: float,
    attempts: Sequence[Attempt],
    place: Place,
    busy: int,
) -> Decision | None:
    """Return what one rollout says to a beacon, None when it is not for this beacon."""
    rollout = live.rollout
    plan = rollout.plan
    release = plan.release
    if release.device_type != beacon.device_type:
        return None
    wave = rollout.wave_of(beacon)
    if wave is None:
        return None
    if rollout.version_key <= running or release.checksum == beacon.image:
        return rollout.up_to_date
    rollout_id = plan.rollout_id
    firmware_id = release.firmware_id
    if (reason := blocked_by_channel(live.release_state, beacon.channel)) is not None:
        return Decision(reason, rollout_id, firmware_id, wave)
    state = live.state
    status = state.status
    if status is Status.HALTED or status is Status.ABORTED:
        return Decision(_STOPPED[status], rollout_id, firmware_id, wave)
    if status is Status.SCHEDULED:
        return Decision(
            Reason.SCHEDULED, rollout_id, firmware_id, wave, again_at=_opens(live, wave)
        )
    reached = state.waves[wave].stage
    if reached < 0:
        return Decision(Reason.WAVE, rollout_id, firmware_id, wave, again_at=_opens(live, wave))
    stage = rollout.stage_of(beacon.id, wave)
    if stage > reached:
        return Decision(Reason.STAGE, rollout_id, firmware_id, wave, stage)

    current = None
    tries = 0
    last = 0.0
    blamed = False
    for attempt in attempts:
        if attempt.firmware_id != firmware_id:
            continue
        if attempt.result is None:
            if attempt.rebooting_at is not None:
                return Decision(Reason.REBOOTING, rollout_id, firmware_id, wave, stage)
            if attempt.rollout_id == rollout_id:
                current = attempt
            continue
        blamed = blamed or is_blamed_by(attempt, beacon)
        if attempt.result in OUTCOMES and attempt.final_at > beacon.cleared_at:
            tries += 1
            last = max(last, attempt.final_at)

    # What was begun is finished, whatever the hour: it holds its place already, and leaving it
    # lying would make a lost update of it.
    if current is not None and current.taken_at is not None:
        return Decision(
            Reason.OFFER,
            rollout_id,
            firmware_id,
            wave,
            stage,
            None,
            current.id,
            tries + 1,
            required=plan.required,
        )
    if blamed:  # it would refuse it, and that would stand where the cause does now
        return Decision(Reason.BLAMED, rollout_id, firmware_id, wave, stage, number=tries)
    if status is Status.PAUSED:
        return Decision(Reason.PAUSED, rollout_id, firmware_id, wave, stage)
    if tries:
        if tries >= plan.retry.limit:
            return Decision(Reason.ATTEMPTS, rollout_id, firmware_id, wave, stage, number=tries)
        pauses = plan.retry.pauses_s
        pause = pauses[min(tries, len(pauses)) - 1]
        # An end in the future means that the clock went back; the count of tries still bounds it.
        if 0 <= now - last < pause:
            return Decision(
                Reason.RETRY, rollout_id, firmware_id, wave, stage, last + pause, number=tries
            )
    not_before = not_after = None
    if not plan.required:
        start, end = next_window(rollout.window_in(place.window), now)
        if now < start:
            return Decision(Reason.WINDOW, rollout_id, firmware_id, wave, stage, start)
        if end < math.inf:
            not_before, not_after = start, end
    if plan.concurrency is not None and busy >= plan.concurrency and current is None:
        return Decision(Reason.BUSY, rollout_id, firmware_id, wave, stage)
    return Decision(
        Reason.OFFER,
        rollout_id,
        firmware_id,
        wave,
        stage,
        None,
        None if current is None else current.id,
        tries + 1,
        not_before,
        not_after,
        plan.required,
    )


def is_blamed_by(attempt: Attempt, beacon: Beacon) -> bool:
    """Tell whether a beacon calls an attempt's release bad, and nobody has cleared that since."""
    return attempt.blamed_at is not None and attempt.blamed_at > beacon.cleared_at


def blocked_by_channel(release_state: str, channel: str) -> Reason | None:
    """Return why a release in this state is not for a channel, None when it is."""
    if release_state == "stable" or (release_state == "testing" and channel == "beta"):
        return None
    return Reason.CHANNEL if release_state == "testing" else Reason.WITHDRAWN


def is_blocked_from(release_state: str, beacon: Beacon) -> bool:
    """Tell whether a release is withheld from a beacon, whatever its rollout says."""
    return beacon.quarantined or blocked_by_channel(release_state, beacon.channel) is not None


def opens_at(rollout: Rollout, state: RolloutState, wave: int) -> float | None:
    """Return when a wave opens or opened, UTC seconds; None while that depends on an earlier one.

    No wave opens before the rollout starts. Before the first wave, "previous" is the start.
    """
    own = state.waves[wave]
    if own.opened_at is not None:
        return own.opened_at
    opening = rollout.plan.waves[wave].opens
    if opening.base is Base.TIME:
        return max(opening.seconds, state.start_at)
    base = state.start_at
    if wave and opening.base is not Base.START:
        before = state.waves[wave - 1]
        stamp = before.opened_at if opening.base is Base.PREVIOUS_START else before.ended_at
        if stamp is None and opening.base is Base.PREVIOUS_START:
            stamp = opens_at(rollout, state, wave - 1)
        if stamp is None:
            return None
        base = stamp
    return max(base + opening.seconds, state.start_at)


def _opens(live: ActiveRollout, wave: int) -> float | None:
    return opens_at(live.rollout, live.state, wave)


def may_continue(
    status: Status, release_state: str, attempt: Attempt, *, channel: str | None = "beta"
) -> bool:
    """Tell whether an open attempt may go on towards ``set_boot``; False is a 409 or 410.

    A halt, an abort, a withdrawn release, a quarantine and a channel that the release is not for
    stop everybody who is not rebooting yet; a pause stops only those who have not begun.

    Args:
        channel: of the beacon; None when it is quarantined, or not registered any more.
    """
    if attempt.result is not None:
        return False
    if attempt.rebooting_at is not None:
        return True
    if (
        status in _STOPPED
        or channel is None
        or blocked_by_channel(release_state, channel) is not None
    ):
        return False
    return status is not Status.PAUSED or attempt.taken_at is not None


def lost_attempts(
    rollout: Rollout, attempts: Iterable[Attempt], now: float, *, listening_since: float = 0.0
) -> list[Attempt]:
    """Return a rollout's open attempts that have been silent for too long: a failure each.

    Args:
        attempts: of any rollout; the others' are left alone.
        listening_since: since when beacons could have reached us without interruption; what we
            were not there to hear is not held against them. 0: nobody knows.
    """
    own = rollout.plan.rollout_id
    return [
        attempt
        for attempt in attempts
        if attempt.rollout_id == own
        and attempt.result is None
        and attempt.taken_at is not None
        and _is_over(
            max(attempt.taken_at, listening_since),
            rollout.gates[attempt.wave].report_timeout_s,
            now,
            listening_since,
        )
    ]


def _is_over(began: float, span_s: float, now: float, listening_since: float) -> bool:
    """Tell whether a span of time has passed.

    What began far in the future began before the clock was set back: it counts from when we have
    listened without interruption, or it would hold its place for as long as the clock went back.
    """
    if began > now + span_s and 0 < listening_since <= now:
        began = listening_since
    return now >= began + span_s


def expired_attempts(
    rollout: Rollout, attempts: Iterable[Attempt], now: float, *, listening_since: float = 0.0
) -> list[Attempt]:
    """Return a rollout's offers that nobody took in time; they count for nothing.

    Args:
        listening_since: as for :func:`lost_attempts`.
    """
    own = rollout.plan.rollout_id
    return [
        attempt
        for attempt in attempts
        if attempt.rollout_id == own
        and attempt.result is None
        and attempt.taken_at is None
        and _is_over(attempt.offered_at, rollout.plan.offer_s, now, listening_since)
    ]


def is_other_board(beacon: Beacon, device_type: str) -> bool:
    """Tell whether a release for a device type is not for this beacon, by any word there is."""
    return beacon.device_type != device_type or beacon.questioned


def revocable_attempts(attempts: Iterable[Attempt]) -> list[Attempt]:
    """Return the open attempts that can be called off: all that are not rebooting yet."""
    return [
        attempt for attempt in attempts if attempt.result is None and attempt.rebooting_at is None
    ]
