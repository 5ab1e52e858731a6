"""Orders of rollouts: checks the request's fields against releases and sites, and makes a plan."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from beacon_ota.orchestrator.core.rollout_records import release_withdrawn
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db import tables
from beacon_ota.orchestrator.http.problems import not_found
from beacon_ota.orchestrator.rollout.plan_types import Plan, Release
from beacon_ota.orchestrator.rollout.plans import PRESETS, parse_plan
from beacon_ota.orchestrator.rollout.rollout_ids import choose_rollout_id
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.types import Beacon


class RolloutOrder(BaseModel):
    """A rollout to preview or to start."""

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


def compile_order(service: Service, order: RolloutOrder) -> tuple[Rollout, float]:
    """Return the rollout of an order for the present fleet, and its start in UTC seconds."""
    plan, start_at = read_order(service, order)
    view = service.fleet
    fleet = [node.beacon for node in view.beacons.values()]
    return Rollout(
        draw_plan_id(plan, order, fleet, view.releases[order.firmware_id].state)
    ), start_at


def read_order(service: Service, order: RolloutOrder) -> tuple[Plan, float]:
    """Return the plan of an order, whose id is not drawn yet, and its start in UTC seconds.

    Raises:
        Problem: 404 ``firmware_unknown``. BeaconOtaError: a withdrawn release, an invalid plan.
    """
    release = service.fleet.releases.get(order.firmware_id)
    if release is None:
        raise not_found("firmware", order.firmware_id)
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
    Rollout(plan)  # raises for a plan that cannot be a rollout
    return plan, max(order.start_at or now, now)


def draw_plan_id(
    plan: Plan, order: RolloutOrder, beacons: Sequence[Beacon], release_state: str
) -> Plan:
    """Return a plan with the id that fills its stages best; an order with a seed keeps that."""
    if order.seed is not None:
        return plan
    drawn = choose_rollout_id(plan, beacons, salt=plan.rollout_id, release_state=release_state)
    return replace(plan, rollout_id=drawn)
