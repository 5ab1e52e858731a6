"""``/api/rollouts``: previews, starts, lists, pauses, resumes, halts, aborts and advances."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.api import unconfirmed
from beacon_ota.orchestrator.api.access import Operator, Stopper, Viewer
from beacon_ota.orchestrator.api.answers import json_response, listing_response
from beacon_ota.orchestrator.api.coverage import describe_uncovered
from beacon_ota.orchestrator.api.dependencies import EngineDep, ServiceDep
from beacon_ota.orchestrator.api.previews import ClientLeft, Previews
from beacon_ota.orchestrator.api.rollout_json import (
    describe_rollout,
    serialize_timeline,
    serialize_unstored,
)
from beacon_ota.orchestrator.api.rollout_orders import (
    RolloutOrder,
    compile_order,
    draw_plan_id,
    read_order,
)
from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.core.engine import DecideTransitions, Engine
from beacon_ota.orchestrator.core.fleet_records import RolloutEntry
from beacon_ota.orchestrator.core.rollout_records import dump_state, rollout_moved
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.connection import StorageError
from beacon_ota.orchestrator.db.tables import Fields, attempts, rollouts
from beacon_ota.orchestrator.db.tables.tokens import Actor
from beacon_ota.orchestrator.http.problems import not_found
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.rollout import advance
from beacon_ota.orchestrator.rollout.plans import dump_plan
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.simulate import simulate_rollout
from beacon_ota.orchestrator.rollout.types import (
    Transition,
)

router = APIRouter(prefix="/api/rollouts", tags=["rollouts"])

_MIRROR_NAMES_S = 1.0  # real seconds for the mirrors' names in the answer to a stop
_HORIZON_MAX_S = 400 * 86400.0


class Why(BaseModel):
    """A reason, kept in the audit log."""

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
    state = advance.initial_state(rollout, start_at)
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
        # A rollout that starts now has started before the answer.
        await engine.evaluate_rollout(entry)
    found = await describe_rollout(service, engine, plan.rollout_id)
    return json_response({**found, "not_covered": describe_uncovered(service.fleet, rollout)}, 201)


@router.post("/plan")
async def preview_rollout(
    order: RolloutOrder,
    request: Request,
    service: ServiceDep,
    actor: Viewer,
    horizon_s: Annotated[float, Query(gt=0, le=_HORIZON_MAX_S)] = 90 * 86400.0,
) -> Response:
    """Show which beacons would get the release when, if all went well; nothing is started."""
    plan, start_at = read_order(service, order)
    view = service.fleet
    state = view.releases[order.firmware_id].state
    beacons = [node.beacon for node in view.beacons.values()]
    places = view.places

    def compute_timeline(stop: Callable[[], bool]) -> bytes:
        rollout = Rollout(draw_plan_id(plan, order, beacons, state))
        timeline = simulate_rollout(
            rollout,
            beacons,
            places,
            start_at,
            release_state=state,
            horizon_s=horizon_s,
            stop=stop,
        )
        found = serialize_timeline(rollout, start_at, timeline)
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


@router.get("")
async def list_rollouts(
    service: ServiceDep,
    engine: EngineDep,
    actor: Viewer,
    status: Annotated[str | None, Query(max_length=16)] = None,
    begins: Annotated[str, Query(max_length=24, description="of the id")] = "",
    limit: Annotated[int, Query(ge=1, le=LIMITS.page)] = 100,
) -> Response:
    """List rollouts, newest first; at most ``limit``."""
    rows = await service.db.read(rollouts.list_all, limit, status, begins)
    return listing_response(
        "rollouts", [await describe_rollout(service, engine, row["id"], row) for row in rows]
    )


@router.get("/{rollout_id}")
async def show_rollout(
    rollout_id: str, service: ServiceDep, engine: EngineDep, actor: Viewer
) -> Response:
    """Show a rollout: its plan, the progress of each wave, and what the wave waits for."""
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
    """List a rollout's attempts; ``next`` is where the following page begins."""
    rows = await service.db.read(attempts.list_for_rollout, rollout_id, limit, after)
    more = rows[-1]["id"] if len(rows) == limit else None
    for row in rows:
        for key in ("offered_at", "taken_at", "rebooting_at", "ended_at", "late_at", "blamed_at"):
            row[key] = format_iso(row[key])
    return listing_response("attempts", rows, next=more)


@router.post("/{rollout_id}/pause")
async def pause_rollout(
    rollout_id: str, why: Why, service: ServiceDep, engine: EngineDep, by: Stopper
) -> Response:
    """Offer the release to no further beacon; attempts under way go on. 202: not stored yet."""
    return await _stop_rollout(
        service, engine, rollout_id, _decide_by_state(advance.pause_rollout, by, why)
    )


@router.post("/{rollout_id}/resume")
async def resume_rollout(
    rollout_id: str, why: Why, service: ServiceDep, engine: EngineDep, by: Operator
) -> Response:
    """Go on after a pause or a halt, and accept the failures so far."""
    return await _move_rollout(
        service,
        engine,
        rollout_id,
        _require_revision(why, _decide_by_state(advance.resume_rollout, by, why)),
    )


@router.post("/{rollout_id}/halt")
async def halt_rollout(
    rollout_id: str, why: Why, service: ServiceDep, engine: EngineDep, by: Stopper
) -> Response:
    """Call off every attempt that is not rebooting yet, and offer nothing. 202: not stored yet."""
    return await _stop_rollout(
        service, engine, rollout_id, _decide_by_state(advance.halt_rollout, by, why)
    )


@router.post("/{rollout_id}/abort")
async def abort_rollout(
    rollout_id: str, why: Why, service: ServiceDep, engine: EngineDep, by: Stopper
) -> Response:
    """End a rollout for good. 202: not stored yet."""
    return await _stop_rollout(
        service, engine, rollout_id, _decide_by_state(advance.abort_rollout, by, why)
    )


@router.post("/{rollout_id}/advance")
async def advance_rollout(
    rollout_id: str, why: Why, service: ServiceDep, engine: EngineDep, by: Operator
) -> Response:
    """Open the next stage now, without waiting for sample or soak."""

    def decide_next_stage(entry: RolloutEntry, now: float) -> tuple[Transition, ...]:
        return advance.open_next_stage(
            entry.rollout,
            entry.state,
            engine.count_outcomes(entry, now),
            now,
            by.name,
            wave=why.wave,
            reason=why.reason,
        )

    return await _move_rollout(
        service, engine, rollout_id, _require_revision(why, decide_next_stage)
    )


def _decide_by_state(
    move: Callable[..., tuple[Transition, ...]], by: Actor, why: Why
) -> DecideTransitions:
    return lambda entry, now: move(entry.state, now, by.name, why.reason)


def _require_revision(why: Why, decide: DecideTransitions) -> DecideTransitions:
    """Return a decision that is refused if the rollout has moved since it was shown."""

    def decide_as_shown(entry: RolloutEntry, now: float) -> Sequence[Transition]:
        if why.revision not in (None, entry.revision):
            raise rollout_moved()
        return decide(entry, now)

    return decide_as_shown


async def _move_rollout(
    service: Service, engine: Engine, rollout_id: str, decide: DecideTransitions, tries: int = 1
) -> Response:
    if rollout_id not in service.fleet.rollouts:
        row = await service.db.read(rollouts.get, rollout_id)
        if row is None:
            raise not_found("rollout", rollout_id)
        raise UsageError(
            "rollout_not_active", "the rollout is over", found=row["status"], expected="active"
        )
    await engine.move_rollout(rollout_id, decide, tries)
    return json_response(await describe_rollout(service, engine, rollout_id))


async def _stop_rollout(
    service: Service, engine: Engine, rollout_id: str, decide: DecideTransitions
) -> Response:
    """Stop a rollout; the stop holds in memory before the database is asked."""
    if rollout_id not in service.fleet.rollouts:
        return await _move_rollout(service, engine, rollout_id, decide)
    if await engine.stop_manager.stop_by_hand(rollout_id, decide):
        return json_response(await describe_rollout(service, engine, rollout_id))
    entry = service.fleet.rollouts[rollout_id]
    found, now = serialize_unstored(service, entry), service.clock.now()
    with contextlib.suppress(StorageError, TimeoutError):  # then the answer names no mirrors
        async with asyncio.timeout(_MIRROR_NAMES_S):
            since, at = entry.created_at, entry.state.changed_at
            found["unconfirmed"] = await service.db.read(
                unconfirmed.list_for_unstored_stop, since, at, now
            )
    return json_response(found, 202)
