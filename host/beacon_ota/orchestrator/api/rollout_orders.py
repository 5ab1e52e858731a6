"""Orders of rollouts: the request's fields, checked against releases and sites, as a plan."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from beacon_ota.orchestrator.core.engine import (
    withdrawn,
)
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db import tables
from beacon_ota.orchestrator.http.problems import not_found
from beacon_ota.orchestrator.rollout.draw import draw_id
from beacon_ota.orchestrator.rollout.plans import PRESETS, parse
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.types import (
    Beacon,
    Plan,
    Release,
)


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


def compile_order(service: Service, order: RolloutOrder) -> tuple[Rollout, float]:
    """Read an order against the fleet; return the rollout and its start, UTC seconds."""
    plan, start_at = read_order(service, order)
    view = service.view
    fleet = [node.facts for node in view.nodes.values()]
    return Rollout(
        draw_plan_id(plan, order, fleet, view.releases[order.firmware_id].state)
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


def draw_plan_id(
    plan: Plan, order: RolloutOrder, beacons: Sequence[Beacon], release_state: str
) -> Plan:
    """Return a plan with the id that fills its stages best; one that was shown keeps its own."""
    if order.seed is not None:
        return plan
    drawn = draw_id(plan, beacons, salt=plan.rollout_id, release_state=release_state)
    return replace(plan, rollout_id=drawn)
