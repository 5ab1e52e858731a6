"""A rollout as the API shows it: in a listing, alone, and when it is over."""

import pytest

from beacon_ota.errors import BeaconOtaError
from beacon_ota.orchestrator.api.rollout_json import describe_rollout
from tests.orchestrator.world import upload

ANY_TIME = {"preset": "all-at-once", "window": "00:00-24:00"}


@pytest.fixture
def rollout(local, tmp_path):
    admin = local.admin()
    local.beacons(2)
    release = upload(admin, "1.1.0", tmp_path, channel="stable")["firmware_id"]
    return admin.create_rollout(release, ANY_TIME)["rollout_id"]


def described(local, rollout_id, **more):
    return local.call(describe_rollout(local.service, local.engine, rollout_id, **more))


def test_a_rollout_alone_has_plan_history_and_boards(local, rollout):
    full = described(local, rollout, full=True)
    assert full["transitions"] and "not_covered" in full and full["unconfirmed"] == []
    assert not {"rollout_id", "release"} & set(full["plan"])
    short = described(local, rollout)
    assert not {"plan", "transitions", "not_covered"} & set(short)
    assert short["waves"][0]["counts"][0]["members"] == 2
    assert short == local.admin().call("GET", "/api/rollouts")["rollouts"][0] | {
        "unconfirmed": short["unconfirmed"]
    }


def test_what_a_wave_waits_for_is_said_while_it_is_active_only(local, rollout):
    assert {"verdict", "reason", "detail"} == set(
        described(local, rollout)["waves"][0]["waits_for"]
    )
    local.admin().call("POST", f"/api/rollouts/{rollout}/pause", json={})
    assert "waits_for" not in described(local, rollout)["waves"][0]


def test_a_rollout_that_is_over_is_shown_without_counts(local, rollout):
    local.admin().call("POST", f"/api/rollouts/{rollout}/abort", json={})
    local.step()
    over = described(local, rollout, full=True)
    assert over["status"] == "aborted" and over["stored"]
    if rollout not in local.service.fleet.rollouts:
        assert over["total"] is None and "counts" not in over["waves"][0]


def test_an_unknown_rollout_is_refused_by_name(local):
    with pytest.raises(BeaconOtaError) as caught:
        described(local, "0" * 24)
    assert caught.value.code == "rollout_unknown"
