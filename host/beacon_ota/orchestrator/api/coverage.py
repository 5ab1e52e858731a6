"""What a rollout does not cover, as the API shows it: other boards, and what there is for them."""

from beacon_ota.orchestrator.core.view import View
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.rollout.coverage import count_uncovered
from beacon_ota.orchestrator.rollout.rules import Rollout


def describe_uncovered(view: View, rollout: Rollout) -> Fields:
    """Return how many beacons of other boards a rollout's waves select; from any thread.

    ``release`` is the same version for that board, None when nobody has uploaded it;
    ``rollout_id`` the newest rollout of that release which is not over.
    """
    beacons = [node.facts for node in view.nodes.copy().values()]
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
        lives = [] if row is None else view.look_up(device_type)
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
