"""``/api/rollouts``: plan, start, watch, pause, resume, halt, abort, advance."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection
from starlette.responses import Response

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.api import unconfirmed
from beacon_ota.orchestrator.api.access import On, Operator, Stopper, Viewer
from beacon_ota.orchestrator.api.answers import answer, page
from beacon_ota.orchestrator.api.coverage import not_covered
from beacon_ota.orchestrator.api.previews import ClientLeft, Previews
from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.core.engine import (
    DecideTransitions,
    Engine,
    dump_state,
    load_state,
    release_withdrawn,
    rollout_moved,
)
from beacon_ota.orchestrator.core.fleet_state import RolloutEntry
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db import tables
from beacon_ota.orchestrator.db.database import StorageError
from beacon_ota.orchestrator.db.tables import Fields, attempts, rollouts
from beacon_ota.orchestrator.db.tables.tokens import Actor
from beacon_ota.orchestrator.http.problems import missing
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.rollout import advance as moves
from beacon_ota.orchestrator.rollout.gates import judge_stage
from beacon_ota.orchestrator.rollout.plans import PRESETS, dump_plan, parse_plan
from beacon_ota.orchestrator.rollout.rollout_ids import choose_rollout_id
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.simulate import preview_rollout
from beacon_ota.orchestrator.rollout.types import (
    Beacon,
    OutcomeCounts,
    Plan,
    Release,
    RolloutState,
    StageCounts,
    Status,
    Timeline,
    Transition,
)

router = APIRouter(prefix="/api/rollouts", tags=["rollouts"])

_NAME_S = 1.0  # of the wall clock, for the mirrors' names: a stop is answered without them
_HORIZON_MAX_S = 400 * 86400.0


def engine_of(request: Request) -> Engine:
    """Return the engine of the orchestrator that a request came to."""
    return request.app.state.engine


Moving = Annotated[Engine, Depends(engine_of)]


class Order(BaseModel):
    """A rollout to plan or to start."""

    model_config = ConfigDict(extra="forbid")

    firmware_id: Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")]
    name: Annotated[str, Field(max_length=128)] = ""
    plan: Annotated[
        dict[str, Any],
        Field(description=f"a preset ({', '.join(PRESETS)}) with changes, or all of it"),
    ] = {"preset": "canary"}
    start_at: Annotated[
        float | None, Field(ge=0, le=1e11, description="UTC seconds; absent: now")
    ] = None
    seed: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9a-f]{24}$",
            description="of a plan that was shown: the rollout picks the same beacons",
        ),
    ] = None


class Why(BaseModel):
    """The reason for what is done, kept in the audit log."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(max_length=200)] = ""
    wave: Annotated[int | None, Field(ge=0, description="advance: which")] = None
    revision: Annotated[
        int | None,
        Field(
            ge=0,
            description="resume, advance: of the rollout as it was shown; refused when it has moved"
            " since. So what two ask for, or one asks for twice, is done once",
        ),
    ] = None


@router.post("", status_code=201)
async def create(order: Order, service: On, engine: Moving, actor: Operator) -> Response:
    """Start a rollout, now or at the time given."""
    rollout, start_at = compile_order(service, order)
    plan = rollout.plan
    state = moves.initial_state(rollout, start_at)
    row: Fields = {
        "id": plan.rollout_id,
        "firmware_id": order.firmware_id,
        "name": order.name or f"{plan.release.device_type} {plan.release.version}",
        "status": state.status.value,
        "plan": json.dumps(dump_plan(plan)),
        "state": dump_state(state),
        "revision": 0,
        "created_at": service.clock.now(),
        "created_by": actor.name,
    }
    entry = await engine.create_rollout(row, rollout, state, actor.name)
    async with engine.rollout_lock:
        await engine.evaluate_rollout(entry)  # what starts now has started when this is answered
    found = await shown(service, engine, plan.rollout_id)
    return answer({**found, "not_covered": not_covered(service.fleet, rollout)}, 201)


@router.post("/plan")
async def plan(
    order: Order,
    request: Request,
    service: On,
    actor: Viewer,
    horizon_s: Annotated[float, Query(gt=0, le=_HORIZON_MAX_S)] = 90 * 86400.0,
) -> Response:
    """Say who would get the release when, if all went well; nothing is started."""
    plan, start_at = read_order(service, order)
    view = service.fleet
    state = view.releases[order.firmware_id].state
    beacons = [node.beacon for node in view.beacons.values()]
    places = view.places

    def compute(stop: Callable[[], bool]) -> bytes:
        rollout = Rollout(_drawn(plan, order, beacons, state))
        timeline = preview_rollout(
            rollout,
            beacons,
            places,
            start_at,
            release_state=state,
            horizon_s=horizon_s,
            stop=stop,
        )
        found = _timeline(rollout, start_at, timeline)
        return bytes(answer({**found, "not_covered": not_covered(view, rollout)}).body)

    previews: Previews = request.app.state.previews
    try:
        return Response(await previews.run(request, compute), media_type="application/json")
    except ClientLeft:
        return Response(status_code=499)


def _timeline(rollout: Rollout, start_at: float, timeline: Timeline) -> Fields:
    return {
        "plan": _bare(dump_plan(rollout.plan)),
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
        "transitions": [_transition(change) for change in timeline.transitions],
        "left_out": {reason.value: count for reason, count in timeline.left_out.items()},
    }


@router.get("")
async def listing(
    service: On,
    engine: Moving,
    actor: Viewer,
    status: Annotated[str | None, Query(max_length=16)] = None,
    begins: Annotated[str, Query(max_length=24, description="of the id")] = "",
    limit: Annotated[int, Query(ge=1, le=LIMITS.page)] = 100,
) -> Response:
    """List rollouts, newest first; ``limit`` counts those that are asked for."""
    rows = await service.db.read(rollouts.list_all, limit, status, begins)
    return page("rollouts", [await shown(service, engine, row["id"], row) for row in rows])


@router.get("/{rollout_id}")
async def show(rollout_id: str, service: On, engine: Moving, actor: Viewer) -> Response:
    """Show a rollout: its plan, how far each wave is, and what it waits for."""
    found = await shown(service, engine, rollout_id, full=True)
    return answer(found)


@router.get("/{rollout_id}/attempts")
async def tries(
    rollout_id: str,
    service: On,
    actor: Viewer,
    after: Annotated[str, Query(max_length=24)] = "",
    limit: Annotated[int, Query(ge=1, le=LIMITS.page)] = 500,
) -> Response:
    """List a rollout's attempts, for a report; ``next`` is where the following page begins."""
    rows = await service.db.read(attempts.list_for_rollout, rollout_id, limit, after)
    more = rows[-1]["id"] if len(rows) == limit else None
    for row in rows:
        for key in ("offered_at", "taken_at", "rebooting_at", "ended_at", "late_at", "blamed_at"):
            row[key] = format_iso(row[key])
    return page("attempts", rows, next=more)


@router.post("/{rollout_id}/pause")
async def pause(rollout_id: str, why: Why, service: On, engine: Moving, by: Stopper) -> Response:
    """Offer the release to nobody new; what is under way goes on. 202: not stored yet."""
    return await _stop(service, engine, rollout_id, _by_state(moves.pause_rollout, by, why))


@router.post("/{rollout_id}/resume")
async def resume(rollout_id: str, why: Why, service: On, engine: Moving, by: Operator) -> Response:
    """Go on after a pause, or after a halt: the failures so far are accepted then."""
    return await _move(
        service, engine, rollout_id, _as_shown(why, _by_state(moves.resume_rollout, by, why))
    )


@router.post("/{rollout_id}/halt")
async def halt(rollout_id: str, why: Why, service: On, engine: Moving, by: Stopper) -> Response:
    """Withhold the release from everybody who is not rebooting into it yet. 202: not stored yet."""
    return await _stop(service, engine, rollout_id, _by_state(moves.halt_rollout, by, why))


@router.post("/{rollout_id}/abort")
async def abort(rollout_id: str, why: Why, service: On, engine: Moving, by: Stopper) -> Response:
    """End a rollout for good. 202: not stored yet."""
    return await _stop(service, engine, rollout_id, _by_state(moves.abort_rollout, by, why))


@router.post("/{rollout_id}/advance")
async def advance(rollout_id: str, why: Why, service: On, engine: Moving, by: Operator) -> Response:
    """Open the next stage now, without waiting for sample or soak."""

    def decide(entry: RolloutEntry, now: float) -> tuple[Transition, ...]:
        return moves.open_next_stage(
            entry.rollout,
            entry.state,
            engine.count_outcomes(entry, now),
            now,
            by.name,
            wave=why.wave,
            reason=why.reason,
        )

    return await _move(service, engine, rollout_id, _as_shown(why, decide))


def compile_order(service: Service, order: Order) -> tuple[Rollout, float]:
    """Read an order against the fleet; return the rollout and its start, UTC seconds."""
    plan, start_at = read_order(service, order)
    view = service.fleet
    fleet = [node.beacon for node in view.beacons.values()]
    return Rollout(_drawn(plan, order, fleet, view.releases[order.firmware_id].state)), start_at


def read_order(service: Service, order: Order) -> tuple[Plan, float]:
    """Read an order against the releases and sites that there are; its id is not drawn yet."""
    release = service.fleet.releases.get(order.firmware_id)
    if release is None:
        raise missing("firmware", order.firmware_id)
    if release.state == "deprecated":
        raise release_withdrawn(release.row["state"])
    row = release.row
    now = service.clock.now()
    data = dict(order.plan)
    if row["required"]:
        data.setdefault("required", True)
    plan = parse_plan(
        data,
        rollout_id=order.seed or tables.new_id(),
        release=Release(row["id"], row["version"], row["device_type"], row["checksum"]),
        sites=service.fleet.places.paths,
    )
    Rollout(plan)  # what it refuses is refused here
    return plan, max(order.start_at or now, now)


def _drawn(plan: Plan, order: Order, beacons: Sequence[Beacon], release_state: str) -> Plan:
    """Return a plan with the id that fills its stages best; one that was shown keeps its own."""
    if order.seed is not None:
        return plan
    drawn = choose_rollout_id(plan, beacons, salt=plan.rollout_id, release_state=release_state)
    return replace(plan, rollout_id=drawn)


def _by_state(
    move: Callable[..., tuple[Transition, ...]], by: Actor, why: Why
) -> DecideTransitions:
    return lambda entry, now: move(entry.state, now, by.name, why.reason)


def _as_shown(why: Why, decide: DecideTransitions) -> DecideTransitions:
    """Return a decision that is only made about a rollout as it was shown."""

    def decide_as_shown(entry: RolloutEntry, now: float) -> Sequence[Transition]:
        if why.revision not in (None, entry.revision):
            raise rollout_moved()
        return decide(entry, now)

    return decide_as_shown


async def _move(
    service: Service, engine: Engine, rollout_id: str, decide: DecideTransitions, tries: int = 1
) -> Response:
    if rollout_id not in service.fleet.rollouts:
        row = await service.db.read(rollouts.get, rollout_id)
        if row is None:
            raise missing("rollout", rollout_id)
        raise UsageError(
            "rollout_not_active", "the rollout is over", found=row["status"], expected="active"
        )
    await engine.move_rollout(rollout_id, decide, tries)
    return answer(await shown(service, engine, rollout_id))


async def _stop(
    service: Service, engine: Engine, rollout_id: str, decide: DecideTransitions
) -> Response:
    """Stop a rollout; it holds before anything is asked of the database."""
    if rollout_id not in service.fleet.rollouts:
        return await _move(service, engine, rollout_id, decide)
    if await engine.stop_manager.stop_by_hand(rollout_id, decide):
        return answer(await shown(service, engine, rollout_id))
    entry = service.fleet.rollouts[rollout_id]
    found, now = _unstored(service, entry), service.clock.now()
    with contextlib.suppress(StorageError, TimeoutError):  # which it would name, nobody can read
        async with asyncio.timeout(_NAME_S):
            since, at = entry.created_at, entry.state.changed_at
            found["unconfirmed"] = await service.db.read(unconfirmed.in_memory, since, at, now)
    return answer(found, 202)


def _unstored(service: Service, entry: RolloutEntry) -> Fields:
    """Return what is known of a rollout without the database."""
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


async def shown(
    service: Service,
    engine: Engine,
    rollout_id: str,
    row: Fields | None = None,
    *,
    full: bool = False,
) -> Fields:
    """Return a rollout as the API shows it.

    Args:
        full: with its plan, its transitions, and the boards that it does not cover.
        row: of a listing; without one, the mirrors are named that have not confirmed a stop.
    """
    now = service.clock.now()
    unstored = service.fleet.stops_of(rollout_id)

    def read(conn: Connection) -> tuple[Fields | None, list[Fields], dict[str, int], list[Fields]]:
        one = row or rollouts.get(conn, rollout_id)
        return (
            one,
            rollouts.list_transitions(conn, rollout_id) if full else [],
            attempts.count_results(conn, rollout_id),
            unconfirmed.of_rollout(conn, one, now, unstored)
            if row is None and one is not None
            else [],
        )

    found, history, results, waited_for = await service.db.read(read)
    if found is None:
        raise missing("rollout", rollout_id)
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
        "total": _cell(counts.total) if counts else None,
        "waves": [
            _wave(entry, state, counts, plan, index, now) for index in range(len(state.waves))
        ],
    }
    if row is None:
        public["unconfirmed"] = waited_for
    if full:
        if entry is not None:
            public["not_covered"] = not_covered(service.fleet, entry.rollout)
        public["plan"] = _bare(plan)
        public["transitions"] = [
            {**{k: v for k, v in one.items() if k != "rollout_id"}, "at": format_iso(one["at"])}
            for one in history
        ]
    return public


def _wave(
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
        public["counts"] = [_cell(cell) for cell in counts.stages[index]]
        public["opens_at"] = format_iso(moves.opens_at(entry.rollout, state, index))
        if wave.stage >= 0 and wave.ended_at is None and state.status is Status.ACTIVE:
            verdict, word, sentence = judge_stage(entry.rollout, state, counts, index, now)
            public["waits_for"] = {"verdict": verdict.value, "reason": word, "detail": sentence}
    return public


def _cell(cell: StageCounts) -> Fields:
    found = asdict(cell)
    found["row"] = found.pop("failure_streak")  # its public name
    return {
        **found,
        "attempted": cell.attempted,
        "decided": cell.decided,
        "members": cell.members,
    }


def _transition(change: Transition) -> Fields:
    return {**asdict(change), "at": format_iso(change.at), "kind": change.kind.value}


def _bare(plan: Fields) -> Fields:
    """Return a plan without what names one rollout: as it can be used again."""
    return {key: value for key, value in plan.items() if key not in ("rollout_id", "release")}
