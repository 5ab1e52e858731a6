"""Describes the beacons that a rollout selects but does not cover: those of other boards."""

from beacon_ota.orchestrator.core.fleet_state import FleetState
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.rollout.coverage import count_uncovered
from beacon_ota.orchestrator.rollout.rules import Rollout


def describe_uncovered(view: FleetState, rollout: Rollout) -> Fields:
    """Return the number of selected beacons by other board; may be called from any thread.

    ``release`` is the same version for that board, None without one; ``rollout_id`` is the newest
    rollout of that release that is not over.
    """
    beacons = [node.beacon for node in view.beacons.copy().values()]
    found = count_uncovered(rollout, beacons)
    version = rollout.plan.release.version
    releases = {
        one.row["device_type"]: one.row
        for one in view.releases.copy().values()
        if one.row["version"] == version and one.state != "deprecated"
    }
    boards = []
    for device_type, count in found.boards.items():
        row = releases.get(device_type)
        lives = [] if row is None else view.build_active_rollouts(device_type)
        boards.append(
            {
                "device_type": device_type,
                "beacons": count,
                "release": None if row is None else f"{device_type}/{version}",
                "rollout_id": next(
                    (
                        live.rollout.plan.rollout_id
                        for live in lives
                        if row is not None and live.rollout.plan.release.firmware_id == row["id"]
                    ),
                    None,
                ),
            }
        )
    return {"questioned": found.questioned, "boards": boards}
