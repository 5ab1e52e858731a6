"""Beacons that are refused at every poll: said, counted, and never shown as fine."""

from tests.orchestrator.world import TestBeacon, until

BAD = "/firmwares/latest/esp32c3?version=no-version"


def shown(local, beacon):
    return local.admin().get_beacon(beacon.id)


def test_a_beacon_whose_polls_are_refused_is_shown_with_the_reason(local):
    (beacon,) = local.beacons(1)
    for count in (1, 2, 3):
        assert beacon.call("GET", BAD).status == 422
        after = shown(local, beacon)
        assert (after["refused_code"], after["refusals"]) == ("poll_query", count)
        assert after["refused_at"].startswith("2030-")
    assert after["standing"] == "refused"
    assert after["last_seen"] is None and after["state"] is None and after["version"] is None
    [listed] = local.admin().list_beacons(refused=True)
    assert listed["beacon_id"] == beacon.id
    # A poll that is answered ends it; what it was stays for people.
    assert beacon.poll().status == 204
    after = shown(local, beacon)
    assert (after["refused_code"], after["refusals"]) == ("poll_query", 0)
    assert after["standing"] == "valid"
    assert not list(local.admin().list_beacons(refused=True))


def test_refusals_survive_a_restart(local):
    (beacon,) = local.beacons(1)
    for _ in range(3):
        beacon.call("GET", BAD)
    local.stop()
    local.start()
    assert shown(local, beacon)["refusals"] == 3
    assert shown(local, beacon)["standing"] == "refused"


def test_a_report_that_is_refused_is_noted_and_the_end_of_an_attempt_is_not(local):
    (beacon, other) = local.beacons(2)
    assert beacon.call("POST", f"/api/beacons/{other.id}/ota_status", b"{}").status == 403
    assert shown(local, beacon)["refused_code"] == "beacon_mismatch"
    assert shown(local, other)["refused_code"] is None
    doc = {"attempt_id": "0" * 24, "firmware_id": "0" * 24, "version": "1.1.0"}
    assert other.report("verifying", doc).status == 409
    assert shown(local, other)["refused_code"] is None


def test_nobody_without_the_key_writes_anything(local):
    (beacon,) = local.beacons(1)
    assert beacon.poll().status == 204
    before = {k: v for k, v in shown(local, beacon).items() if k != "unproven"}
    header = beacon.last_header
    stranger = TestBeacon(local.url, beacon.id, bytes(32))
    stranger.clock = local.clock.now
    for _ in range(5):
        assert stranger.call("GET", BAD, check=False).status == 401
    # Heard on the wire, and sent again.
    target = f"/firmwares/latest/esp32c3?version=1.0.0&image={beacon.image}&state=valid"
    again = stranger._connection
    again.request("GET", target, None, {"Authorization": header})
    answer = again.getresponse()
    assert answer.status == 401 and b"nonce_used" in answer.read()
    found = shown(local, beacon)
    unproven = found.pop("unproven")
    assert found == before
    assert unproven["count"] == 6 and unproven["code"] == "nonce_used"
    assert unproven["address"] == "127.0.0.1" and unproven["at"]


def test_claims_are_bounded_by_address(local):
    (beacon,) = local.beacons(1)
    stranger = TestBeacon(local.url, beacon.id, bytes(32))
    stranger.clock = local.clock.now
    for _ in range(60):
        stranger.call("GET", BAD, check=False)
    unproven = shown(local, beacon)["unproven"]
    assert unproven["code"] == "bad_mac" and 0 < unproven["count"] <= 30
    assert shown(local, beacon)["standing"] == "unseen"


def test_the_word_of_the_beacon_ends_what_strangers_said_in_its_name(local):
    (beacon,) = local.beacons(1)
    TestBeacon(local.url, beacon.id, bytes(32)).call("GET", BAD, check=False)
    assert shown(local, beacon)["unproven"]
    beacon.poll()
    assert shown(local, beacon)["unproven"] is None


def test_it_is_told_once_in_a_while_that_a_beacon_is_refused(local):
    def told():
        events = local.admin().list_latest_events(1000)
        return [one for one in events if one["kind"] == "beacon.refused"]

    (beacon,) = local.beacons(1)
    beacon.call("GET", BAD)
    assert not told()
    for _ in range(20):
        beacon.call("GET", BAD)
    (event,) = until(told)
    assert event["subject"] == beacon.id and event["data"] == {"code": "poll_query"}
    local.clock.at += 3601
    beacon.call("GET", BAD)
    until(lambda: len(told()) == 2)
