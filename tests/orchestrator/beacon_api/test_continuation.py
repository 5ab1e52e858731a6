"""An attempt goes on until it has a result, or until its rollout is stopped."""

import pytest

from beacon_ota.orchestrator.beacon_api.continuation import check_may_continue
from beacon_ota.orchestrator.http.problems import Problem
from tests.orchestrator.world import upload

ANY_TIME = {"preset": "all-at-once", "window": "00:00-24:00"}


@pytest.fixture
def attempt(local, tmp_path):
    admin = local.admin()
    release = upload(admin, "1.1.0", tmp_path, channel="stable")["firmware_id"]
    admin.create_rollout(release, ANY_TIME)
    (beacon,) = local.beacons(1)
    local.step()
    offer = beacon.offered()
    assert beacon.download(offer).status == 200
    return beacon, offer, local.service.fleet.open_attempts[offer["attempt_id"]]


def refusal(local, attempt) -> tuple[int, str] | None:
    node = local.service.fleet.beacons[attempt.beacon_id]
    try:
        check_may_continue(local.service, attempt, node)
    except Problem as error:
        return error.status, error.code
    return None


def test_an_attempt_under_way_may_go_on(local, attempt):
    assert refusal(local, attempt[2]) is None


def test_an_attempt_that_has_a_result_is_over(local, attempt):
    beacon, offer, under_way = attempt
    assert beacon.report("failed", offer, stage="flash", code="erase").status == 200
    attempts = local.service.fleet.beacons[beacon.id].attempts
    (ended,) = [one for one in attempts if one.id == under_way.id]
    assert refusal(local, ended) == (409, "attempt_over")


@pytest.mark.parametrize("verb", ["halt", "abort"])
def test_a_stopped_rollout_calls_it_off(local, attempt, verb):
    under_way = attempt[2]
    local.admin().call("POST", f"/api/rollouts/{under_way.rollout_id}/{verb}", json={})
    if under_way.result is None:
        assert refusal(local, under_way) == (410, "rollout_halted")
    else:
        assert refusal(local, under_way) == (409, "attempt_over")


def test_a_rebooting_beacon_is_not_called_off_by_a_halt(local, attempt):
    beacon, offer, under_way = attempt
    assert beacon.report("rebooting", offer).status == 200
    local.admin().call("POST", f"/api/rollouts/{under_way.rollout_id}/halt", json={})
    current = local.service.fleet.open_attempts[under_way.id]
    assert refusal(local, current) is None
