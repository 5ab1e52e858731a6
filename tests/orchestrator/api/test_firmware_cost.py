"""The call for what a release costs: its fields, and a release that is not there."""

import pytest

from beacon_ota.errors import BeaconOtaError
from beacon_ota.images import update_cost
from tests.orchestrator.world import upload


def test_the_fields(server, admin, tmp_path):
    made = upload(admin, "1.1.0", tmp_path)
    found = admin.estimate_cost(made["firmware_id"])
    assert found["firmware_id"] == made["firmware_id"] and found["block_index"] is True
    assert found["full"]["bytes"] == made["size"] and found["full"]["basis"] in update_cost.BASES
    assert found["assumes"] == {
        "bytes_per_s": update_cost.RADIO,
        "seconds_per_sector": update_cost.FLASH_S,
    }
    assert (found["have"], found["beacons"], found["groups"]) == (0, 0, [])


def test_an_unknown_release(admin):
    with pytest.raises(BeaconOtaError) as caught:
        admin.estimate_cost("0" * 24)
    assert caught.value.code == "firmware_unknown"
