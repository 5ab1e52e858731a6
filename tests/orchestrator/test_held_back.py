"""What is withheld by hand is withheld from those who have begun, too."""

import pytest

from beacon_ota.errors import UsageError
from tests.orchestrator.test_rollout_flow import ALWAYS, ask, quiet, start, status
from tests.orchestrator.world import upload

ALL = {"preset": "all-at-once", "window": ALWAYS}


@pytest.fixture
def release(local, tmp_path):
    return upload(local.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]


@pytest.fixture
def testing(local, tmp_path):
    return upload(local.admin(), "1.2.0", tmp_path)["firmware_id"]


@pytest.mark.parametrize("begun", ["offered", "downloading"])
def test_a_quarantine_stops_what_its_beacon_has_begun(local, release, begun):
    (beacon,) = local.beacons(1)
    rollout = start(local, release, quiet(ALL))
    offer = beacon.offered()
    if begun == "downloading":
        assert beacon.download(offer).status == 200
    local.admin().post_beacon_action(beacon.id, "quarantine", "it hangs over a patient")
    assert beacon.download(offer).status in (409, 410)
    assert beacon.report("rebooting", offer).status in (409, 410)
    assert beacon.offer() is None
    local.go_on(3600)
    assert status(local, rollout)["results"] == {"stopped": 1}  # no failure of the release
    local.admin().post_beacon_action(beacon.id, "unquarantine", "")
    beacon.update(beacon.offered())


def test_a_quarantine_lets_a_beacon_that_is_rebooting_say_how_it_went(local, release):
    (beacon,) = local.beacons(1)
    rollout = start(local, release, quiet(ALL))
    offer = beacon.offered()
    assert beacon.download(offer).status == 200
    assert beacon.report("rebooting", offer).status == 200
    local.admin().post_beacon_action(beacon.id, "quarantine", "too late")
    beacon.install(offer)
    assert beacon.report("success", offer, previous_version="1.0.0").json["recorded"] == "first"
    assert status(local, rollout)["results"] == {"success": 1}


def test_quarantining_those_under_way_halts_nothing(local, release):
    fleet = local.beacons(6)
    rollout = start(local, release, ALL)
    offers = ask(fleet)
    for beacon, offer in offers[:3]:
        beacon.download(offer)
        local.admin().post_beacon_action(beacon.id, "quarantine", "to the workshop")
    local.go_on(3600)
    assert status(local, rollout)["status"] == "active"


def test_who_leaves_the_beta_channel_does_not_finish_a_testing_release(local, testing):
    (beacon,) = local.beacons(1, channel="beta")
    rollout = start(local, testing, quiet(ALL))
    offer = beacon.offered()
    assert beacon.download(offer).status == 200
    local.admin().change_beacon(beacon.id, channel="stable")
    assert beacon.report("rebooting", offer).status in (409, 410)
    local.go_on(3600)
    assert status(local, rollout)["results"] == {"stopped": 1}


def test_who_leaves_the_beta_channel_finishes_a_stable_release(local, release):
    (beacon,) = local.beacons(1, channel="beta")
    start(local, release, quiet(ALL))
    offer = beacon.offered()
    local.admin().change_beacon(beacon.id, channel="stable")
    beacon.update(offer)


def test_a_halt_holds_for_an_older_rollout_of_the_same_release(local, release):
    fleet = local.beacons(6)
    start(local, release, quiet(ALL))
    newer = start(local, release, quiet(ALL))  # somebody pressed twice
    local.admin().post_rollout_action(newer, "halt", "it is bad")
    assert ask(fleet) == []
    assert fleet[0].poll().headers["x-reason"] == "halted"
    local.admin().post_rollout_action(newer, "resume", "it is not")
    assert len(ask(fleet)) == 6


def test_what_was_made_twice_can_be_aborted_once(local, release):
    fleet = local.beacons(6)
    start(local, release, quiet(ALL))
    newer = start(local, release, quiet(ALL))
    local.admin().post_rollout_action(newer, "abort", "once will do")
    assert len(ask(fleet)) == 6


def test_a_halt_by_failures_holds_for_an_older_rollout_of_the_same_release(local, release):
    fleet = local.beacons(20)
    start(local, release, ALL)
    newer = start(local, release, ALL)
    for beacon, offer in ask(fleet[:3]):
        beacon.fail(offer)
    local.step()
    assert status(local, newer)["status"] == "halted"
    assert ask(fleet[3:]) == []


def test_what_is_pressed_twice_opens_one_stage(local, release):
    local.beacons(20)
    rollout = start(local, release)
    seen = status(local, rollout)
    admin = local.admin()
    admin.post_rollout_action(rollout, "advance", "it is fine", revision=seen["revision"])
    with pytest.raises(UsageError) as refused:
        admin.post_rollout_action(rollout, "advance", "it is fine", revision=seen["revision"])
    assert refused.value.code == "rollout_moved"
    now = status(local, rollout)
    assert now["waves"][0]["stage"] == seen["waves"][0]["stage"] + 1
    assert now["revision"] > seen["revision"]
    admin.post_rollout_action(rollout, "advance", "again", revision=now["revision"])


def test_who_resumes_accepts_what_was_shown_and_nothing_later(local, release):
    fleet = local.beacons(20)
    rollout = start(local, release, ALL)
    offers = ask(fleet)
    for beacon, offer in offers:
        beacon.download(offer)
    for beacon, offer in offers[:3]:
        beacon.report("failed", offer, stage="verify", code="checksum")
    local.step()
    seen = status(local, rollout)
    assert seen["status"] == "halted"
    admin = local.admin()
    admin.post_rollout_action(rollout, "resume", "one of two", revision=seen["revision"])
    local.go_on(60)
    for beacon, offer in ask(fleet[5:9]):
        beacon.fail(offer)
    local.step()
    assert status(local, rollout)["status"] == "halted"
    with pytest.raises(UsageError) as refused:  # the other one still has the first page open
        admin.post_rollout_action(rollout, "resume", "two of two", revision=seen["revision"])
    assert refused.value.code == "rollout_moved"
    assert status(local, rollout)["status"] == "halted"


def test_what_stops_a_rollout_does_so_however_it_was_shown(local, release):
    rollout = start(local, release, ALL)
    local.admin().post_rollout_action(rollout, "pause")
    local.admin().post_rollout_action(rollout, "halt", "at once", revision=0)
    assert status(local, rollout)["status"] == "halted"


def test_those_in_a_status_are_found_behind_many_others(local, release):
    first = start(local, release, ALL)
    for _ in range(3):
        local.admin().post_rollout_action(start(local, release, ALL), "abort")
    found = local.admin().list_rollouts(status="active", limit=2)
    assert [one["rollout_id"] for one in found] == [first]
