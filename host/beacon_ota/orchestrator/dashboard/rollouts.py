"""Rollouts: how far each wave is, how far its gates are from tripping, and what happened."""

import json
from collections import Counter
from typing import Any, NamedTuple

from sqlalchemy import Connection

from beacon_ota.orchestrator.api import unconfirmed
from beacon_ota.orchestrator.api.coverage import not_covered
from beacon_ota.orchestrator.core.engine import load_state
from beacon_ota.orchestrator.core.fleet_state import RolloutEntry
from beacon_ota.orchestrator.dashboard import words
from beacon_ota.orchestrator.dashboard.frame import Ask, Page
from beacon_ota.orchestrator.dashboard.logs import versions_of
from beacon_ota.orchestrator.db.tables import Fields, attempts, outcomes, rollouts
from beacon_ota.orchestrator.db.tables.outcomes import OutcomeFilter
from beacon_ota.orchestrator.http.problems import missing
from beacon_ota.orchestrator.rollout.advance import opens_at
from beacon_ota.orchestrator.rollout.gates import (
    failures_to_limit,
    judge_stage,
    required_sample,
    soak_time,
)
from beacon_ota.orchestrator.rollout.plans import parse_plan
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.types import (
    Gate,
    OutcomeCounts,
    RolloutState,
    StageCounts,
    Status,
)

COUNTS = {
    "healthy": "confirmed by the new image, and heard from lately",
    "open": "has begun, or will try again soon; no outcome yet",
    "waiting": "due, and heard from lately",
    "away": "due, not heard from lately",
    "gone": "confirmed, but silent since",
    "accepted": "failed before the rollout was resumed",
    "failed": "failed, rolled back or lost",
}
# Which levers a rollout has in each status; what each does is asked before it is done.
VERBS = {
    Status.SCHEDULED: ("pause", "halt", "abort"),
    Status.ACTIVE: ("advance", "pause", "halt", "abort"),
    Status.PAUSED: ("resume", "halt", "abort"),
    Status.HALTED: ("resume", "abort"),
    Status.COMPLETED: ("halt", "abort"),
    Status.ABORTED: (),
}
_LISTED = 200
_UNDER_WAY = (Status.SCHEDULED, Status.ACTIVE, Status.PAUSED, Status.HALTED)
_FAILURES = 12


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


class StageView(NamedTuple):
    """A stage of a wave as the page shows it; ``state`` is done, now, next or tripped."""

    wave: int
    stage: int
    state: str
    share: float
    soak_s: float
    cell: StageCounts | None


class WaveView(NamedTuple):
    """A wave as the page shows it."""

    index: int
    name: str
    who: str
    state: str  # waiting, open, done
    opens_at: float | None
    opened_at: float | None
    ended_at: float | None
    stages: list[StageView]
    gauges: list[Gauge]
    verdict: tuple[str, str, str] | None


class RolloutView(NamedTuple):
    """A rollout as the pages show it; ``tally`` is None when it is not in memory any more."""

    id: str
    row: Fields
    rollout: Rollout
    state: RolloutState
    due: float | None
    tally: OutcomeCounts | None
    results: Counter[str]
    revision: int
    stored: bool = True  # False: it is stopped in memory, and the database has not taken it

    @property
    def total(self) -> StageCounts | None:
        """Everybody the rollout is for."""
        return None if self.tally is None else self.tally.total


def under_way(ask: Ask) -> list[RolloutView]:
    """Return the rollouts that somebody should have an eye on, newest first."""
    rows = ask.read(rollouts.list_active)
    return [_view(ask, row) for row in rows if row["status"] in _UNDER_WAY]


def listing(ask: Ask) -> Page:
    """The newest rollouts, and every older one that is under way, newest first."""
    rows = ask.read(rollouts.list_all, _LISTED)
    shown = {row["id"] for row in rows}
    live = ask.read(rollouts.list_active)
    rows += [row for row in live if row["status"] in _UNDER_WAY and row["id"] not in shown]
    return Page(
        "rollouts.html",
        "Rollouts",
        {"rollouts": [_view(ask, row) for row in rows], "counts": COUNTS},
        live="rollout attempt",
    )


def page(ask: Ask) -> Page:
    """One rollout: waves and stages, gates, who failed, and what happened when and why."""
    rollout_id = ask.path["rollout_id"]
    row = ask.read(rollouts.get, rollout_id)
    if row is None:
        raise missing("rollout", rollout_id)
    seen = _view(ask, row)
    history = ask.read(rollouts.list_transitions, rollout_id)
    tripped = _tripped(seen.state, history)
    release = ask.service.fleet.releases.get(row["firmware_id"])
    failures = ask.read(outcomes.list_latest, OutcomeFilter(rollout_id=rollout_id), _FAILURES)
    waves = range(len(seen.state.waves))
    return Page(
        "rollout.html",
        row["name"],
        {
            "seen": seen,
            "release": None if release is None else release.row,
            "waves": [wave_view(seen, index, ask.now, tripped) for index in waves],
            "overall": overall(seen),
            "history": history[::-1],
            "unconfirmed": ask.read(
                unconfirmed.of_rollout, row, ask.now, ask.service.fleet.stops_of(rollout_id)
            ),
            "failures": failures,
            "reasons": ask.read(outcomes.count_by_reason, OutcomeFilter(rollout_id=rollout_id)),
            "counts": COUNTS,
            "survives": ask.service.stops.survives_restart,
            "verbs": VERBS[seen.state.status] if seen.tally is not None else (),
            "missed": None if seen.tally is None else not_covered(ask.service.fleet, seen.rollout),
            "plan": _bare(row["plan"]),
            "versions": versions_of(ask),
            "kinds": words.STEPS,
        },
        live=f"rollout:{rollout_id} firmware:{row['firmware_id']}",
    )


def _view(ask: Ask, row: Fields) -> RolloutView:
    entry: RolloutEntry | None = ask.service.fleet.rollouts.get(row["id"])
    results = ask.read(_results, row["id"])
    if entry is None:
        rollout = Rollout(parse_plan(json.loads(row["plan"])))
        state = load_state(row["state"])
        return RolloutView(row["id"], row, rollout, state, None, None, results, row["revision"])
    revision = entry.revision  # before what is shown of it, never after
    counts = ask.engine.count_outcomes(entry, ask.now)
    stored = not ask.service.fleet.stops_of(row["id"])
    return RolloutView(
        row["id"], row, entry.rollout, entry.state, entry.due, counts, results, revision, stored
    )


def _results(conn: Connection, rollout_id: str) -> Counter[str]:
    return Counter(attempts.count_results(conn, rollout_id))


def wave_view(
    seen: RolloutView, index: int, now: float, tripped: tuple[int | None, int | None]
) -> WaveView:
    """Return how far a wave is."""
    rollout, state = seen.rollout, seen.state
    own = state.waves[index]
    plan = rollout.plan.waves[index]
    stages = []
    for number, stage in enumerate(rollout.ladders[index]):
        if tripped == (index, number):
            how = "tripped"
        elif own.ended_at is not None or number < own.stage:
            how = "done"
        else:
            how = "now" if number == own.stage else "next"
        cell = None if seen.tally is None else seen.tally.stages[index][number]
        stages.append(StageView(index, number, how, stage.share, stage.soak_s, cell))
    open_ = own.stage >= 0 and own.ended_at is None
    shown: list[Gauge] = []
    verdict = None
    if open_ and seen.tally is not None and state.status is not Status.ABORTED:
        shown = gauges(rollout, state, seen.tally, index, now)
        if state.status is Status.ACTIVE:
            found, word, sentence = judge_stage(rollout, state, seen.tally, index, now)
            verdict = (found.value, word, sentence)
    return WaveView(
        index,
        plan.name,
        _who(plan.selector),
        "done" if own.ended_at is not None else "open" if open_ else "waiting",
        opens_at(rollout, state, index),
        own.opened_at,
        own.ended_at,
        stages,
        shown,
        verdict,
    )


def gauges(
    rollout: Rollout, state: RolloutState, tally: OutcomeCounts, wave: int, now: float
) -> list[Gauge]:
    """Return how far the gates of a wave's present stage are: what passes, then what trips."""
    own = state.waves[wave]
    gate = rollout.gates[wave]
    cell = tally.stages[wave][own.stage]
    need = required_sample(rollout, state, tally, wave, now)
    found = [
        Gauge(
            "Sample",
            words.plural(cell.decided, "outcome"),
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
            note = f"{words.span(soak - watched)} left"
        else:
            note = "over"
        found.append(
            Gauge(
                "Soak",
                words.span(min(watched, soak)),
                f"of {words.span(soak)}",
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
            f"{words.share(cell.healthy, cell.attempted)} of {cell.attempted}",
            f"needs {gate.healthy_share:.0%}",
            f"{cell.healthy} confirmed healthy" if cell.attempted else "nobody has tried yet",
            share,
            gate.healthy_share,
            _healthy_level(cell, gate),
        )
    )
    return found + limits(cell, gate)


def _healthy_level(cell: StageCounts, gate: Gate) -> str:
    if not cell.attempted:
        return "plain"
    if cell.healthy >= gate.healthy_share * cell.attempted:
        return "good"
    hoped = cell.healthy + cell.open >= gate.healthy_share * cell.attempted
    return "plain" if hoped else "warn"


def limits(cell: StageCounts, gate: Gate) -> list[Gauge]:
    """Return how far the failure limits are from tripping."""
    more = failures_to_limit(cell, gate)
    part = cell.failed / cell.decided if cell.decided else 0.0
    # The limit stands at three quarters of the bar, so that what is beyond it can be seen.
    scale = gate.failure_share / 0.75 or 1.0
    if more == 0:
        note, level = "tripped", "bad"
    elif more is None:
        note, level = "no limit", "plain"
    else:
        note = f"{words.plural(more, 'more failure')} would halt"
        level = "warn" if cell.failed and more <= 2 else "good"
    row_left = gate.max_consecutive_failures - cell.failure_streak
    return [
        Gauge(
            "Failures",
            f"{words.share(cell.failed, cell.decided)} ({cell.failed} of {cell.decided})",
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
            "tripped" if row_left <= 0 else f"{row_left} short of it",
            min(cell.failure_streak / gate.max_consecutive_failures, 1.0),
            None,
            "bad" if row_left <= 0 else "warn" if cell.failure_streak and row_left == 1 else "good",
        ),
    ]


def overall(seen: RolloutView) -> list[Gauge]:
    """Return the limits that hold over all waves together."""
    if seen.tally is None:
        return []
    return limits(seen.tally.common, seen.rollout.plan.gate)


def _tripped(state: RolloutState, history: list[Fields]) -> tuple[int | None, int | None]:
    if state.status is not Status.HALTED:
        return (None, None)
    last = next((one for one in reversed(history) if one["kind"] == "halted"), None)
    return (None, None) if last is None else (last["wave"], last["stage"])


def _who(selector: Any) -> str:
    """Return in words whom a wave selects."""
    if selector.rest:
        return "everybody else"
    parts = [", ".join(selector.sites)] if selector.sites else []
    if selector.tags:
        parts.append("tagged " + " and ".join(selector.tags))
    if selector.without:
        parts.append("not " + " or ".join(selector.without))
    return "; ".join(parts) or "everybody"


def _bare(plan: str) -> Fields:
    return {k: v for k, v in json.loads(plan).items() if k not in ("rollout_id", "release")}
