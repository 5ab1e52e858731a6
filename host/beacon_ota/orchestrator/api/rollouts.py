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
from beacon_ota.orchestrator.api.access import Operator, ServiceDep, Stopper, Viewer
from beacon_ota.orchestrator.api.answers import json_response, listing_response
from beacon_ota.orchestrator.api.coverage import describe_uncovered
from beacon_ota.orchestrator.api.previews import ClientLeft, Previews
from beacon_ota.orchestrator.clock import iso
from beacon_ota.orchestrator.core.engine import (
    Decide,
    Engine,
    dump_state,
    load_state,
    moved,
    withdrawn,
)
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.core.view import Entry
from beacon_ota.orchestrator.db import tables
from beacon_ota.orchestrator.db.database import StorageError
from beacon_ota.orchestrator.db.tables import Fields, attempts, rollouts
from beacon_ota.orchestrator.db.tables.tokens import Actor
from beacon_ota.orchestrator.http.problems import not_found
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.rollout import advance as moves
from beacon_ota.orchestrator.rollout.draw import draw_id
from beacon_ota.orchestrator.rollout.gates import judge
from beacon_ota.orchestrator.rollout.plans import PRESETS, dump, parse
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.simulate import preview
from beacon_ota.orchestrator.rollout.types import (
    Beacon,
    Cell,
    Plan,
    Release,
    RolloutState,
    Status,
    Tally,
    Timeline,
    Transition,
)

router = APIRouter(prefix="/api/rollouts", tags=["rollouts"])

_MIRROR_NAMES_S = 1.0  # of the wall clock, for the mirrors' names: a stop is answered without them
_HORIZON_MAX_S = 400 * 86400.0


def engine_of(request: Request) -> Engine:
    """Return the engine of the orchestrator that a request came to."""
    return request.app.state.engine


EngineDep = Annotated[Engine, Depends(engine_of)]


class RolloutOrder(BaseModel):
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
async def create_rollout(
    order: RolloutOrder, service: ServiceDep, engine: EngineDep, actor: Operator
) -> Response:
    """Start a rollout, now or at the time given."""
    rollout, start_at = compile_order(service, order)
    plan = rollout.plan
    state = moves.begin(rollout, start_at)
    row: Fields = {
        "id": plan.rollout_id,
        "firmware_id": order.firmware_id,
        "name": order.name or f"{plan.release.device_type} {plan.release.version}",
        "status": state.status.value,
        "plan": json.dumps(dump(plan)),
        "state": dump_state(state),
        "revision": 0,
        "created_at": service.clock.now(),
        "created_by": actor.name,
    }
    entry = await engine.create(row, rollout, state, actor.name)
    async with engine.moving:
        await engine.step(entry)  # what starts now has started when this is answered
    found = await describe_rollout(service, engine, plan.rollout_id)
    return json_response({**found, "not_covered": describe_uncovered(service.view, rollout)}, 201)


@router.post("/plan")
async def preview_rollout(
    order: RolloutOrder,
    request: Request,
    service: ServiceDep,
    actor: Viewer,
    horizon_s: Annotated[float, Query(gt=0, le=_HORIZON_MAX_S)] = 90 * 86400.0,
) -> Response:
    """Say who would get the release when, if all went well; nothing is started."""
    plan, start_at = read_order(service, order)
    view = service.view
    state = view.releases[order.firmware_id].state
    beacons = [node.facts for node in view.nodes.values()]
    places = view.places

    def compute_timeline(stop: Callable[[], bool]) -> bytes:
        rollout = Rollout(_draw_plan_id(plan, order, beacons, state))
        timeline = preview(
            rollout,
            beacons,
            places,
            start_at,
            release_state=state,
            horizon_s=horizon_s,
            stop=stop,
        )
        found = _serialize_timeline(rollout, start_at, timeline)
        return bytes(
            json_response({**found, "not_covered": describe_uncovered(view, rollout)}).body
        )

    previews: Previews = request.app.state.previews
    try:
        return Response(
            await previews.run(request, compute_timeline), media_type="application/json"
        )
    except ClientLeft:
        return Response(status_code=499)


def _serialize_timeline(rollout: Rollout, start_at: float, timeline: Timeline) -> Fields:
    return {
        "plan": _strip_plan_id(dump(rollout.plan)),
        "seed": rollout.plan.rollout_id,
        "start_at": iso(start_at),
        "ends_at": iso(timeline.ends_at),
        "beacons": [
            {
                "beacon_id": slot.beacon_id,
                "wave": slot.wave,
                "stage": slot.stage,
                "at": iso(slot.at),
                "reason": slot.reason.value,
            }
            for slot in timeline.slots
        ],
        "transitions": [_serialize_transition(change) for change in timeline.transitions],
        "left_out": {reason.value: count for reason, count in timeline.left_out.items()},
    }


@router.get("")
async def list_rollouts(
    service: ServiceDep,
    engine: EngineDep,
    actor: Viewer,
    status: Annotated[str | None, Query(max_length=16)] = None,
    begins: Annotated[str, Query(max_length=24, description="of the id")] = "",
    limit: Annotated[int, Query(ge=1, le=LIMITS.page)] = 100,
) -> Response:
    """List rollouts, newest first; ``limit`` counts those that are asked for."""
    rows = await service.db.read(rollouts.every, limit, status, begins)
    return listing_response(
        "rollouts", [await describe_rollout(service, engine, row["id"], row) for row in rows]
    )


@router.get("/{rollout_id}")
async def show_rollout(
    rollout_id: str, service: ServiceDep, engine: EngineDep, actor: Viewer
) -> Response:
    """Show a rollout: its plan, how far each wave is, and what it waits for."""
    found = await describe_rollout(service, engine, rollout_id, full=True)
    return json_response(found)


@router.get("/{rollout_id}/attempts")
async def list_rollout_attempts(
    rollout_id: str,
    service: ServiceDep,
    actor: Viewer,
    after: Annotated[str, Query(max_length=24)] = "",
    limit: Annotated[int, Query(ge=1, le=LIMITS.page)] = 500,
) -> Response:
    """List a rollout's attempts, for a report; ``next`` is where the following page begins."""
    rows = await service.db.read(attempts.of_rollout, rollout_id, limit, after)
    more = rows[-1]["id"] if len(rows) == limit else None
    for row in rows:
        for key in ("offered_at", "taken_at", "rebooting_at", "ended_at", "late_at", "blamed_at"):
            row[key] = iso(row[key])
    return listing_response("attempts", rows, next=more)


@router.post("/{rollout_id}/pause")
async def pause_rollout(
    rollout_id: str, why: Why, service: ServiceDep, engine: EngineDep, by: Stopper
) -> Response:
    """Offer the release to nobody new; what is under way goes on. 202: not stored yet."""
    return await _stop_rollout(service, engine, rollout_id, _decide_by_state(moves.pause, by, why))


@router.post("/{rollout_id}/resume")
async def resume_rollout(
    rollout_id: str, why: Why, service: ServiceDep, engine: EngineDep, by: Operator
) -> Response:
    """Go on after a pause, or after a halt: the failures so far are accepted then."""
    return await _move_rollout(
        service, engine, rollout_id, _require_revision(why, _decide_by_state(moves.resume, by, why))
    )


@router.post("/{rollout_id}/halt")
async def halt_rollout(
    rollout_id: str, why: Why, service: ServiceDep, engine: EngineDep, by: Stopper
) -> Response:
    """Withhold the release from everybody who is not rebooting into it yet. 202: not stored yet."""
    return await _stop_rollout(service, engine, rollout_id, _decide_by_state(moves.halt, by, why))


@router.post("/{rollout_id}/abort")
async def abort_rollout(
    rollout_id: str, why: Why, service: ServiceDep, engine: EngineDep, by: Stopper
) -> Response:
    """End a rollout for good. 202: not stored yet."""
    return await _stop_rollout(service, engine, rollout_id, _decide_by_state(moves.abort, by, why))


@router.post("/{rollout_id}/advance")
async def advance_rollout(
    rollout_id: str, why: Why, service: ServiceDep, engine: EngineDep, by: Operator
) -> Response:
    """Open the next stage now, without waiting for sample or soak."""

    def decide_next_stage(entry: Entry, now: float) -> tuple[Transition, ...]:
        return moves.step(
            entry.rollout,
            entry.state,
            engine.count(entry, now),
            now,
            by.name,
            wave=why.wave,
            reason=why.reason,
        )

    return await _move_rollout(
        service, engine, rollout_id, _require_revision(why, decide_next_stage)
    )


def compile_order(service: Service, order: RolloutOrder) -> tuple[Rollout, float]:
    """Read an order against the fleet; return the rollout and its start, UTC seconds."""
    plan, start_at = read_order(service, order)
    view = service.view
    fleet = [node.facts for node in view.nodes.values()]
    return Rollout(
        _draw_plan_id(plan, order, fleet, view.releases[order.firmware_id].state)
    ), start_at


def read_order(service: Service, order: RolloutOrder) -> tuple[Plan, float]:
    """Read an order against the releases and sites that there are; its id is not drawn yet."""
    release = service.view.releases.get(order.firmware_id)
    if release is None:
        raise not_found("firmware", order.firmware_id)
    if release.state == "deprecated":
        raise withdrawn(release.row["state"])
    row = release.row
    now = service.clock.now()
    data = dict(order.plan)
    if row["required"]:
        data.setdefault("required", True)
    plan = parse(
        data,
        rollout_id=order.seed or tables.new_id(),
        release=Release(row["id"], row["version"], row["device_type"], row["checksum"]),
        sites=service.view.places.paths,
    )
    Rollout(plan)  # what it refuses is refused here
    return plan, max(order.start_at or now, now)


def _draw_plan_id(
    plan: Plan, order: RolloutOrder, beacons: Sequence[Beacon], release_state: str
) -> Plan:
    """Return a plan with the id that fills its stages best; one that was shown keeps its own."""
    if order.seed is not None:
        return plan
    drawn = draw_id(plan, beacons, salt=plan.rollout_id, release_state=release_state)
    return replace(plan, rollout_id=drawn)


def _decide_by_state(move: Callable[..., tuple[Transition, ...]], by: Actor, why: Why) -> Decide:
    return lambda entry, now: move(entry.state, now, by.name, why.reason)


def _require_revision(why: Why, decide: Decide) -> Decide:
    """Return a decision that is only made about a rollout as it was shown."""

    def decide_as_shown(entry: Entry, now: float) -> Sequence[Transition]:
        if why.revision not in (None, entry.revision):
            raise moved()
        return decide(entry, now)

    return decide_as_shown


async def _move_rollout(
    service: Service, engine: Engine, rollout_id: str, decide: Decide, tries: int = 1
) -> Response:
    if rollout_id not in service.view.entries:
        row = await service.db.read(rollouts.get, rollout_id)
        if row is None:
            raise not_found("rollout", rollout_id)
        raise UsageError(
            "rollout_not_active", "the rollout is over", found=row["status"], expected="active"
        )
    await engine.move(rollout_id, decide, tries)
    return json_response(await describe_rollout(service, engine, rollout_id))


async def _stop_rollout(
    service: Service, engine: Engine, rollout_id: str, decide: Decide
) -> Response:
    """Stop a rollout; it holds before anything is asked of the database."""
    if rollout_id not in service.view.entries:
        return await _move_rollout(service, engine, rollout_id, decide)
    if await engine.stopping.stop(rollout_id, decide):
        return json_response(await describe_rollout(service, engine, rollout_id))
    entry = service.view.entries[rollout_id]
    found, now = _serialize_unstored(service, entry), service.clock.now()
    with contextlib.suppress(StorageError, TimeoutError):  # which it would name, nobody can read
        async with asyncio.timeout(_MIRROR_NAMES_S):
            since, at = entry.created_at, entry.state.changed_at
            found["unconfirmed"] = await service.db.read(
                unconfirmed.list_for_unstored_stop, since, at, now
            )
    return json_response(found, 202)


def _serialize_unstored(service: Service, entry: Entry) -> Fields:
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
        "changed_at": iso(entry.state.changed_at or None),
        "stored": False,
        "survives_restart": service.stops.survives,
    }


async def describe_rollout(
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
    unstored = service.view.stops_of(rollout_id)

    def read_rollout(
        conn: Connection,
    ) -> tuple[Fields | None, list[Fields], dict[str, int], list[Fields]]:
        one = row or rollouts.get(conn, rollout_id)
        return (
            one,
            rollouts.transitions_of(conn, rollout_id) if full else [],
            attempts.results_of(conn, rollout_id),
            unconfirmed.list_for_rollout(conn, one, now, unstored)
            if row is None and one is not None
            else [],
        )

    found, history, results, waited_for = await service.db.read(read_rollout)
    if found is None:
        raise not_found("rollout", rollout_id)
    plan = json.loads(found["plan"])
    state = load_state(found["state"])
    entry = service.view.entries.get(rollout_id)
    counts = None
    if entry is not None:
        state = entry.state
        counts = engine.count(entry, now)
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
        "stored": not service.view.stops_of(rollout_id),
        "created_at": iso(found["created_at"]),
        "created_by": found["created_by"],
        "start_at": iso(state.start_at),
        "changed_at": iso(state.changed_at or None),
        "due_at": iso(entry.due) if entry else None,
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
            public["not_covered"] = describe_uncovered(service.view, entry.rollout)
        public["plan"] = _strip_plan_id(plan)
        public["transitions"] = [
            {**{k: v for k, v in one.items() if k != "rollout_id"}, "at": iso(one["at"])}
            for one in history
        ]
    return public


def _serialize_wave(
    entry: Entry | None,
    state: RolloutState,
    counts: Tally | None,
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
        "opened_at": iso(wave.opened_at),
        "stage_at": iso(wave.stage_at),
        "ended_at": iso(wave.ended_at),
    }
    if entry is not None and counts is not None:
        public["counts"] = [_serialize_counts(cell) for cell in counts.cells[index]]
        public["opens_at"] = iso(moves.opens_at(entry.rollout, state, index))
        if wave.stage >= 0 and wave.ended_at is None and state.status is Status.ACTIVE:
            verdict, word, sentence = judge(entry.rollout, state, counts, index, now)
            public["waits_for"] = {"verdict": verdict.value, "reason": word, "detail": sentence}
    return public


def _serialize_counts(cell: Cell) -> Fields:
    return {
        **asdict(cell),
        "attempted": cell.attempted,
        "decided": cell.decided,
        "members": cell.members,
    }


def _serialize_transition(change: Transition) -> Fields:
    return {**asdict(change), "at": iso(change.at), "kind": change.kind.value}


def _strip_plan_id(plan: Fields) -> Fields:
    """Return a plan without what names one rollout: as it can be used again."""
    return {key: value for key, value in plan.items() if key not in ("rollout_id", "release")}
