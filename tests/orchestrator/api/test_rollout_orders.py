"""Orders of rollouts are checked against the releases and sites that there are."""

import pytest

from beacon_ota.errors import BeaconOtaError
from beacon_ota.orchestrator.api.rollout_orders import RolloutOrder, compile_order, read_order
from tests.orchestrator.world import upload

SEED = "0123456789abcdef01234567"


@pytest.fixture
def release(local, tmp_path):
    return upload(local.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]


def test_a_rollout_never_starts_in_the_past(local, release):
    order = RolloutOrder(firmware_id=release, start_at=1.0)
    assert read_order(local.service, order)[1] == local.clock.now()
    later = local.clock.now() + 60
    order = RolloutOrder(firmware_id=release, start_at=later)
    assert read_order(local.service, order)[1] == later


def test_the_seed_of_a_shown_plan_is_kept(local, release):
    local.beacons(8)
    order = RolloutOrder(firmware_id=release, seed=SEED)
    rollout, _start_at = compile_order(local.service, order)
    assert rollout.plan.rollout_id == SEED
    drawn, _start_at = compile_order(local.service, RolloutOrder(firmware_id=release))
    assert drawn.plan.rollout_id != SEED


def test_an_unknown_release_and_an_unknown_site_are_refused_by_name(local, release):
    with pytest.raises(BeaconOtaError) as caught:
        read_order(local.service, RolloutOrder(firmware_id="0" * 24))
    assert caught.value.code == "firmware_unknown"
    plan = {"preset": "canary", "waves": [{"name": "first", "select": {"sites": ["nowhere"]}}]}
    with pytest.raises(BeaconOtaError):
        read_order(local.service, RolloutOrder(firmware_id=release, plan=plan))


def test_a_withdrawn_release_cannot_be_ordered(local, release):
    local.admin().call("POST", f"/api/firmwares/{release}/deprecate")
    with pytest.raises(BeaconOtaError) as caught:
        read_order(local.service, RolloutOrder(firmware_id=release))
    assert caught.value.found == "deprecated"
