"""The board that a beacon is: its own word against what somebody registered it as."""

import pytest

from beacon_ota.errors import UsageError
from tests.orchestrator.world import until, upload

ANY_TIME = {"preset": "all-at-once", "window": "00:00-24:00"}
SMALL, LARGE = "esp32c3", "esp32c3-8mb"


def told(local, kind):
    return [one for one in local.admin().list_latest_events(1000) if one["kind"] == kind]


def entries(local, action):
    return [one for one in local.admin().list_audit_entries(limit=1000) if one["action"] == action]


def order(local, tmp_path, device_type, version="1.1.0"):
    """Upload a release for a board and start it for everybody."""
    admin = local.admin()
    made = upload(admin, version, tmp_path, device_type=device_type, channel="stable")
    return admin.create_rollout(made["firmware_id"], ANY_TIME)["rollout_id"]


def proven(local, beacon):
    """Have the orchestrator hear what the beacon is registered as from itself."""
    assert beacon.poll().status == 204
    assert shown(local, beacon)["said_type"] == beacon.device_type


def shown(local, beacon):
    return local.admin().get_beacon(beacon.id)


def reason(beacon):
    answer = beacon.poll()
    assert answer.status == 204, answer.body
    return answer.headers["x-reason"]


def test_what_was_typed_gives_way_to_the_first_word_of_the_beacon(local, tmp_path):
    order(local, tmp_path, SMALL)
    large = order(local, tmp_path, LARGE)
    (beacon,) = local.beacons(1)
    beacon.device_type = LARGE
    offer = beacon.offered()  # at the first poll, and of its own board
    assert local.service.fleet.open_attempts[offer["attempt_id"]].rollout_id == large
    beacon.update(offer)
    after = shown(local, beacon)
    assert after["device_type"] == after["said_type"] == LARGE
    (event,) = told(local, "beacon.retyped")
    assert event["subject"] == beacon.id
    assert (event["data"]["was"], event["data"]["device_type"]) == (SMALL, LARGE)
    (entry,) = entries(local, "beacon.retyped")
    assert entry["actor"] == "orchestrator" and entry["target"] == beacon.id


def test_a_type_that_fits_is_noted_and_nothing_told(local):
    (beacon,) = local.beacons(1)
    proven(local, beacon)
    assert not told(local, "beacon.retyped") and not told(local, "beacon.questioned")


def test_another_word_than_before_is_questioned_and_nothing_is_offered(local, tmp_path):
    (beacon,) = local.beacons(1)
    proven(local, beacon)
    rollouts = [order(local, tmp_path, board) for board in (SMALL, LARGE)]
    beacon.device_type = LARGE
    for _ in range(3):
        assert reason(beacon) == "board"
    after = shown(local, beacon)
    assert (after["device_type"], after["said_type"]) == (SMALL, LARGE)
    assert after["standing"] == "board" and after["last_seen"]
    (event,) = until(lambda: told(local, "beacon.questioned"))
    assert (event["data"]["device_type"], event["data"]["says"]) == (SMALL, LARGE)
    listed = list(local.admin().list_beacons(questioned=True))
    assert [one["beacon_id"] for one in listed] == [beacon.id]
    assert listed[0]["standing"] == "board"
    local.step()
    for rollout in rollouts:
        found = local.admin().get_rollout(rollout)
        assert found["total"]["waiting"] == found["total"]["away"] == 0
        assert found["not_covered"]["questioned"] == 1
    # It says again what it said before: nothing was decided, and nothing has to be.
    beacon.device_type = SMALL
    assert beacon.poll().status == 200
    assert shown(local, beacon)["standing"] != "board"
    assert not list(local.admin().list_beacons(questioned=True))


def test_two_devices_under_one_name_fill_no_log(local):
    (beacon,) = local.beacons(1)
    proven(local, beacon)
    for _ in range(20):
        for beacon.device_type in (LARGE, SMALL):
            beacon.poll()
    assert len(until(lambda: told(local, "beacon.questioned"))) == 1
    local.clock.at += 3601
    beacon.device_type = LARGE
    beacon.poll()
    until(lambda: len(told(local, "beacon.questioned")) == 2)


def test_somebody_accepts_the_word_of_the_beacon(local, tmp_path):
    (beacon,) = local.beacons(1)
    proven(local, beacon)
    order(local, tmp_path, LARGE)
    beacon.device_type = LARGE
    assert reason(beacon) == "board"
    done = local.admin().retype_beacon(beacon.id, reason="the module was exchanged")
    assert (done["device_type"], done["said_type"]) == (LARGE, LARGE)
    (entry,) = entries(local, "beacon.retyped")
    assert entry["reason"] == "the module was exchanged"
    assert beacon.poll().status == 200
    assert shown(local, beacon)["standing"] == "valid"


def test_a_type_is_set_by_hand_before_the_beacon_says_it(local):
    (beacon,) = local.beacons(1)
    with pytest.raises(UsageError) as caught:
        local.admin().retype_beacon(beacon.id)
    assert caught.value.code == "type_unsaid"
    proven(local, beacon)
    assert local.admin().retype_beacon(beacon.id, LARGE)["device_type"] == LARGE
    assert reason(beacon) == "board"  # it is not that yet
    beacon.device_type = LARGE
    assert reason(beacon) == "no_release"


def test_a_beacon_that_says_nothing_stays_what_it_is(local, tmp_path):
    order(local, tmp_path, SMALL)
    (beacon,) = local.beacons(1)
    beacon.device_type = ""
    assert beacon.poll().status == 200
    after = shown(local, beacon)
    assert after["device_type"] == SMALL and after["said_type"] is None


@pytest.mark.parametrize("said", ["ESP32", "x" * 33, "-a", "a%20b", "%C3%A4", "a;b"])
def test_what_is_no_board_is_refused_and_changes_nothing(local, said):
    (beacon,) = local.beacons(1)
    beacon.device_type = said
    answer = beacon.poll()
    assert answer.status == 422 and answer.json["code"] == "poll_query"
    after = shown(local, beacon)
    assert after["device_type"] == SMALL and after["said_type"] is None


def test_a_stranger_changes_no_board(local):
    (beacon,) = local.beacons(1)
    beacon.device_type, beacon.key = LARGE, bytes(32)
    target = f"/firmwares/latest/{LARGE}?version=1.0.0"
    assert beacon.call("GET", target, check=False).status == 401
    after = shown(local, beacon)
    assert after["device_type"] == SMALL and after["said_type"] is None


def test_an_image_on_trial_that_is_of_another_board_is_refused(local):
    (beacon,) = local.beacons(1)
    proven(local, beacon)
    beacon.device_type, beacon.state = LARGE, "trial"
    answer = beacon.poll()
    assert answer.status == 409 and answer.json["code"] == "device_type_mismatch"
    after = shown(local, beacon)
    assert after["said_type"] == SMALL and after["refused_code"] == "device_type_mismatch"
    assert not told(local, "beacon.questioned")


def test_an_image_on_trial_is_not_the_word_of_a_beacon(local):
    (beacon,) = local.beacons(1)
    beacon.device_type, beacon.state = LARGE, "trial"
    assert reason(beacon) == "trial"
    assert shown(local, beacon)["device_type"] == SMALL


def test_an_attempt_is_called_off_when_its_beacon_becomes_another_board(local, tmp_path):
    rollout = order(local, tmp_path, SMALL)
    (beacon,) = local.beacons(1)
    offer = beacon.offered()
    assert beacon.download(offer).status == 200
    local.admin().retype_beacon(beacon.id, LARGE)
    answer = beacon.download(offer)
    assert answer.status == 409 and answer.json["code"] in ("device_type_mismatch", "attempt_over")
    answer = beacon.report("rebooting", offer)
    assert answer.status == 409
    local.step()
    found = local.admin().get_rollout(rollout)
    assert found["results"] == {"stopped": 1} and found["total"]["failed"] == 0
    (attempt,) = shown(local, beacon)["attempts"]
    assert attempt["detail"] == "its beacon is another board"


def test_an_attempt_that_is_rebooting_keeps_its_own_end(local, tmp_path):
    rollout = order(local, tmp_path, SMALL)
    (beacon,) = local.beacons(1)
    offer = beacon.offered()
    assert beacon.download(offer).status == 200
    assert beacon.report("rebooting", offer).status == 200
    local.admin().retype_beacon(beacon.id, LARGE)
    local.step()
    beacon.install(offer)
    assert beacon.report("success", offer, previous_version="1.0.0").status == 200
    assert local.admin().get_rollout(rollout)["results"] == {"success": 1}


def test_what_a_beacon_did_as_another_board_is_no_failure_of_that_release(local, tmp_path):
    rollout = order(local, tmp_path, SMALL)
    (beacon,) = local.beacons(1)
    beacon.update(beacon.offered())
    local.clock.at += 60
    beacon.device_type, beacon.version, beacon.image = LARGE, "0.9.0", "ab" * 32
    beacon.poll()
    local.admin().retype_beacon(beacon.id)
    local.go_on(60)
    total = local.admin().get_rollout(rollout)["total"]
    assert (total["healthy"], total["failed"]) == (1, 0)


def test_an_offer_is_not_committed_for_a_board_that_another_process_has_changed(
    local, elsewhere, tmp_path
):
    order(local, tmp_path, SMALL)
    (beacon,) = local.beacons(1)
    elsewhere.execute("UPDATE beacons SET device_type = ?", LARGE)
    assert beacon.poll().status == 204
    assert not shown(local, beacon)["attempts"]


def test_a_restored_registration_is_corrected_again(local, elsewhere):
    (beacon,) = local.beacons(1)
    beacon.device_type = LARGE
    beacon.poll()
    assert shown(local, beacon)["device_type"] == LARGE
    local.stop()  # and put back a backup of the first day
    elsewhere.execute(
        "UPDATE beacons SET device_type = ?, said_type = NULL, last_seen = NULL", SMALL
    )
    local.start()
    assert shown(local, beacon)["device_type"] == SMALL
    beacon.connect(local.url)
    local.clock.at += 400
    beacon.poll()
    assert shown(local, beacon)["device_type"] == LARGE


def test_nothing_goes_on_for_a_board_that_another_process_has_changed(local, elsewhere, tmp_path):
    order(local, tmp_path, SMALL)
    begun, offered = local.beacons(2)
    first, second = begun.offered(), offered.offered()
    assert begun.download(first).status == 200
    elsewhere.execute("UPDATE beacons SET device_type = ?", LARGE)
    assert begun.report("rebooting", first).status in (409, 410)
    assert offered.download(second).status in (409, 410)
    assert elsewhere.attempt(first["attempt_id"])["rebooting_at"] is None
    assert elsewhere.attempt(second["attempt_id"])["taken_at"] is None
