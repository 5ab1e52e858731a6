"""Serializes rollouts: state, waves, counts and transitions, and the timeline of a preview."""

import asyncio
import json
from dataclasses import asdict

from sqlalchemy import Connection

from beacon_ota.orchestrator.api import unconfirmed
from beacon_ota.orchestrator.api.coverage import describe_uncovered
from beacon_ota.orchestrator.api.waits import describe_waits
from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.core.fleet_records import RolloutEntry
from beacon_ota.orchestrator.core.rollout_records import load_state
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.tables import Fields, attempts, rollouts
from beacon_ota.orchestrator.http.problems import not_found
from beacon_ota.orchestrator.rollout import advance
from beacon_ota.orchestrator.rollout.gates import judge_stage
from beacon_ota.orchestrator.rollout.plans import dump_plan
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.types import (
    OutcomeCounts,
    RolloutState,
    StageCounts,
    Status,
    Timeline,
    Transition,
)


def serialize_timeline(rollout: Rollout, start_at: float, timeline: Timeline) -> Fields:
    return {
        "plan": _strip_plan_id(dump_plan(rollout.plan)),
        "seed": rollout.plan.rollout_id,
        "start_at": format_iso(start_at),
        "ends_at": format_iso(timeline.ends_at),
        "beacons": [
            {
                "beacon_id": slot.beacon_id,
                "wave": slot.wave,
                "stage": slot.stage,
                "at": format_iso(slot.at),
                "reason": slot.reason.value,
            }
            for slot in timeline.slots
        ],
        "transitions": [_serialize_transition(change) for change in timeline.transitions],
        "left_out": {reason.value: count for reason, count in timeline.left_out.items()},
    }


def serialize_unstored(service: Service, entry: RolloutEntry) -> Fields:
    """Return the fields of a stopped rollout that are known without the database."""
    release = entry.rollout.plan.release
    return {
        "rollout_id": entry.rollout.plan.rollout_id,
        "name": f"{release.device_type} {release.version}",
        "firmware_id": release.firmware_id,
        "version": release.version,
        "device_type": release.device_type,
        "status": entry.state.status.value,
        "reason": entry.state.reason,
        "by": entry.state.by,
        "changed_at": format_iso(entry.state.changed_at or None),
        "stored": False,
        "survives_restart": service.stops.survives_restart,
    }


async def describe_rollout(
    service: Service,
    engine: Engine,
    rollout_id: str,
    row: Fields | None = None,
    *,
    full: bool = False,
) -> Fields:
    """Return a rollout as JSON.

    Args:
        row: its row, for a listing. Without a row, the answer names the mirrors that have not
            confirmed a stop.
        full: adds plan, transitions, who waits for what, and the boards that the rollout does not
            cover.

    Raises:
        Problem: 404 ``rollout_unknown``.
    """
    now = service.clock.now()
    unstored = service.fleet.stops_of(rollout_id)

    def read_rollout(
        conn: Connection,
    ) -> tuple[Fields | None, list[Fields], dict[str, int], list[Fields]]:
        one = row or rollouts.get(conn, rollout_id)
        return (
            one,
            rollouts.list_transitions(conn, rollout_id) if full else [],
            attempts.count_results(conn, rollout_id),
            unconfirmed.list_for_rollout(conn, one, now, unstored)
            if row is None and one is not None
            else [],
        )

    found, history, results, waited_for = await service.db.read(read_rollout)
    if found is None:
        raise not_found("rollout", rollout_id)
    plan = json.loads(found["plan"])
    state = load_state(found["state"])
    entry = service.fleet.rollouts.get(rollout_id)
    counts = None
    if entry is not None:
        state = entry.state
        counts = engine.count_outcomes(entry, now)
    public = {
        "rollout_id": rollout_id,
        "name": found["name"],
        "firmware_id": found["firmware_id"],
        "version": plan["release"]["version"],
        "device_type": plan["release"]["device_type"],
        "status": state.status.value,
        "revision": found["revision"] if entry is None else entry.revision,
        "reason": state.reason,
        "by": state.by,
        "stored": not service.fleet.stops_of(rollout_id),
        "created_at": format_iso(found["created_at"]),
        "created_by": found["created_by"],
        "start_at": format_iso(state.start_at),
        "changed_at": format_iso(state.changed_at or None),
        "due_at": format_iso(entry.due) if entry else None,
        "results": results,
        "total": _serialize_counts(counts.total) if counts else None,
        "waves": [
            _serialize_wave(entry, state, counts, plan, index, now)
            for index in range(len(state.waves))
        ],
    }
    if row is None:
        public["unconfirmed"] = waited_for
    if full:
        if entry is not None:
            public["not_covered"] = describe_uncovered(service.fleet, entry.rollout)
            public["waits"] = await asyncio.to_thread(
                describe_waits, service.fleet, rollout_id, now
            )
        public["plan"] = _strip_plan_id(plan)
        public["transitions"] = [
            {**{k: v for k, v in one.items() if k != "rollout_id"}, "at": format_iso(one["at"])}
            for one in history
        ]
    return public


def _serialize_wave(
    entry: RolloutEntry | None,
    state: RolloutState,
    counts: OutcomeCounts | None,
    plan: Fields,
    index: int,
    now: float,
) -> Fields:
    wave = state.waves[index]
    given = plan["waves"][index]
    ladder = given.get("ladder") or plan["ladder"]
    public = {
        "name": given["name"],
        "stage": wave.stage,
        "stages": len(ladder),
        "share": 0.0 if wave.stage < 0 else ladder[wave.stage]["share"],
        "opened_at": format_iso(wave.opened_at),
        "stage_at": format_iso(wave.stage_at),
        "ended_at": format_iso(wave.ended_at),
    }
    if entry is not None and counts is not None:
        public["counts"] = [_serialize_counts(cell) for cell in counts.stages[index]]
        public["opens_at"] = format_iso(advance.opens_at(entry.rollout, state, index))
        if wave.stage >= 0 and wave.ended_at is None and state.status is Status.ACTIVE:
            verdict, word, sentence = judge_stage(entry.rollout, state, counts, index, now)
            public["waits_for"] = {"verdict": verdict.value, "reason": word, "detail": sentence}
    return public


def _serialize_counts(cell: StageCounts) -> Fields:
    found = asdict(cell)
    found["row"] = found.pop("failure_streak")  # its public name
    return {
        **found,
        "attempted": cell.attempted,
        "decided": cell.decided,
        "members": cell.members,
    }


def _serialize_transition(change: Transition) -> Fields:
    return {**asdict(change), "at": format_iso(change.at), "kind": change.kind.value}


def _strip_plan_id(plan: Fields) -> Fields:
    """Return a plan without the ids of one rollout, so that it can be used again."""
    return {key: value for key, value in plan.items() if key not in ("rollout_id", "release")}
