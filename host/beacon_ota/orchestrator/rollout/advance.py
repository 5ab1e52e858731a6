"""How a rollout moves: what the gates do by themselves, and what an administrator does by hand.

A rollout's state is the fold of its transitions: record a transition, then
:func:`apply_transition`, in one database transaction. :func:`advance` is a pure function: the same
values give the same answer.
"""

import math
from dataclasses import replace

from beacon_ota.errors import UsageError

from .counting import SKEW_S
from .decide import opens_at
from .gates import GateVerdict, judge_stage, soak_time, tripped_limit
from .rules import Rollout
from .types import Kind, OutcomeCounts, RolloutState, Status, Transition, WaveState

ENDED = frozenset((Status.ABORTED,))
WATCHED = frozenset((Status.ACTIVE, Status.PAUSED, Status.COMPLETED))
_STATUS = {
    Kind.STARTED: Status.ACTIVE,
    Kind.COMPLETED: Status.COMPLETED,
    Kind.HALTED: Status.HALTED,
    Kind.PAUSED: Status.PAUSED,
    Kind.ABORTED: Status.ABORTED,
    Kind.RETIRED: Status.COMPLETED,
}


def initial_state(rollout: Rollout, start_at: float) -> RolloutState:
    """Return the state of a rollout that is to start at ``start_at``, UTC seconds."""
    return RolloutState(start_at, tuple(WaveState() for _ in rollout.plan.waves))


def apply_transition(state: RolloutState, change: Transition) -> RolloutState:
    """Return the state after a transition."""
    kind = change.kind
    if change.wave is not None and kind not in _STATUS:
        return _apply_wave(state, change, change.wave)
    if kind is Kind.CLOCK_BACK:
        return _clamp(state, change.at)
    if kind is Kind.CLOCK_AHEAD:
        return _restart(state, change.at)
    status = _STATUS.get(kind)
    since = state.since
    if kind is Kind.RESUMED:
        if state.status is Status.HALTED:
            since = change.at
        if _all_ended(state):
            status = Status.COMPLETED
        elif change.at < state.start_at:
            status = Status.SCHEDULED
        else:
            status = Status.ACTIVE
    if status is None:
        raise UsageError("transition_kind", "not a transition of a rollout", found=kind)
    return replace(
        state,
        status=status,
        since=since,
        reason=change.reason,
        by=change.by,
        changed_at=change.at,
    )


def _apply_wave(state: RolloutState, change: Transition, index: int) -> RolloutState:
    wave = state.waves[index]
    at = change.at
    if change.kind is Kind.WAVE_OPENED:
        wave = replace(wave, opened_at=at)
    elif change.kind is Kind.STAGE_OPENED and change.stage is not None:
        wave = replace(wave, stage=change.stage, stage_at=at, sampled_at=None)
    elif change.kind is Kind.SAMPLED:
        wave = replace(wave, sampled_at=at)
    elif change.kind is Kind.WAVE_COMPLETED:
        wave = replace(wave, ended_at=at)
    else:
        raise UsageError("transition_kind", "not a transition of a wave", found=change.kind)
    return replace(state, waves=state.waves[:index] + (wave,) + state.waves[index + 1 :])


def _clamp(state: RolloutState, now: float) -> RolloutState:
    def back(stamp: float | None) -> float | None:
        return None if stamp is None else min(stamp, now)

    waves = tuple(
        replace(
            wave,
            opened_at=back(wave.opened_at),
            stage_at=back(wave.stage_at),
            sampled_at=back(wave.sampled_at),
            ended_at=back(wave.ended_at),
        )
        for wave in state.waves
    )
    start_at = state.start_at if state.status is Status.SCHEDULED else min(state.start_at, now)
    return replace(state, start_at=start_at, since=min(state.since, now), waves=waves)


def _restart(state: RolloutState, now: float) -> RolloutState:
    waves = tuple(
        replace(wave, stage_at=now, sampled_at=None)
        if wave.stage_at is not None and wave.ended_at is None
        else wave
        for wave in state.waves
    )
    return replace(state, waves=waves)


def _all_ended(state: RolloutState) -> bool:
    return all(wave.ended_at is not None for wave in state.waves)


def _ahead(state: RolloutState, now: float) -> bool:
    """True when a stamp lies in the future: the clock has been set back since."""
    late = now + SKEW_S
    return any(
        stamp is not None and stamp > late
        for wave in state.waves
        for stamp in (wave.opened_at, wave.stage_at, wave.sampled_at, wave.ended_at)
    ) or (state.since > late)


class _Moves:
    """Transitions in the making, each applied as soon as it is decided."""

    def __init__(self, state: RolloutState, now: float, by: str = "engine"):
        self.state = state
        self.now = now
        self.by = by
        self.made: list[Transition] = []

    def add(
        self,
        kind: Kind,
        wave: int | None = None,
        stage: int | None = None,
        reason: str = "",
        detail: str = "",
    ) -> None:
        change = Transition(self.now, kind, wave, stage, reason, detail, self.by)
        self.made.append(change)
        self.state = apply_transition(self.state, change)

    def next_stage(self, rollout: Rollout, wave: int, reason: str, detail: str) -> bool:
        """Open the wave's next stage, or end the wave after its last; False when it ended."""
        stage = self.state.waves[wave].stage + 1
        if stage == len(rollout.ladders[wave]):
            self.add(Kind.WAVE_COMPLETED, wave, stage - 1, reason, detail)
            return False
        self.add(Kind.STAGE_OPENED, wave, stage, reason, detail)
        return True

    def end(self) -> None:
        """Complete the rollout when all its waves have ended."""
        if self.state.status is Status.ACTIVE and _all_ended(self.state):
            self.add(Kind.COMPLETED, reason="all_waves", detail="every wave has ended")


def advance(
    rollout: Rollout, state: RolloutState, tally: OutcomeCounts, now: float
) -> tuple[Transition, ...]:
    """Return what the rollout does by itself at ``now``: in order, often nothing.

    The failure limits are looked at first, per wave and stage and over the whole rollout, and
    also while it is paused or completed; one that trips halts the whole rollout. Then waves open
    that are due, and stages whose gate is passed.
    """
    moves = _Moves(state, now)
    if state.status in ENDED:
        return ()
    if _ahead(state, now):
        moves.add(Kind.CLOCK_BACK, reason="clock_back", detail="the clock went back")
    if state.status is Status.HALTED:
        return tuple(moves.made)
    if state.status in WATCHED and _halt_if_tripped(rollout, tally, moves):
        return tuple(moves.made)
    if state.status is Status.SCHEDULED and now >= state.start_at:
        moves.add(Kind.STARTED, reason="start", detail="the time set for the start has come")
    if moves.state.status is Status.ACTIVE:
        for wave in range(len(rollout.plan.waves)):
            _climb(rollout, tally, moves, wave)
            if moves.state.status is not Status.ACTIVE:
                break
        moves.end()
    return tuple(moves.made)


def _halt_if_tripped(rollout: Rollout, tally: OutcomeCounts, moves: _Moves) -> bool:
    for wave, cells in enumerate(tally.stages):
        for stage, cell in enumerate(cells):
            if (why := tripped_limit(cell, rollout.gates[wave])) is not None:
                moves.add(Kind.HALTED, wave, stage, *why)
                return True
    # Waves and stages of a handful each must not hide what they have in common.
    if (why := tripped_limit(tally.common, rollout.plan.gate)) is not None:
        moves.add(Kind.HALTED, None, None, *why)
        return True
    return False


def _climb(rollout: Rollout, tally: OutcomeCounts, moves: _Moves, wave: int) -> None:
    """Open a wave that is due, and take it up the ladder as far as its gates let it."""
    now = moves.now
    if moves.state.waves[wave].ended_at is not None:
        return
    if moves.state.waves[wave].stage < 0:
        due_at = opens_at(rollout, moves.state, wave)
        if due_at is None or now < due_at:
            return
        _open(rollout, moves, wave, "due", "its time has come")
    while True:
        verdict, reason, detail = judge_stage(rollout, moves.state, tally, wave, now)
        if verdict is GateVerdict.WAIT:
            return
        stage = moves.state.waves[wave].stage
        if verdict is GateVerdict.HALT:
            moves.add(Kind.HALTED, wave, stage, reason, detail)
            return
        if verdict is GateVerdict.SAMPLED:
            moves.add(Kind.SAMPLED, wave, stage, reason, detail)
        elif not moves.next_stage(rollout, wave, reason, detail):
            return


def _open(rollout: Rollout, moves: _Moves, wave: int, reason: str, detail: str) -> None:
    moves.add(Kind.WAVE_OPENED, wave, None, reason, detail)
    moves.next_stage(rollout, wave, reason, detail)


def restart_soaks(
    state: RolloutState, now: float, landed: float = math.inf
) -> tuple[Transition, ...]:
    """Return what a clock that was set ahead does: what was soaking soaks anew.

    The jump was no time in which anybody was watched.

    Args:
        landed: the time to which the clock was set. What has begun since is left alone: the jump
            has been dealt with, or was before.
    """
    before = any(
        wave.stage_at is not None and wave.ended_at is None and wave.stage_at < landed
        for wave in state.waves
    )
    if state.status in ENDED or not before:
        return ()
    detail = "the clock was set ahead"
    return (Transition(now, Kind.CLOCK_AHEAD, None, None, "clock_ahead", detail, "engine"),)


def next_due_at(
    rollout: Rollout, state: RolloutState, tally: OutcomeCounts, now: float
) -> float | None:
    """Return when time alone will next let :func:`advance` do something, UTC seconds.

    None when it takes an outcome or an administrator. Beacons that come or go may be earlier.
    """
    if state.status is Status.SCHEDULED:
        return max(state.start_at, now)
    if state.status is not Status.ACTIVE:
        return None
    moments = []
    for index, wave in enumerate(state.waves):
        if wave.ended_at is not None:
            continue
        if wave.stage < 0 or wave.stage_at is None:
            moments.append(opens_at(rollout, state, index))
            continue
        gate = rollout.gates[index]
        soak = soak_time(rollout, tally, index, wave.stage)
        moments += [wave.stage_at + gate.stage_timeout_s, wave.stage_at + gate.report_timeout_s]
        if wave.sampled_at is None:
            moments.append(wave.stage_at + soak)
        else:
            moments += [wave.sampled_at + soak, wave.sampled_at + gate.report_timeout_s]
    return min((at for at in moments if at is not None and at > now), default=None)


# ---- by hand ----


def pause_rollout(
    state: RolloutState, now: float, by: str, reason: str = ""
) -> tuple[Transition, ...]:
    """Offer the release to nobody new; what is under way goes on.

    Raises:
        UsageError: ``rollout_not_active``.
    """
    _need(state, Status.SCHEDULED, Status.ACTIVE)
    return (Transition(now, Kind.PAUSED, reason="by_hand", detail=reason, by=by),)


def halt_rollout(
    state: RolloutState, now: float, by: str, reason: str = ""
) -> tuple[Transition, ...]:
    """Withhold the release from everybody who is not rebooting yet.

    Raises:
        UsageError: ``rollout_not_active``.
    """
    _need(state, Status.SCHEDULED, Status.ACTIVE, Status.PAUSED, Status.COMPLETED)
    return (Transition(now, Kind.HALTED, reason="by_hand", detail=reason, by=by),)


def resume_rollout(
    state: RolloutState, now: float, by: str, reason: str = ""
) -> tuple[Transition, ...]:
    """Go on after a pause or a halt; after a halt, the failures so far are thereby accepted.

    Raises:
        UsageError: ``rollout_not_stopped``.
    """
    if state.status not in (Status.PAUSED, Status.HALTED):
        raise UsageError(
            "rollout_not_stopped",
            f"the rollout is {state.status}, there is nothing to resume",
            found=state.status.value,
            expected="paused or halted",
        )
    return (Transition(now, Kind.RESUMED, reason="by_hand", detail=reason, by=by),)


def abort_rollout(
    state: RolloutState, now: float, by: str, reason: str = ""
) -> tuple[Transition, ...]:
    """End a rollout for good.

    Raises:
        UsageError: ``rollout_not_active``.
    """
    _need(state, *(status for status in Status if status not in ENDED))
    return (Transition(now, Kind.ABORTED, reason="by_hand", detail=reason, by=by),)


def open_next_stage(
    rollout: Rollout,
    state: RolloutState,
    tally: OutcomeCounts,
    now: float,
    by: str,
    *,
    wave: int | None = None,
    reason: str = "",
) -> tuple[Transition, ...]:
    """Open the next stage now, without waiting for sample or soak; the failure limits stay.

    Args:
        wave: which one; by default the first that has not ended. A wave that is not open yet
            opens; one in its last stage ends.

    Raises:
        UsageError: ``rollout_not_active``, ``wave_unknown``, ``wave_ended``, ``gate_tripped``.
    """
    _need(state, Status.ACTIVE)
    if wave is None:
        wave = next(index for index, own in enumerate(state.waves) if own.ended_at is None)
    if not 0 <= wave < len(state.waves):
        raise UsageError(
            "wave_unknown", "no such wave", found=wave, expected=f"0 to {len(state.waves) - 1}"
        )
    if state.waves[wave].ended_at is not None:
        raise UsageError("wave_ended", "the wave has reached everybody already", found=wave)
    moves = _Moves(state, now, by)
    if _halt_if_tripped(rollout, tally, moves):
        raise UsageError("gate_tripped", f"not advanced: {moves.made[0].detail}")
    if state.waves[wave].stage < 0:
        _open(rollout, moves, wave, "by_hand", reason)
    else:
        moves.next_stage(rollout, wave, "by_hand", reason)
    moves.end()
    return tuple(moves.made)


def _need(state: RolloutState, *allowed: Status) -> None:
    if state.status not in allowed:
        raise UsageError(
            "rollout_not_active",
            f"the rollout is {state.status}",
            found=state.status.value,
            expected=" or ".join(status.value for status in allowed),
        )
