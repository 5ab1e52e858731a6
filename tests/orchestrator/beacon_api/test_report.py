"""What becomes of an attempt by what its beacon says."""

import pytest

from tests.dashboard.web import Signed
from tests.orchestrator.beacon_api.test_poll import CHANGES, EVERYBODY
from tests.orchestrator.world import upload

ANY_TIME = {"preset": "all-at-once", "window": "00:00-24:00"}


def test_a_bad_journal_entry_costs_no_outcome(local, tmp_path):
    admin = local.admin()
    release = upload(admin, "1.1.0", tmp_path, channel="stable")["firmware_id"]
    rollout = admin.create_rollout(release, ANY_TIME)["rollout_id"]
    (beacon,) = local.beacons(1)
    local.step()
    offer = beacon.offered()
    assert beacon.download(offer).status == 200
    entries = [[1, 0, "wifi", "handshake_timeout", ""]]
    for journal in (entries, [[1, 0, "?", "?", ""]], [[1, 2]], "x"):
        answer = beacon.report("failed", offer, stage="flash", code="erase", journal=journal)
        assert answer.status == 200, answer.body
    local.go_on(31 * 60)
    assert admin.get_rollout(rollout)["results"] == {"failed": 1}


# ---- what a beacon has called bad ----

FOREVER = {**ANY_TIME, "gate": {"failure_sample": 1000, "in_a_row": 1000}}


def start(local, tmp_path, version="1.1.0", plan=FOREVER):
    admin = local.admin()
    release = upload(admin, version, tmp_path, channel="stable")["firmware_id"]
    return release, admin.create_rollout(release, plan)["rollout_id"]


def back(beacon, offer, code="crash", **more):
    """The release of an offer was tried, and the old one runs again."""
    beacon.version, beacon.image = "1.0.0", "00" * 32
    more = {"previous_version": "1.0.0", "stage": "boot", "code": code, "detail": "why", **more}
    return beacon.report("rolled_back", offer, **more)


def reason(beacon):
    return beacon.poll().headers["x-reason"]


def told(local, kind):
    return [
        one
        for one in local.admin().call("GET", "/api/events/latest?limit=200")["events"]
        if one["kind"] == kind
    ]


@pytest.mark.parametrize("code", ["crash", "self_test"])
def test_a_release_that_its_beacon_acquits_is_offered_again(local, tmp_path, code):
    """It lacked the network, or nothing is known of its trial: the rollout's retries bound it."""
    start(local, tmp_path)
    (beacon,) = local.beacons(1)
    local.step()
    offer = beacon.offered()
    beacon.download(offer)
    beacon.report("rebooting", offer)
    assert back(beacon, offer, code, acquitted=True).json["recorded"] == "first"
    local.clock.at += 3600
    again = beacon.offered()
    assert again["firmware_id"] == offer["firmware_id"]
    assert again["attempt_id"] != offer["attempt_id"]


@pytest.mark.parametrize("code", ["crash", "watchdog", "self_test"])
def test_a_release_that_was_called_bad_is_offered_to_that_beacon_no_more(local, tmp_path, code):
    release, rollout = start(local, tmp_path)
    beacon, other = local.beacons(2)
    offer = beacon.offered()
    beacon.download(offer)
    beacon.report("rebooting", offer)
    assert back(beacon, offer, code).json["recorded"] == "first"
    local.go_on(3600)
    assert reason(beacon) == "blamed" and other.offer() is not None
    shown = local.admin().get_beacon(beacon.id)["attempts"]
    assert [(one["result"], one["code"]) for one in shown] == [("rolled_back", code)]
    assert shown[0]["blamed_at"]

    # Also in another rollout of it, after a restart, and when the first rollout is over.
    local.admin().post_rollout_action(rollout, "abort")
    local.step()
    local.admin().create_rollout(release, FOREVER)
    assert reason(beacon) == "blamed"
    local.stop()
    local.start()
    beacon.connect(local.url)
    assert reason(beacon) == "blamed"
    # By hand it is lifted; a release that is not the bad one is offered in any case.
    local.clock.at += 60
    local.admin().post_beacon_action(beacon.id, "unquarantine", "the power supply it was")
    assert beacon.offer() is not None


def test_another_release_is_offered(local, tmp_path):
    start(local, tmp_path)
    (beacon,) = local.beacons(1)
    offer = beacon.offered()
    beacon.download(offer)
    back(beacon, offer)
    local.clock.at += 1
    start(local, tmp_path, "1.2.0")
    assert beacon.offered()["version"] == "1.2.0"


@pytest.mark.parametrize("code", ["power", "not_booted"])
def test_what_says_nothing_about_the_image_is_tried_again(local, tmp_path, code):
    start(local, tmp_path)
    (beacon,) = local.beacons(1)
    offer = beacon.offered()
    beacon.download(offer)
    back(beacon, offer, code)
    local.clock.at += 121
    assert beacon.offer() is not None


def test_a_refusal_of_a_known_image_is_said_once(local, tmp_path):
    """By a beacon whose verdict went to another orchestrator, or before this one kept them."""
    start(local, tmp_path)
    (beacon,) = local.beacons(1)
    beacon.fail(beacon.offered(), "verify", "known_bad")
    local.clock.at += 3600
    assert reason(beacon) == "blamed"


def test_a_success_that_does_not_last_is_told_as_undone(local, tmp_path):
    _, rollout = start(local, tmp_path, plan={**ANY_TIME, "gate": {"in_a_row": 1}})
    (beacon,) = local.beacons(1)
    offer = beacon.offered()
    beacon.update(offer)
    local.go_on(7200)
    assert local.admin().get_rollout(rollout)["status"] != "halted"
    assert back(beacon, offer, detail="rescued").json["recorded"] == "undone"
    assert back(beacon, offer, detail="rescued").json["recorded"] == "repeated"
    (event,) = told(local, "attempt.undone")
    assert (event["data"]["beacon"], event["data"]["code"]) == (beacon.id, "crash")
    (withheld,) = told(local, "beacon.withheld")
    assert (withheld["subject"], withheld["data"]["why"]) == (beacon.id, "blamed")
    local.step()
    shown = local.admin().get_rollout(rollout)
    assert shown["status"] == "halted" and shown["results"] == {"undone": 1}
    attempt = local.admin().get_beacon(beacon.id)["attempts"][0]
    assert (attempt["result"], attempt["late_result"]) == ("success", "rolled_back")
    assert (attempt["failed_in"], attempt["code"], attempt["detail"]) == (
        "boot",
        "crash",
        "rescued",
    )
    local.admin().post_rollout_action(rollout, "resume")
    assert reason(beacon) == "blamed"


def test_the_beacon_s_page_says_that_it_did_not_last(local, tmp_path):
    start(local, tmp_path)
    (beacon,) = local.beacons(1)
    offer = beacon.offered()
    beacon.update(offer)
    back(beacon, offer)
    signed = Signed(local.url, local.token)
    page = signed.get(f"/beacons/{beacon.id}").text
    assert ">undone</span>" in page and "it had confirmed the release" in page
    assert "it has called the release bad" in page
    assert ">undone</span>" in signed.get("/failures").text


def test_a_refusal_of_what_was_confirmed_once_undoes_that(local, tmp_path):
    """A beacon of an older firmware says no more of a rescue than that."""
    start(local, tmp_path)
    (beacon,) = local.beacons(1)
    beacon.update(beacon.offered())
    beacon.version, beacon.image = "1.0.0", "00" * 32
    beacon.report("idle")
    local.clock.at += 3600
    beacon.fail(beacon.offered(), "verify", "known_bad")
    assert len(told(local, "attempt.undone")) == 1
    assert reason(beacon) == "blamed"


def test_a_verdict_over_an_attempt_that_was_given_up(local, tmp_path):
    start(local, tmp_path)
    (beacon,) = local.beacons(1)
    offer = beacon.offered()
    beacon.download(offer)
    beacon.report("rebooting", offer)
    local.go_on(31 * 60)
    assert back(beacon, offer).json["recorded"] == "late"
    local.clock.at += 3600
    assert reason(beacon) == "blamed"


STOPS = {name: CHANGES[name] for name in ("halted", "withdrawn", "damaged")}


@pytest.fixture
def offered(local, tmp_path):
    """A beacon, and the offer that it has got."""
    (beacon,) = local.beacons(1)
    release = upload(local.admin(), "2.0.0", tmp_path, channel="stable")["firmware_id"]
    local.admin().create_rollout(release, EVERYBODY)
    local.step()
    return beacon, beacon.offered()


@pytest.mark.parametrize("change", STOPS.values(), ids=STOPS)
def test_rebooting_is_not_acknowledged_after_a_halt_elsewhere(local, elsewhere, offered, change):
    beacon, offer = offered
    assert beacon.download(offer).status == 200
    elsewhere.execute(change)
    for word in ("verifying", "rebooting"):
        answer = beacon.report(word, offer)
        assert (answer.status, answer.json["code"]) == (410, "rollout_halted")
    row = elsewhere.attempt(offer["attempt_id"])
    assert row["rebooting_at"] is None and row["result"] is None
    assert not elsewhere.execute("SELECT id FROM reports WHERE status = 'rebooting'")


def test_nothing_is_taken_after_a_halt_elsewhere(elsewhere, offered):
    beacon, offer = offered
    elsewhere.execute(CHANGES["halted"])
    assert beacon.download(offer).status == 409
    assert beacon.report("downloading", offer).status == 410
    assert elsewhere.attempt(offer["attempt_id"])["taken_at"] is None


def test_who_is_rebooting_already_is_not_called_back(elsewhere, offered):
    beacon, offer = offered
    assert beacon.download(offer).status == 200
    assert beacon.report("rebooting", offer).status == 200
    elsewhere.execute(CHANGES["halted"])
    assert beacon.report("rebooting", offer).status == 200  # its answer was lost


def test_an_attempt_that_ended_elsewhere_is_over(elsewhere, offered):
    beacon, offer = offered
    assert beacon.download(offer).status == 200
    elsewhere.attempt(offer["attempt_id"], result="stopped", ended_at=1.0)
    answer = beacon.report("rebooting", offer)
    assert (answer.status, answer.json["code"]) == (409, "attempt_over")
