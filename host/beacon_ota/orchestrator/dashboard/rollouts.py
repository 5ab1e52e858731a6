"""The pages of rollouts: progress of waves and stages, gates, failures, history."""

import json
from collections import Counter
from typing import Any, NamedTuple

from sqlalchemy import Connection

from beacon_ota.orchestrator.api import unconfirmed
from beacon_ota.orchestrator.api.coverage import describe_uncovered
from beacon_ota.orchestrator.core.fleet_records import RolloutEntry
from beacon_ota.orchestrator.core.rollout_records import load_state
from beacon_ota.orchestrator.dashboard import messages
from beacon_ota.orchestrator.dashboard.gauges import (
    Gauge,
    build_gauges,
    build_limit_gauges,
)
from beacon_ota.orchestrator.dashboard.logs import versions_of
from beacon_ota.orchestrator.dashboard.page_base import Page, PageRequest
from beacon_ota.orchestrator.dashboard.releases import estimate_cost
from beacon_ota.orchestrator.db.tables import Fields, attempts, outcomes, rollouts
from beacon_ota.orchestrator.db.tables.outcomes import OutcomeFilter
from beacon_ota.orchestrator.http.problems import not_found
from beacon_ota.orchestrator.rollout.advance import opens_at
from beacon_ota.orchestrator.rollout.gates import judge_stage
from beacon_ota.orchestrator.rollout.plans import parse_plan
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.types import OutcomeCounts, RolloutState, StageCounts, Status

COUNTS = {
    "healthy": "confirmed by the new image, and heard from lately",
    "open": "has begun, or will try again soon; no outcome yet",
    "waiting": "due, and heard from lately",
    "away": "due, not heard from lately",
    "gone": "confirmed, but silent since",
    "accepted": "failed before the rollout was resumed",
    "failed": "failed, rolled back or lost",
}
# The controls of a rollout by its status; each asks for a confirmation.
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


class StageView(NamedTuple):
    """A stage of a wave; ``state`` is done, now, next or tripped."""

    wave: int
    stage: int
    state: str
    share: float
    soak_s: float
    cell: StageCounts | None


class WaveView(NamedTuple):
    """A wave; ``state`` is waiting, open or done."""

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
    """A rollout; ``tally`` is None if the rollout is not in memory any more."""

    id: str
    row: Fields
    rollout: Rollout
    state: RolloutState
    due: float | None
    tally: OutcomeCounts | None
    results: Counter[str]
    revision: int
    stored: bool = True  # False: its stop is in memory only

    @property
    def total(self) -> StageCounts | None:
        """The counts over all beacons of the rollout."""
        return None if self.tally is None else self.tally.total


def list_under_way(ask: PageRequest) -> list[RolloutView]:
    """Return the rollouts that are scheduled, active, paused or halted, newest first."""
    rows = ask.read(rollouts.list_active)
    return [_load_view(ask, row) for row in rows if row["status"] in _UNDER_WAY]


def list_rollouts(ask: PageRequest) -> Page:
    """The newest rollouts, and every older one that is under way, newest first."""
    rows = ask.read(rollouts.list_all, _LISTED)
    shown = {row["id"] for row in rows}
    live = ask.read(rollouts.list_active)
    rows += [row for row in live if row["status"] in _UNDER_WAY and row["id"] not in shown]
    return Page(
        "rollouts.html",
        "Rollouts",
        {"rollouts": [_load_view(ask, row) for row in rows], "counts": COUNTS},
        live="rollout attempt",
    )


def show_rollout(ask: PageRequest) -> Page:
    """One rollout: waves, stages, gates, failures, and its transitions with their reasons."""
    rollout_id = ask.path["rollout_id"]
    row = ask.read(rollouts.get, rollout_id)
    if row is None:
        raise not_found("rollout", rollout_id)
    seen = _load_view(ask, row)
    history = ask.read(rollouts.list_transitions, rollout_id)
    tripped = _find_tripped(seen.state, history)
    release = ask.service.fleet.releases.get(row["firmware_id"])
    failures = ask.read(outcomes.list_latest, OutcomeFilter(rollout_id=rollout_id), _FAILURES)
    waves = range(len(seen.state.waves))
    return Page(
        "rollout.html",
        row["name"],
        {
            "seen": seen,
            "release": None if release is None else release.row,
            "cost": None
            if release is None or seen.state.status not in _UNDER_WAY
            else estimate_cost(ask, release.row),
            "waves": [build_wave_view(seen, index, ask.now, tripped) for index in waves],
            "overall": build_overall_gauges(seen),
            "history": history[::-1],
            "unconfirmed": ask.read(
                unconfirmed.list_for_rollout, row, ask.now, ask.service.fleet.stops_of(rollout_id)
            ),
            "failures": failures,
            "reasons": ask.read(outcomes.count_by_reason, OutcomeFilter(rollout_id=rollout_id)),
            "counts": COUNTS,
            "survives": ask.service.stops.survives_restart,
            "verbs": VERBS[seen.state.status] if seen.tally is not None else (),
            "missed": None
            if seen.tally is None
            else describe_uncovered(ask.service.fleet, seen.rollout),
            "plan": _strip_plan_id(row["plan"]),
            "versions": versions_of(ask),
            "kinds": messages.TRANSITIONS,
        },
        live=f"rollout:{rollout_id} firmware:{row['firmware_id']}",
    )


def _load_view(ask: PageRequest, row: Fields) -> RolloutView:
    entry: RolloutEntry | None = ask.service.fleet.rollouts.get(row["id"])
    results = ask.read(_count_results, row["id"])
    if entry is None:
        rollout = Rollout(parse_plan(json.loads(row["plan"])))
        state = load_state(row["state"])
        return RolloutView(row["id"], row, rollout, state, None, None, results, row["revision"])
    revision = entry.revision  # read before the shown state, so that it is never newer
    counts = ask.engine.count_outcomes(entry, ask.now)
    stored = not ask.service.fleet.stops_of(row["id"])
    return RolloutView(
        row["id"], row, entry.rollout, entry.state, entry.due, counts, results, revision, stored
    )


def _count_results(conn: Connection, rollout_id: str) -> Counter[str]:
    return Counter(attempts.count_results(conn, rollout_id))


def build_wave_view(
    seen: RolloutView, index: int, now: float, tripped: tuple[int | None, int | None]
) -> WaveView:
    """Return the progress of a wave."""
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
        shown = build_gauges(rollout, state, seen.tally, index, now)
        if state.status is Status.ACTIVE:
            found, word, sentence = judge_stage(rollout, state, seen.tally, index, now)
            verdict = (found.value, word, sentence)
    return WaveView(
        index,
        plan.name,
        _describe_selector(plan.selector),
        "done" if own.ended_at is not None else "open" if open_ else "waiting",
        opens_at(rollout, state, index),
        own.opened_at,
        own.ended_at,
        stages,
        shown,
        verdict,
    )


def build_overall_gauges(seen: RolloutView) -> list[Gauge]:
    """Return the gauges of the limits over all waves together."""
    if seen.tally is None:
        return []
    return build_limit_gauges(seen.tally.common, seen.rollout.plan.gate)


def _find_tripped(state: RolloutState, history: list[Fields]) -> tuple[int | None, int | None]:
    if state.status is not Status.HALTED:
        return (None, None)
    last = next((one for one in reversed(history) if one["kind"] == "halted"), None)
    return (None, None) if last is None else (last["wave"], last["stage"])


def _describe_selector(selector: Any) -> str:
    """Return in words which beacons a wave selects."""
    if selector.rest:
        return "everybody else"
    parts = [", ".join(selector.sites)] if selector.sites else []
    if selector.tags:
        parts.append("tagged " + " and ".join(selector.tags))
    if selector.without:
        parts.append("not " + " or ".join(selector.without))
    return "; ".join(parts) or "everybody"


def _strip_plan_id(plan: str) -> Fields:
    return {k: v for k, v in json.loads(plan).items() if k not in ("rollout_id", "release")}
