"""What a release costs the fleet: by what its beacons run, over the API and on the pages."""

import pytest

from beacon_ota.images import blocks, release, update_cost
from tests.images.test_compare import TEXTS, build
from tests.orchestrator.world import Local, TestBeacon

EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}
FIRST = build(TEXTS, "1.0.0")
SECOND = build({**TEXTS, "m7.py": b"x = 1\n" * 200}, "1.1.0", like=FIRST)
THIRD = build({**TEXTS, "m7.py": b"x = 2\n" * 200}, "1.1.1", like=SECOND)


def send(local: Local, data: bytes) -> dict:
    info = release.parse_release(data).info
    form = {"device_type": "esp32c3", "version": info.version, "channel": "stable"}
    return local.admin().call(
        "POST", "/api/firmwares/upload", data=form, files={"binary": ("x.bin", data)}
    )


def runs(local: Local, beacon: TestBeacon, made: dict) -> None:
    """Have a beacon say that it runs a release."""
    beacon.version, beacon.image = made["version"], made["checksum"]
    beacon.poll()
    local.call(local.service.flush_last_seen())


@pytest.fixture
def fleet(local):
    """Four beacons: one that was updated from 1.0.0 to 1.1.0, two on 1.0.0, one never heard."""
    made = [send(local, data) for data in (FIRST, SECOND)]
    beacons = local.beacons(4)
    for beacon in beacons[:3]:
        runs(local, beacon, made[0])
    admin = local.admin()
    rollout = admin.create_rollout(made[1]["firmware_id"], EVERYBODY)["rollout_id"]
    beacons[0].update(beacons[0].offered())
    local.call(local.service.flush_last_seen())
    admin.call("POST", f"/api/rollouts/{rollout}/abort", json={"reason": "enough"})
    return [*made, send(local, THIRD)]


def test_a_group_for_each_pair_of_slots(local, fleet):
    found = local.admin().estimate_cost(fleet[2]["firmware_id"])
    assert (found["have"], found["beacons"]) == (0, 4)
    groups = {(one["version"], one["other_version"]): one for one in found["groups"]}
    updated, first = groups["1.1.0", "1.0.0"], groups["1.0.0", None]
    assert (updated["beacons"], first["beacons"], groups["", None]["beacons"]) == (1, 2, 1)
    indexes = [blocks.hash_sectors(data) for data in (FIRST, SECOND, THIRD)]
    expected = update_cost.estimate_cost(len(THIRD), indexes[2], indexes[1], indexes[0])
    assert updated["bytes"] == expected.fetched < first["bytes"] + 1
    assert updated["sectors_written"] == expected.written
    assert updated["changed"] == ["app.json", "m7.mpy"]
    assert first["sectors_written"] == found["full"]["sectors_written"]  # the other slot: unknown
    assert groups["", None]["changed"] is None
    assert found["bytes"] == sum(one["beacons"] * one["bytes"] for one in found["groups"])
    assert found["bytes_in_full"] == 4 * len(THIRD)
    assert found["bytes_saved"] == found["bytes_in_full"] - found["bytes"]


def test_beacons_that_have_it_are_no_group(local, fleet):
    found = local.admin().estimate_cost(fleet[1]["firmware_id"])
    assert (found["have"], found["beacons"]) == (1, 3)


def test_a_damaged_image_costs_everything(local, fleet):
    for made in fleet[:2]:
        local.service.blobs.remove(made["blob"])
    found = local.admin().estimate_cost(fleet[2]["firmware_id"])
    assert found["bytes"] >= found["bytes_in_full"]


def test_the_pages_say_it(local, fleet):
    made = fleet[2]
    rollout = local.admin().create_rollout(made["firmware_id"], EVERYBODY)["rollout_id"]
    for path in (f"/releases/{made['firmware_id']}", f"/rollouts/{rollout}"):
        text = local.admin().request("GET", path).text
        assert "What it costs a beacon" in text and 'title="app.json, m7.mpy"' in text
    local.admin().call("POST", f"/api/firmwares/{made['firmware_id']}/deprecate")
    text = local.admin().request("GET", f"/releases/{made['firmware_id']}").text
    assert "What it costs a beacon" not in text
