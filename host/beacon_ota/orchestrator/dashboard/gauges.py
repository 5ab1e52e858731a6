"""Computes the gauges of a wave: how far its gates are from passing, and from halting."""

from typing import NamedTuple

from beacon_ota.orchestrator.dashboard import messages
from beacon_ota.orchestrator.rollout.gates import failures_to_limit, required_sample, soak_time
from beacon_ota.orchestrator.rollout.plan_types import Gate
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.types import OutcomeCounts, RolloutState, StageCounts


class Gauge(NamedTuple):
    """How far a gate is.

    Attributes:
        fill: present value, 0 to 1.
        mark: value at which the gate passes or trips, 0 to 1; None without one.
        level: good, warn, bad, plain.
    """

    name: str
    value: str
    limit: str
    note: str
    fill: float
    mark: float | None
    level: str


def build_gauges(
    rollout: Rollout, state: RolloutState, tally: OutcomeCounts, wave: int, now: float
) -> list[Gauge]:
    """Return the gauges of a wave's present stage: those that must pass, then those that trip."""
    own = state.waves[wave]
    gate = rollout.gates[wave]
    cell = tally.stages[wave][own.stage]
    need = required_sample(rollout, state, tally, wave, now)
    found = [
        Gauge(
            "Sample",
            messages.format_plural(cell.decided, "outcome"),
            f"needs {need}",
            "complete" if own.sampled_at is not None else "the stage is judged when it is complete",
            min(cell.decided / need, 1.0) if need else 1.0,
            None,
            "good" if cell.decided >= need else "plain",
        )
    ]
    soak = soak_time(rollout, tally, wave, own.stage)
    if soak:
        watched = 0.0 if own.sampled_at is None else max(0.0, now - own.sampled_at)
        if own.sampled_at is None:
            note = "begins when the sample is complete"
        elif watched < soak:
            note = f"{messages.format_duration(soak - watched)} left"
        else:
            note = "over"
        found.append(
            Gauge(
                "Soak",
                messages.format_duration(min(watched, soak)),
                f"of {messages.format_duration(soak)}",
                note,
                min(watched / soak, 1.0),
                None,
                "good" if watched >= soak else "plain",
            )
        )
    share = cell.healthy / cell.attempted if cell.attempted else 0.0
    found.append(
        Gauge(
            "Healthy",
            f"{messages.format_share(cell.healthy, cell.attempted)} of {cell.attempted}",
            f"needs {gate.healthy_share:.0%}",
            f"{cell.healthy} confirmed healthy" if cell.attempted else "nobody has tried yet",
            share,
            gate.healthy_share,
            _healthy_level(cell, gate),
        )
    )
    return found + build_limit_gauges(cell, gate)


def _healthy_level(cell: StageCounts, gate: Gate) -> str:
    if not cell.attempted:
        return "plain"
    if cell.healthy >= gate.healthy_share * cell.attempted:
        return "good"
    hoped = cell.healthy + cell.open >= gate.healthy_share * cell.attempted
    return "plain" if hoped else "warn"


def build_limit_gauges(cell: StageCounts, gate: Gate) -> list[Gauge]:
    """Return the gauges of the failure limits."""
    more = failures_to_limit(cell, gate)
    part = cell.failed / cell.decided if cell.decided else 0.0
    # The limit is at three quarters of the bar, so that values beyond it are visible.
    scale = gate.failure_share / 0.75 or 1.0
    if more == 0:
        note, level = "tripped", "bad"
    elif more is None:
        note, level = "no limit", "plain"
    else:
        note = f"{messages.format_plural(more, 'more failure')} would halt"
        level = "warn" if cell.failed and more <= 2 else "good"
    streak_left = gate.max_consecutive_failures - cell.failure_streak
    return [
        Gauge(
            "Failures",
            f"{messages.format_share(cell.failed, cell.decided)} ({cell.failed} of {cell.decided})",
            f"halts above {gate.failure_share:.1%}".replace(".0%", "%"),
            note,
            min(part / scale, 1.0),
            0.75,
            level,
        ),
        Gauge(
            "In a row",
            f"longest {cell.failure_streak}",
            f"halts at {gate.max_consecutive_failures}",
            "tripped" if streak_left <= 0 else f"{streak_left} short of it",
            min(cell.failure_streak / gate.max_consecutive_failures, 1.0),
            None,
            "bad"
            if streak_left <= 0
            else "warn"
            if cell.failure_streak and streak_left == 1
            else "good",
        ),
    ]
