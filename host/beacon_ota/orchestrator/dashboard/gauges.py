"""Gauges of a wave: how far its gates are from passing, and from halting the rollout."""

from typing import NamedTuple

from beacon_ota.orchestrator.dashboard import messages
from beacon_ota.orchestrator.rollout.gates import margin, sample_of, soak_of
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.types import Cell, Gate, RolloutState, Tally


class Gauge(NamedTuple):
    """How far a gate is.

    Attributes:
        fill, mark: where it stands, and where it passes or trips, in 0..1.
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
    rollout: Rollout, state: RolloutState, tally: Tally, wave: int, now: float
) -> list[Gauge]:
    """Return how far the gates of a wave's present stage are: what passes, then what trips."""
    own = state.waves[wave]
    gate = rollout.gates[wave]
    cell = tally.cells[wave][own.stage]
    need = sample_of(rollout, state, tally, wave, now)
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
    soak = soak_of(rollout, tally, wave, own.stage)
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


def _healthy_level(cell: Cell, gate: Gate) -> str:
    if not cell.attempted:
        return "plain"
    if cell.healthy >= gate.healthy_share * cell.attempted:
        return "good"
    hoped = cell.healthy + cell.open >= gate.healthy_share * cell.attempted
    return "plain" if hoped else "warn"


def build_limit_gauges(cell: Cell, gate: Gate) -> list[Gauge]:
    """Return how far the failure limits are from tripping."""
    more = margin(cell, gate)
    part = cell.failed / cell.decided if cell.decided else 0.0
    # The limit stands at three quarters of the bar, so that what is beyond it can be seen.
    scale = gate.failure_share / 0.75 or 1.0
    if more == 0:
        note, level = "tripped", "bad"
    elif more is None:
        note, level = "no limit", "plain"
    else:
        note = f"{messages.format_plural(more, 'more failure')} would halt"
        level = "warn" if cell.failed and more <= 2 else "good"
    row_left = gate.in_a_row - cell.row
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
            f"longest {cell.row}",
            f"halts at {gate.in_a_row}",
            "tripped" if row_left <= 0 else f"{row_left} short of it",
            min(cell.row / gate.in_a_row, 1.0),
            None,
            "bad" if row_left <= 0 else "warn" if cell.row and row_left == 1 else "good",
        ),
    ]
