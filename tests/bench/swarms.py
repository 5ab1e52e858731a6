"""What only a swarm can show: a large fleet, a building after a power cut, a silent brick."""

from dataclasses import replace
from typing import Any

from beacon_ota.client import Client
from beacon_ota.swarm import scenario
from beacon_ota.swarm.fleet import Swarm, run_swarm
from beacon_ota.swarm.local_server import run_local_server
from beacon_ota.swarm.scenario import Scenario

_KEPT = ("beacons", "polls", "burst", "touched", "serving", "mismatches", "wall_s", "swarm_cpu")


def _simulate(plan: Scenario, window: tuple[float, float] | None = None) -> dict[str, Any]:
    """Run a scenario on an orchestrator of its own; with its CPU in a window of the time."""
    marks: list[tuple[float, float, int]] = []

    def look(snapshot: dict[str, Any]) -> None:
        if window and (
            (not marks and snapshot["elapsed_s"] >= window[0])
            or (len(marks) == 1 and snapshot["elapsed_s"] >= window[1])
        ):
            used = child.usage()["cpu_s"]
            marks.append((snapshot["elapsed_s"], used, snapshot["polls"]["count"]))

    with run_local_server(plan) as child:
        fleet = Swarm(plan, child.url, child.token, on_snapshot=look)
        summary = run_swarm(fleet)
        found = {name: summary[name] for name in _KEPT}
        found["rss_mb"] = child.usage()["rss_mb"]
        rollouts = Client(child.url, child.token).list_rollouts()
        found["status"] = rollouts[0]["status"] if rollouts else None
        found["reason"] = rollouts[0]["reason"] if rollouts else None
    if len(marks) == 2:
        (began, before, polls), (ended, after, more) = marks
        found["server_cpu"] = round((after - before) / (ended - began), 3)
        found["polls_per_s"] = round((more - polls) / (ended - began), 1)
    return found


def silent_brick(quick: bool) -> dict[str, Any]:
    """A release from which nobody comes back."""
    plan = scenario.load_scenario("silent-brick")
    if quick:
        plan = replace(plan, beacons=100, scale=240.0)
    return _simulate(plan)


def large(quick: bool) -> dict[str, Any]:
    """10,000 beacons at 60 s, after all of them have shown up."""
    plan = replace(scenario.load_scenario("steady"), spread_s=30.0, for_s=89.0)
    if quick:
        plan = replace(plan, beacons=1000, poll_s=6.0, spread_s=2.0, for_s=12.0)
    return _simulate(plan, (5.0, 11.0) if quick else (62.0, 87.0))


def power_cut(quick: bool) -> dict[str, Any]:
    """A building that comes back at once, while its beacons are being updated."""
    plan = scenario.load_scenario("power-cut")
    drop = replace(plan.releases[0], at_s=8.0)
    cut = replace(plan.events[0], at_s=14.0, off_s=3.0)
    plan = replace(plan, poll_s=10.0, spread_s=6.0, for_s=60.0, releases=(drop,), events=(cut,))
    if quick:
        plan = replace(plan, beacons=200, for_s=22.0)
    return _simulate(plan)
