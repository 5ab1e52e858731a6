"""Judges counts by a gate: whether a stage passes, waits, or halts the rollout, and why."""

import math
from enum import StrEnum

from .fields import format_duration
from .plan_types import Gate
from .rules import Rollout
from .types import OutcomeCounts, RolloutState, StageCounts, WaveState


def tripped_limit(cell: StageCounts, gate: Gate) -> tuple[str, str] | None:
    """Return why a cell's failures stop the rollout, as (word, sentence); None if they do not."""
    if cell.failure_streak >= gate.max_consecutive_failures:
        return "failures_in_a_row", f"{cell.failure_streak} beacons failed one after another"
    if _over(cell.failed, cell.decided, gate):
        return (
            "failure_share",
            f"{cell.failed} of {cell.decided} failed ({cell.failed / cell.decided:.1%}), "
            f"the limit is {gate.failure_share:.1%}",
        )
    return None


def _over(failed: int, decided: int, gate: Gate) -> bool:
    return decided >= gate.failure_sample and failed / decided > gate.failure_share


def failures_to_limit(cell: StageCounts, gate: Gate) -> int | None:
    """Return how many failures more would take the share of failures over its limit.

    Those that come next, with nothing else in between; 0 when it is over, None when no number
    of them would do.
    """
    if gate.failure_share >= 1:
        return None
    exact = (gate.failure_share * cell.decided - cell.failed) / (1 - gate.failure_share)
    more = max(0, math.floor(exact) - 1, gate.failure_sample - cell.decided)
    while not _over(cell.failed + more, cell.decided + more, gate):
        more += 1
    return more


class GateVerdict(StrEnum):
    """What a gate says about a stage."""

    WAIT = "wait"
    SAMPLED = "sampled"
    PASS = "pass"
    HALT = "halt"


def judge_stage(
    rollout: Rollout, state: RolloutState, tally: OutcomeCounts, wave: int, now: float
) -> tuple[GateVerdict, str, str]:
    """Judge the present stage of an open wave, and with the last stage the wave.

    Returns:
        The verdict; a stable word; a sentence with the numbers.
    """
    found = _judge_present_stage(rollout, state, tally, wave, now)
    if found[0] is GateVerdict.PASS and state.waves[wave].stage == len(rollout.ladders[wave]) - 1:
        return _judge_end(rollout, state, tally, wave, now) or found
    return found


def _judge_present_stage(
    rollout: Rollout, state: RolloutState, tally: OutcomeCounts, wave: int, now: float
) -> tuple[GateVerdict, str, str]:
    own = state.waves[wave]
    stage = own.stage
    gate = rollout.gates[wave]
    cell = tally.stages[wave][stage]
    stage_at = now if own.stage_at is None else own.stage_at
    patient = _patient(own, gate, now)
    if not any(other.reach for other in tally.stages[wave]):
        verdict = GateVerdict.WAIT if patient else GateVerdict.PASS
        if any(other.members for other in tally.stages[wave]):
            return verdict, "nobody_there", "nobody in this wave can be reached"
        return verdict, "empty", "nobody in this wave is due for the release"
    soak = soak_time(rollout, tally, wave, stage)
    tried = any(other.tried for other in tally.stages[wave])
    if cell.members == 0:
        # Before anybody has tried the release, a stage that is empty may yet fill: a fleet that is
        # being set up must not find its ladder climbed.
        if tried or now - stage_at >= soak:
            return GateVerdict.PASS, "empty", "nobody in this stage"
        return GateVerdict.WAIT, "empty", "nobody in this stage so far"
    if cell.reach == 0:
        if now - stage_at >= soak:
            return GateVerdict.PASS, "nobody_there", f"{cell.members} in this stage, none reachable"
        return GateVerdict.WAIT, "soak", "nobody in this stage can be reached so far"
    if not patient and cell.attempted == 0 and tried:
        return GateVerdict.PASS, "nobody_took", f"{cell.waiting} in this stage never took the offer"
    need = required_sample(rollout, state, tally, wave, now)
    if cell.decided < need:
        return GateVerdict.WAIT, "sample", f"{cell.decided} of the {need} outcomes needed"
    sampled_at = own.sampled_at
    if sampled_at is None:
        return GateVerdict.SAMPLED, "sample", f"{cell.decided} outcomes, {need} needed"
    if now - sampled_at < soak:
        return GateVerdict.WAIT, "soak", f"watched for {format_duration(soak)}"
    says = f"{cell.healthy} of {cell.attempted} confirmed healthy"
    if cell.healthy / cell.attempted >= gate.healthy_share:
        return GateVerdict.PASS, "healthy", says
    if cell.open:
        return GateVerdict.WAIT, "open", f"{cell.open} under way"
    if cell.failed and now - sampled_at < gate.report_timeout_s:
        return GateVerdict.WAIT, "retries", f"{cell.failed} failed and may try again"
    if (cell.healthy + cell.gone) / cell.attempted >= gate.healthy_share:
        if patient:
            return GateVerdict.WAIT, "gone", f"{cell.gone} confirmed and not heard from since"
        return GateVerdict.HALT, "gone", f"{cell.gone} confirmed and not heard from since"
    return GateVerdict.HALT, "healthy_share", f"{says}, {gate.healthy_share:.0%} needed"


def required_sample(
    rollout: Rollout, state: RolloutState, tally: OutcomeCounts, wave: int, now: float
) -> int:
    """Return how many outcomes the present stage of an open wave needs before it is judged.

    Those who keep asking and never begin are waited for, too, but not for ever.
    """
    own = state.waves[wave]
    gate = rollout.gates[wave]
    cell = tally.stages[wave][own.stage]
    reach = cell.reach if _patient(own, gate, now) else cell.attempted
    return min(gate.min_sample, reach or cell.reach)


def _patient(own: WaveState, gate: Gate, now: float) -> bool:
    return own.stage_at is None or now - own.stage_at < gate.stage_timeout_s


def _judge_end(
    rollout: Rollout, state: RolloutState, tally: OutcomeCounts, wave: int, now: float
) -> tuple[GateVerdict, str, str] | None:
    """Return what keeps a wave from ending after its last stage, None when nothing does.

    It ends when everybody who is there has been served, stragglers of earlier stages included,
    and enough of all who tried are healthy.
    """
    gate = rollout.gates[wave]
    stage_at = state.waves[wave].stage_at
    age = 0.0 if stage_at is None else now - stage_at
    under_way = sum(cell.open for cell in tally.stages[wave])
    to_come = sum(cell.waiting for cell in tally.stages[wave])
    if age < gate.stage_timeout_s and under_way + to_come:
        return GateVerdict.WAIT, "serving", f"{under_way} under way, {to_come} to come"
    attempted = sum(cell.attempted for cell in tally.stages[wave])
    healthy = sum(cell.healthy + cell.gone for cell in tally.stages[wave])
    if attempted == 0 or healthy / attempted >= gate.healthy_share:
        return None
    if under_way or age < gate.report_timeout_s:
        return GateVerdict.WAIT, "retries", f"{attempted - healthy} failed and may try again"
    return (
        GateVerdict.HALT,
        "healthy_share",
        f"{healthy} of {attempted} confirmed healthy, {gate.healthy_share:.0%} needed",
    )


def soak_time(rollout: Rollout, tally: OutcomeCounts, wave: int, stage: int) -> float:
    """Return how long a stage is watched, seconds.

    A stage in which nobody was tried hands its watch on: the first beacons of a small building
    are its canaries, in whichever stage they stand.
    """
    if rollout.plan.required:
        return 0.0
    ladder = rollout.ladders[wave]
    soak = ladder[stage].soak_s
    for before in range(stage - 1, -1, -1):
        if tally.stages[wave][before].tried:
            break
        soak = max(soak, ladder[before].soak_s)
    return soak
