"""Who waits for what: by beacon, as the decision about its next poll has it."""

import pytest

from beacon_ota.orchestrator.api import waits
from tests.orchestrator.world import upload

FAR = {"preset": "all-at-once"}


@pytest.fixture
def release(local, tmp_path):
    return upload(local.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]


def waiting(local, rollout: str):
    return local.admin().get_rollout(rollout)["waits"]


def window_away(local, hours: int = 9) -> str:
    hour = int(local.clock.now() // 3600 + hours) % 24
    return f"{hour:02}:00-{(hour + 1) % 24:02}:00"


def test_by_building_and_window(local, release):
    admin = local.admin()
    admin.create_site("hq", window=window_away(local))
    admin.create_site("ktm", tz="Asia/Kathmandu", window=window_away(local))
    for beacon, site in zip(local.beacons(3), ("hq", "ktm", "ktm"), strict=True):
        admin.change_beacon(beacon.id, site=site)
        beacon.poll()
    admin.create_beacon("unheard", "esp32c3")
    found = waiting(local, admin.create_rollout(release, FAR)["rollout_id"])
    assert [(one["reason"], one["beacons"], one["zone"]) for one in found] == [
        ("window", 2, "Asia/Kathmandu"),
        ("version", 1, None),
        ("window", 1, "UTC"),
    ]
    opens = {one["zone"]: one["at"] for one in found if one["reason"] == "window"}
    assert opens["UTC"][14:16] == "00" and opens["Asia/Kathmandu"][14:16] == "15"


def test_who_is_served_or_done_does_not_wait(local, release):
    (beacon,) = local.beacons(1)
    beacon.poll()
    plan = {**FAR, "window": "00:00-24:00"}
    rollout = local.admin().create_rollout(release, plan)["rollout_id"]
    assert waiting(local, rollout) == []
    beacon.update(beacon.offered())
    assert waiting(local, rollout) == []


def test_who_is_not_reached_yet_does_not_wait(local, release):
    for beacon in local.beacons(40):
        beacon.poll()
    plan = {"ladder": [{"share": 0.1, "soak": "1h"}, {"share": 1.0}]}
    rollout = local.admin().create_rollout(release, {**plan, "window": window_away(local)})
    [one] = waiting(local, rollout["rollout_id"])
    assert one["reason"] == "window" and 0 < one["beacons"] < 40


def test_a_large_fleet_is_not_asked_one_by_one(local, release, monkeypatch):
    for beacon in local.beacons(3):
        beacon.poll()
    rollout = local.admin().create_rollout(release, {**FAR, "window": window_away(local)})
    monkeypatch.setattr(waits, "MAX_BEACONS", 2)
    assert waiting(local, rollout["rollout_id"]) is None
