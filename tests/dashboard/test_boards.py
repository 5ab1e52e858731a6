"""Beacons that are another board than was typed, and those that are refused, on the pages."""

import json

from tests.dashboard.web import Signed
from tests.orchestrator.world import beacons, until, upload

ANY_TIME = {"preset": "all-at-once", "window": "00:00-24:00"}
LARGE = "esp32c3-8mb"
BAD = "/firmwares/latest/esp32c3?version=odd"


def test_a_board_is_questioned_accepted_and_its_rollout_named(server, signed, tmp_path):
    admin = server.admin()
    one, other = beacons(server, 2, "board-")
    for beacon in (one, other):
        assert beacon.poll().status == 204
    made = {
        board: upload(admin, "3.0.0", tmp_path, device_type=board, channel="stable")
        for board in ("esp32c3", LARGE)
    }
    rollout = admin.create_rollout(made["esp32c3"]["firmware_id"], ANY_TIME)["rollout_id"]
    other.device_type = LARGE
    assert other.poll().headers["x-reason"] == "board"
    page = signed.page(f"/beacons/{other.id}")
    assert page.all("span", cls="b-board")
    (alarm,) = page.all("p", cls="alarm")
    assert f"it says that it is {LARGE}" in alarm.text
    assert "badge b-board" in signed.get("/beacons?state=board").text
    tile = [li for li in signed.page("/").all("li") if "t-board" in li.classes]
    assert len(tile) == 1 and "1" in tile[0].text
    missed = signed.page(f"/rollouts/{rollout}").all("p", data_missed="questioned")
    assert len(missed) == 1 and "Not covered: 1 " in missed[0].text
    # What its button sends.
    (form,) = [form for form in page.all("form") if form["data-api"].endswith("/retype")]
    fields = {
        field["name"]: field["value"]
        for field in page.all("input", name="device_type")
        if "data-number" not in field.attributes
    }
    done = signed.call("POST", form["data-api"], {**fields, "reason": ""})
    assert done.status_code == 200 and done.json()["device_type"] == LARGE
    (found,) = signed.page(f"/rollouts/{rollout}").all("p", data_missed=LARGE)
    assert f"beacon-ota rollout create {LARGE}/3.0.0" in found.text
    theirs = admin.create_rollout(made[LARGE]["firmware_id"], ANY_TIME)["rollout_id"]
    assert f'href="/rollouts/{theirs}"' in signed.get(f"/rollouts/{rollout}").text
    other.update(other.offered())
    assert signed.page(f"/beacons/{other.id}").all("span", cls="b-valid")
    assert f"is registered as {LARGE}, and was as esp32c3" in signed.get("/activity").text


def test_a_beacon_that_is_refused_says_so_on_its_page(server, signed):
    (beacon,) = beacons(server, 1, "refused-")
    for _ in range(3):
        assert beacon.call("GET", BAD).status == 422
    page = signed.page(f"/beacons/{beacon.id}")
    assert page.all("span", cls="b-refused") and not page.all("span", cls="b-valid")
    (alarm,) = page.all("p", cls="alarm")
    assert "3 times" in alarm.text and "poll_query" in alarm.text
    until(lambda: "is refused at every poll, poll_query" in signed.get("/activity").text)
    told = [
        one for one in server.admin().list_latest_events(1000) if one["kind"] == "beacon.refused"
    ]
    assert [one["subject"] for one in told] == [beacon.id]
    beacon.poll()
    page = signed.page(f"/beacons/{beacon.id}")
    assert not page.all("p", cls="alarm")
    assert "Last refused" in json.dumps([one.text for one in page.all("dt")])


def test_a_key_that_does_not_fit_is_said_at_the_beacon(server, signed):
    (beacon,) = beacons(server, 1, "key-")
    beacon.poll()
    right, beacon.key = beacon.key, bytes(32)
    for _ in range(2):
        beacon.call("GET", BAD, check=False)
    (note,) = signed.page(f"/beacons/{beacon.id}").all("p", data_claim="bad_mac")
    assert note.text.startswith("2 requests in its name")
    beacon.key = right
    beacon.poll()
    assert not signed.page(f"/beacons/{beacon.id}").all("p", data_claim="bad_mac")


def test_a_viewer_has_no_button_for_it(server):
    (beacon,) = beacons(server, 1, "view-")
    beacon.poll()
    beacon.device_type = LARGE
    beacon.poll()
    token = server.admin().create_token("viewer", "viewer")["token"]
    page = Signed(server.url, token).page(f"/beacons/{beacon.id}")
    assert page.all("p", cls="alarm") and not page.all("form", data_method="POST")
