"""What is known about a mirror, and what one may do that is cut off."""

import hashlib
import json

import pytest
import requests

from beacon_ota import __version__
from beacon_ota.errors import BeaconOtaError, InputError, UsageError
from beacon_ota.orchestrator.db.tables import mirror_books, outbox
from beacon_ota.orchestrator.db.tables import mirrors as primary_store
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.mirror import sync as mirrors
from beacon_ota.orchestrator.mirror.images import Images
from beacon_ota.orchestrator.mirror.watch import MirrorWatch
from tests.orchestrator.core.test_stop_manager import signed_in
from tests.orchestrator.elsewhere import Elsewhere
from tests.orchestrator.mirror.test_sync import CALM, EVERYBODY, Scene
from tests.orchestrator.uplinks import Uplink
from tests.orchestrator.world import Local, ManualClock, until, upload

DEADLINE_S = 120.0
DAY = 86400.0
STATUSES = {"halt": "halted", "pause": "paused", "abort": "aborted"}


@pytest.fixture
def scene(tmp_path, monkeypatch):
    from contextlib import ExitStack

    monkeypatch.setattr(mirrors, "SYNC_S", 0.1)
    with ExitStack() as stack:
        yield Scene(tmp_path, stack)


def waited_for(scene, rollout: str) -> list[str]:
    return [one["mirror"] for one in scene.admin.get_rollout(rollout)["unconfirmed"]]


def confirmed(scene, rollout: str) -> None:
    until(lambda: not waited_for(scene, rollout), deadline_s=DEADLINE_S, what="a confirmation")


def listed(scene):
    (one,) = scene.admin.list_mirrors()
    return one


def is_listed(scene, health: str):
    return until(
        lambda: (one := listed(scene))["health"] == health and one,
        deadline_s=DEADLINE_S,
        what=f"the mirror to be listed as {health}",
    )


def health(scene):
    return requests.get(scene.mirror.url + "/health", timeout=60).json()


def look(scene) -> None:
    scene.primary.call(MirrorWatch(scene.primary.service).look())


def told(scene, kind: str):
    rows = scene.admin.list_latest_events(500)
    return [one for one in rows if one["kind"] == kind]


# ---- a stop, and who acts on it ----


@pytest.mark.parametrize("verb", ["halt", "pause", "abort"])
def test_a_stop_names_the_mirrors_that_have_not_confirmed_it(scene, verb):
    scene.beacons(1)
    rollout = scene.release()
    scene.here(rollout)
    is_listed(scene, "ok")
    scene.down()
    at = scene.clock.now()
    scene.clock.at += 600
    done = scene.admin.post_rollout_action(rollout, verb, "enough")
    (one,) = done["unconfirmed"]
    assert (one["mirror"], one["mirror_id"], one["site"]) == ("lan-a", scene.id, "a")
    assert one["since"][:19] == done["changed_at"][:19] and one["hands_out"]

    def agree() -> bool:
        (one,) = scene.admin.get_rollout(rollout)["unconfirmed"]
        known = listed(scene)
        return all(known[name] == one[name] for name in ("seen_at", "hands_out_until"))

    # A last word that was under way when the line was cut may arrive between the two questions.
    until(agree, deadline_s=DEADLINE_S, what="one word about when the mirror was heard")
    assert waited_for(scene, rollout) == ["lan-a"]
    scene.clock.at = at + 600 + DAY + 1
    (one,) = scene.admin.get_rollout(rollout)["unconfirmed"]
    assert not one["hands_out"], "its lease is over, and it still has confirmed nothing"
    scene.uplink.restore()
    confirmed(scene, rollout)


def test_a_release_that_is_withdrawn_names_them_too(scene):
    scene.beacons(1)
    rollout = scene.release()
    scene.here(rollout)
    firmware = scene.admin.get_rollout(rollout)["firmware_id"]
    assert scene.admin.find_firmware(firmware)["unconfirmed"] == []
    scene.down()
    done = scene.admin.post_firmware_action(firmware, "deprecate", "bad")
    assert [one["mirror"] for one in done["unconfirmed"]] == ["lan-a"]
    scene.uplink.restore()
    until(lambda: not scene.admin.find_firmware(firmware)["unconfirmed"], deadline_s=DEADLINE_S)
    assert scene.mirror.service.fleet.releases[firmware].state == "deprecated"


def test_bytes_that_arrived_confirm_nothing(scene, monkeypatch):
    """What cannot be written down holds in memory at best; the mirror says so, and is no more
    trusted."""
    (beacon,) = scene.beacons(1)
    rollout = scene.release()
    scene.here(rollout)
    real = outbox.import_state

    def fails(conn, *args):
        raise RuntimeError("the disk is odd")

    monkeypatch.setattr(outbox, "import_state", fails)
    renewed = scene.mirror.service.lease.contact
    scene.admin.post_rollout_action(rollout, "halt", "enough")
    until(lambda: scene.mirror.service.mirror.error == "internal", deadline_s=DEADLINE_S)
    one = is_listed(scene, "failing")
    assert one["connected"] and one["error"]["code"] == "internal"
    assert "the disk is odd" in one["problem"]
    assert waited_for(scene, rollout) == ["lan-a"]
    entry = scene.mirror.service.fleet.rollouts[rollout]
    assert (entry.stored.status, entry.state.status) == ("active", "halted")
    found = health(scene)
    assert found["status"] == "stops_unstored" and found["mirror"]["error"] == "internal"
    scene.clock.at += DAY + 1  # it answers all the time, and its lease is over nevertheless
    assert scene.mirror.service.lease.contact == renewed
    assert not scene.mirror.service.mirror.hands_out and beacon.offer() is None
    monkeypatch.setattr(outbox, "import_state", real)
    confirmed(scene, rollout)
    assert scene.mirror.service.fleet.rollouts[rollout].state.status == "halted"
    is_listed(scene, "ok")
    assert health(scene)["status"] == "ok"


def test_a_stop_that_is_not_stored_is_confirmed_by_nobody(scene):
    """A mirror is told what is stored; until then it hands out, and is named."""
    scene.beacons(1)
    rollout = scene.release()
    scene.here(rollout)
    is_listed(scene, "ok")
    browser = signed_in(scene.primary)
    page = f"{scene.primary.url}/rollouts/{rollout}"
    with Elsewhere(scene.primary) as elsewhere:
        elsewhere.hold()
        done = scene.admin.post_rollout_action(rollout, "halt", "enough")
        found = scene.admin.get_rollout(rollout)
        text = browser.get(page, timeout=DEADLINE_S).text
        elsewhere.let_go()
    assert (done["stored"], found["stored"], found["status"]) == (False, False, "halted")
    for said in (done, found):
        (one,) = said["unconfirmed"]
        assert one["mirror"] == "lan-a" and one["hands_out"]
        assert one["since"][:19] == done["changed_at"][:19]
    assert "Not confirmed by mirror lan-a" in text
    confirmed(scene, rollout)
    scene.here(rollout, "halted")
    assert "Not confirmed" not in browser.get(page, timeout=DEADLINE_S).text


def no_image(*_args):
    raise InputError("image_sha256", "odd bytes came")


def test_a_mirror_that_cannot_write_says_so(scene):
    """It is not silent: the uplink is well, and whoever looks after it goes to its disk."""
    (beacon,) = scene.beacons(1)
    rollout = scene.release()
    scene.here(rollout)
    scene.known(1)
    scene.even()
    scene.admin.post_rollout_action(rollout, "halt", "enough")
    confirmed(scene, rollout)
    with Elsewhere(scene.mirror) as elsewhere:
        elsewhere.hold()
        beacon.poll()  # that it was heard is to be written down
        scene.clock.at += 61
        one = is_listed(scene, "failing")
        elsewhere.let_go()
    assert one["connected"] and one["error"]["code"] == "storage" and one["backlog"] >= 1
    is_listed(scene, "ok")


def test_a_mirror_that_cannot_mark_what_it_tells_says_so(scene):
    """What it has to tell is written down already; which exchange tells it cannot be."""
    (beacon,) = scene.beacons(1)
    rollout = scene.release()
    scene.here(rollout)
    scene.known(1)
    scene.even()
    is_listed(scene, "ok")
    scene.down()
    beacon.poll()
    scene.mirror.call(scene.mirror.service.flush_last_seen())
    with Elsewhere(scene.mirror) as elsewhere:
        elsewhere.hold()
        scene.uplink.restore()
        one = is_listed(scene, "failing")
        elsewhere.let_go()
    assert one["connected"] and one["error"]["code"] == "storage" and one["backlog"] >= 1
    is_listed(scene, "ok")


def test_a_halt_reaches_a_mirror_whose_image_is_damaged(scene, monkeypatch):
    scene.beacons(1)
    rollout = scene.release()
    scene.here(rollout)
    firmware = scene.admin.get_rollout(rollout)["firmware_id"]
    row = scene.mirror.service.fleet.releases[firmware].row
    scene.down()
    monkeypatch.setattr(Images, "_download", no_image)  # nowhere to be had again
    scene.mirror.service.blobs.path(row["blob"]).write_bytes(b"rot")
    scene.mirror.stop()
    scene.mirror.start()
    until(
        lambda: scene.mirror.service.fleet.releases[firmware].row["damaged_at"],
        deadline_s=DEADLINE_S,
    )
    scene.admin.post_rollout_action(rollout, "halt", "enough")
    scene.uplink.restore()
    scene.here(rollout, "halted")
    confirmed(scene, rollout)
    assert scene.mirror.service.fleet.releases[firmware].state == "deprecated"
    assert is_listed(scene, "failing")["error"]["code"] == "image_sha256"


def test_a_mirror_that_starts_again_says_what_it_acts_on(scene):
    scene.beacons(1)
    rollout = scene.release()
    scene.here(rollout)
    scene.admin.post_rollout_action(rollout, "halt", "enough")
    confirmed(scene, rollout)
    scene.mirror.stop()
    assert waited_for(scene, rollout) == []
    scene.mirror.start()
    until(lambda: scene.mirror.service.mirror._have, deadline_s=DEADLINE_S)
    assert scene.mirror.service.fleet.rollouts[rollout].state.status == "halted"
    assert waited_for(scene, rollout) == []


def test_entries_of_another_history_confirm_nothing(scene):
    """After a primary was restored, a number alone may be another entry's."""
    scene.beacons(1)
    rollout = scene.release()
    scene.here(rollout)
    scene.mirror.stop()
    scene.admin.post_rollout_action(rollout, "halt", "enough")
    mirror = type(scene.admin)(scene.primary.url, scene.token)
    for moves in ("999.0123456789abcdef", "3.0123456789abcdef", "", "x", "-1.", "9" * 40, 7, None):
        body = {"epoch": "0" * 24, "status": {"moves": moves}}
        reply = mirror.call("POST", "/api/mirror/sync", json=body)
        assert waited_for(scene, rollout) == ["lan-a"], moves
    body = {"epoch": "0" * 24, "status": {"moves": reply["moves"]}}
    mirror.call("POST", "/api/mirror/sync", json=body)
    assert waited_for(scene, rollout) == []


def test_a_mirror_of_the_release_before_confirms_with_the_digest_of_what_it_has(scene):
    scene.beacons(1)
    rollout = scene.release()
    scene.here(rollout)
    scene.mirror.stop()
    scene.admin.post_rollout_action(rollout, "halt", "enough")
    mirror = type(scene.admin)(scene.primary.url, scene.token)
    body = {"epoch": "0" * 24, "have": "1", "status": {"backlog": 0, "version": "0.0.9"}}
    mirror.call("POST", "/api/mirror/sync", json=body)
    reply = mirror.call("POST", "/api/mirror/sync", json=body)
    assert waited_for(scene, rollout) == ["lan-a"]
    assert listed(scene)["hands_out_until"] is None, "it knows of no lease"
    mirror.call("POST", "/api/mirror/sync", json={**body, "have": reply["etag"]})
    assert waited_for(scene, rollout) == []


# ---- the lease ----


def test_what_a_mirror_does_whose_lease_is_over(scene, caplog):
    """Nothing new is handed out; whoever has begun is served to the end, and heard."""
    begun, trial, idle, offered = scene.beacons(4)
    rollout = scene.release(plan={**CALM, "offer": "3d", "gate": {**CALM["gate"], "silence": "9d"}})
    scene.here(rollout)
    scene.known(4)
    first, second, third = begun.offered(), trial.offered(), offered.offered()
    head = begun.download(first, {"Range": "bytes=0-99"})
    assert trial.download(second).status == 200
    assert trial.report("rebooting", second).status == 200
    scene.even()
    scene.down()
    scene.clock.at += DAY
    assert idle.offer() is not None, "to the end of its lease"
    scene.clock.at += 1
    assert health(scene)["mirror"] | {"silent_s": 0, "error": ""} == {
        "in_step": False,
        "error": "",
        "silent_s": 0,
        "hands_out": False,
        "lease_left_s": 0,
        "skew_s": 0,
    }
    for beacon in (idle, offered):
        answer = beacon.poll()
        assert answer.status == 204 and answer.headers["x-reason"] == "lease"
        assert 1 <= int(answer.headers["retry-after"]) <= 90
    answer = offered.download(third)
    assert answer.status == 410 and answer.json["code"] == "mirror_lease"
    assert offered.report("downloading", third).status == 410
    assert offered.report("idle").status == 200
    until(lambda: "nothing new is handed out" in caplog.text, deadline_s=DEADLINE_S)
    # What was begun is offered again, downloaded to the end, and reported.
    again = begun.offered()
    assert again["attempt_id"] == first["attempt_id"]
    rest = begun.download(again, {"Range": "bytes=100-", "If-Range": f'"{first["checksum"]}"'})
    assert (head.status, rest.status) == (206, 206)
    assert hashlib.sha256(head.body[:100] + rest.body).hexdigest() == first["checksum"]
    assert begun.report("rebooting", again).status == 200
    begun.install(again)
    begun.state = "trial"
    assert begun.poll().status == 204
    assert begun.report("success", again, previous_version="1.0.0").json["recorded"] == "first"
    rolled = trial.report("rolled_back", second, stage="boot", code="crash", detail="x")
    assert rolled.json["recorded"] == "first"
    # A restart does not begin the lease anew.
    scene.mirror.stop()
    scene.mirror.start()
    scene.to_mirror(idle)
    assert idle.poll().headers["x-reason"] == "lease"
    scene.uplink.restore()
    until(idle.offer, deadline_s=DEADLINE_S, what="releases to be handed out again")
    assert health(scene)["mirror"]["hands_out"]
    until(lambda: "releases are handed out again" in caplog.text, deadline_s=DEADLINE_S)


def test_how_long_a_lease_is_can_be_chosen(tmp_path, scene):
    made = scene.admin.create_mirror("lan-b", "b")
    (beacon,) = scene.primary.beacons(1, "c", site="b")
    rollout = scene.release()
    given = {"upstream": scene.uplink.url, "upstream_token": made["token"], "lease_s": 600.0}
    with Local(tmp_path / "short", clock=scene.clock, **given) as short:
        until(lambda: rollout in short.service.fleet.rollouts, deadline_s=DEADLINE_S)
        until(
            lambda: any(one["lease_s"] == 600 for one in scene.admin.list_mirrors()),
            deadline_s=DEADLINE_S,
        )
        scene.uplink.cut()
        until(lambda: short.service.mirror.error is not None, deadline_s=DEADLINE_S)
        beacon.connect(short.url)
        scene.clock.at += 601
        assert beacon.poll().headers["x-reason"] == "lease"


def test_a_mirror_that_was_given_up_hands_out_nothing(scene):
    (beacon,) = scene.beacons(1)
    rollout = scene.release()
    scene.here(rollout)
    scene.admin.remove_mirror(scene.id)
    until(
        lambda: beacon.poll().headers.get("x-reason") == "lease",
        deadline_s=DEADLINE_S,
        what="the mirror to notice that it was given up",
    )
    assert health(scene)["mirror"]["error"] == "token_wrong"


# ---- health, as it crosses ----


def test_a_mirror_that_falls_silent_becomes_an_event_once_and_its_return_another(scene):
    scene.beacons(1)
    look(scene)  # never seen, or well already: no news
    is_listed(scene, "ok")
    look(scene)
    assert not told(scene, "mirror.unhealthy") and not told(scene, "mirror.healthy")
    scene.down()
    since = listed(scene)["seen_at"]
    scene.clock.at += 61
    for _ in range(3):
        look(scene)
    (event,) = told(scene, "mirror.unhealthy")
    assert event["subject"] == "lan-a" and event["data"]["word"] == "silent"
    one = listed(scene)
    assert (one["health"], one["unhealthy_since"]) == ("silent", since)
    assert {site["path"]: site["mirrors"] for site in scene.admin.list_sites()} == {
        "a": [{"name": "lan-a", "health": "silent"}],
        "a/x": [{"name": "lan-a", "health": "silent"}],
        "b": [],
    }
    text = scene.admin.request("GET", "/metrics").text
    assert 'beacon_ota_mirror_healthy{mirror="lan-a"} 0.0' in text
    assert f'beacon_ota_mirror_lease_seconds{{mirror="lan-a"}} {DAY - 61}' in text
    own = scene.mirror.admin().request("GET", "/metrics").text
    assert 'beacon_ota_mirror_healthy{mirror=""} 0.0' in own
    scene.uplink.restore()
    is_listed(scene, "ok")
    look(scene)
    look(scene)
    assert len(told(scene, "mirror.healthy")) == 1
    assert 'beacon_ota_mirror_healthy{mirror="lan-a"} 1.0' in (
        scene.admin.request("GET", "/metrics").text
    )


def test_what_is_refused_of_a_mirror_is_seen_and_halts_arrive_all_the_same(scene, monkeypatch):
    """One row that the primary does not take must not cut the mirror off."""
    (beacon,) = scene.beacons(1)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    real = outbox.read_batch

    def newer(conn, limit):
        return [*real(conn, limit), outbox.Item(1 << 40, "telemetry", {"x": 1})]

    monkeypatch.setattr(outbox, "read_batch", newer)
    one = is_listed(scene, "refused")
    assert one["refused"]["code"] == "mirror_change" and one["connected"]
    assert "telemetry" in one["problem"] and __version__ in one["problem"]
    assert health(scene)["mirror"]["error"] == "mirror_change"
    scene.admin.post_rollout_action(rollout, "halt", "enough")
    confirmed(scene, rollout)
    assert beacon.poll().headers["x-reason"] == "halted"
    look(scene)
    assert told(scene, "mirror.unhealthy")[-1]["data"]["word"] in ("refused", "failing")
    monkeypatch.setattr(outbox, "read_batch", real)
    is_listed(scene, "ok")


def test_a_halt_that_is_told_in_vain_is_done_once(scene, monkeypatch):
    """What is told beside it is refused, again and again: who has resumed has seen the halt."""
    fleet = scene.beacons(3)
    rollout = scene.release()
    scene.here(rollout)
    scene.down()
    for beacon in fleet:
        scene.clock.at += 5
        beacon.fail(beacon.offered())
    scene.mirror.step()
    scene.here(rollout, "halted")
    real, told_again = outbox.read_batch, []

    def newer(conn, limit):
        told_again.append(0)
        return [*real(conn, limit), outbox.Item(1 << 40, "telemetry", {"x": 1})]

    monkeypatch.setattr(outbox, "read_batch", newer)
    scene.uplink.restore()
    until(lambda: scene.admin.get_rollout(rollout)["status"] == "halted", deadline_s=DEADLINE_S)
    scene.admin.post_rollout_action(rollout, "resume", "looked at it")
    told_again.clear()
    until(lambda: len(told_again) >= 3, deadline_s=DEADLINE_S)
    kinds = [one["kind"] for one in scene.admin.get_rollout(rollout)["transitions"]]
    assert kinds.count("halted") == 1 and kinds[-1] == "resumed"
    monkeypatch.setattr(outbox, "read_batch", real)
    scene.here(rollout)
    is_listed(scene, "ok")


def test_a_primary_that_fails_at_what_it_is_told_halts_all_the_same(scene, monkeypatch):
    (beacon,) = scene.beacons(1)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    real = primary_store.import_changes

    def fails(conn, mirror_id, epoch, changes, *args):
        if changes:
            raise RuntimeError("a defect")
        return real(conn, mirror_id, epoch, changes, *args)

    monkeypatch.setattr(primary_store, "import_changes", fails)
    beacon.report("idle")
    assert is_listed(scene, "failing")["error"]["code"] == "internal"
    scene.admin.post_rollout_action(rollout, "halt", "enough")
    confirmed(scene, rollout)
    assert beacon.poll().headers["x-reason"] == "halted"
    monkeypatch.setattr(primary_store, "import_changes", real)
    scene.even()
    is_listed(scene, "ok")


def test_a_mirror_whose_image_does_not_come_says_so(scene, monkeypatch):
    scene.beacons(1)
    scene.known(1)
    monkeypatch.setattr(Images, "_download", no_image)
    rollout = scene.release()
    one = is_listed(scene, "failing")
    firmware = scene.admin.get_rollout(rollout)["firmware_id"]
    assert firmware in one["problem"] and "odd bytes came" in one["problem"]
    assert health(scene)["mirror"]["error"] == "image_sha256"
    scene.admin.post_rollout_action(rollout, "abort", "bad")  # nobody wants it any more
    is_listed(scene, "ok")


# ---- clocks ----


@pytest.mark.parametrize("lead", [45.0, -400.0])
def test_a_clock_that_is_off_is_told_and_shown(tmp_path, monkeypatch, lead):
    monkeypatch.setattr(mirrors, "SYNC_S", 0.1)
    with Local(tmp_path / "primary") as primary, Uplink(primary.url) as uplink:
        admin = primary.admin()
        made = admin.create_mirror("lan", "")
        clock = ManualClock(primary.clock.at + lead)
        given = {"upstream": uplink.url, "upstream_token": made["token"]}
        with Local(tmp_path / "mirror", clock=clock, **given) as mirror:

            def listed_as(word: str):
                return until(
                    lambda: (one := admin.list_mirrors()[0])["health"] == word and one,
                    deadline_s=DEADLINE_S,
                    what=f"the mirror to be {word}",
                )

            one = listed_as("clock")
            assert one["skew_s"] == lead and f"{lead:+.0f} s" in one["problem"]
            text = admin.request("GET", "/metrics").text
            assert f'beacon_ota_mirror_clock_skew_seconds{{mirror="lan"}} {lead}' in text
            found = requests.get(mirror.url + "/health", timeout=60).json()
            assert found["status"] == "degraded" and found["mirror"]["skew_s"] == lead
            assert found["mirror"]["error"] == "clock_skew" and found["mirror"]["in_step"]
            clock.at -= lead
            assert listed_as("ok")["skew_s"] == 0


# ---- two releases ----


def test_a_newer_mirror_and_this_primary(scene):
    """Fields that are unknown are let go; a protocol or a kind that is unknown is refused."""
    scene.mirror.stop()
    mirror = type(scene.admin)(scene.primary.url, scene.token)
    status = {"version": "9.9.9", "moods": ["x"], "error": {"odd": 1}, "lease_s": "long"}
    body = {"epoch": "0" * 24, "future": {"a": 1}, "status": status}
    reply = mirror.call("POST", "/api/mirror/sync", json=body)
    assert reply["protocol"] == 1 and reply["version"] == __version__
    one = listed(scene)
    assert (one["version"], one["error"], one["lease_s"]) == ("9.9.9", None, None)
    with pytest.raises(InputError) as caught:
        changes = [{"seq": 1, "what": "telemetry", "row": {"id": "x"}}]
        mirror.call("POST", "/api/mirror/sync", json={**body, "changes": changes})
    assert caught.value.code == "mirror_change" and "telemetry" in str(caught.value)
    assert "9.9.9" in is_listed(scene, "refused")["problem"]
    with pytest.raises(UsageError) as caught:
        mirror.call("POST", "/api/mirror/sync", json={**body, "protocol": 2})
    assert caught.value.code == "mirror_protocol"
    for said in (str(caught.value), is_listed(scene, "refused")["problem"]):
        assert "9.9.9" in said and __version__ in said
    mirror.call("POST", "/api/mirror/sync", json=body)
    is_listed(scene, "ok")


def test_a_newer_primary_and_this_mirror(scene, monkeypatch, caplog):
    beacon, other = scene.beacons(2)
    rollout, known = scene.release(), scene.release("1.2.0", {**EVERYBODY, "window": "03:00-04:00"})
    scene.here(rollout)
    scene.here(known)
    real = primary_store.export_state

    def newer(conn, mirror, fresh):
        found = real(conn, mirror, fresh)
        found["policies"] = [{"id": "p", "rule": {}}]
        for rows in found.values():
            for row in rows:
                row["colour"] = "blue"
        return found

    monkeypatch.setattr(primary_store, "export_state", newer)
    scene.admin.change_beacon(other.id, tags=["lobby"])
    until(
        lambda: scene.mirror.service.fleet.beacons[other.id].beacon.tags, deadline_s=DEADLINE_S
    )  # what is unknown is let go
    assert scene.mirror.service.mirror.error is None

    def newest(conn, mirror, fresh):
        found = newer(conn, mirror, fresh)
        for row in found["rollouts"]:
            if row["id"] == rollout:
                row["status"] = "frozen"
                row["state"] = json.dumps({**json.loads(row["state"]), "status": "frozen"})
        return found

    monkeypatch.setattr(primary_store, "export_state", newest)
    one = is_listed(scene, "failing")
    assert one["error"]["code"] == "state_unread" and rollout in one["problem"]
    assert "frozen" in one["problem"] and __version__ in one["problem"]
    assert beacon.offer() is None, "what cannot be read is not handed out"
    scene.admin.post_rollout_action(known, "halt", "enough")
    scene.here(known, "halted")  # and the rest is taken
    confirmed(scene, known)
    scene.mirror.stop()
    scene.mirror.start()  # nothing that it has written down keeps it from starting
    is_listed(scene, "failing")
    assert scene.to_mirror(beacon).offer() is None
    monkeypatch.setattr(primary_store, "export_state", real)  # this mirror was upgraded
    scene.here(rollout)
    is_listed(scene, "ok")
    assert beacon.offered()["version"] == "1.1.0"
    assert not [record for record in caplog.records if record.exc_info], caplog.text


def test_a_primary_that_speaks_another_protocol_is_named_not_traced(scene, monkeypatch, caplog):
    monkeypatch.setattr("beacon_ota.orchestrator.mirror.state.PROTOCOL", 2)
    until(lambda: scene.mirror.service.mirror.error == "mirror_protocol", deadline_s=DEADLINE_S)
    assert __version__ in scene.mirror.service.mirror.why
    assert health(scene)["mirror"]["error"] == "mirror_protocol"
    is_listed(scene, "refused")
    assert not [record for record in caplog.records if record.exc_info], caplog.text


# ---- bounds that count before they filter ----


def test_a_limit_counts_what_is_asked_for(scene):
    firmware = upload(scene.admin, "1.1.0", scene.folder, channel="stable")["firmware_id"]
    made = [scene.admin.create_rollout(firmware, EVERYBODY)["rollout_id"] for _ in range(4)]
    scene.admin.post_rollout_action(made[0], "halt", "enough")
    rows = scene.admin.list_rollouts(status="halted", limit=2)
    assert [one["rollout_id"] for one in rows] == [made[0]]
    rows = scene.admin.list_rollouts(begins=made[0][:10], limit=1)
    assert [one["rollout_id"] for one in rows] == [made[0]]
    assert scene.admin.list_rollouts(begins="%", limit=1) == []
    with pytest.raises(BeaconOtaError):
        scene.admin.list_rollouts(begins="x" * 25)
    scene.admin.create_site("later")
    kinds = [one["kind"] for one in scene.admin.list_latest_events(1, "rollout.halted")]
    assert kinds == ["rollout.halted"], "what is asked for is counted, not what came since"


# ---- exchanges that do not follow what was taken ----


def test_an_answer_to_tell_all_again_renews_no_lease_and_confirms_nothing(scene, monkeypatch):
    """It gives nothing: what was halted meanwhile is not in force there."""
    scene.beacons(1)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    pages, real = [], mirror_books.compare_page

    def parted(conn, mirror_id, page):
        pages.append(page)
        return mirror_books.BookComparison(0, False, True, False)

    mirror = scene.mirror.service.mirror
    monkeypatch.setattr(mirror_books, "compare_page", parted)
    until(lambda: mirror.error == "mirror_parted", deadline_s=DEADLINE_S)
    contact, moves, applied = mirror.lease.contact, moves_at(scene), listed(scene)["applied"]
    scene.clock.at += 5
    scene.admin.post_rollout_action(rollout, "halt", "enough")
    count = len(pages)
    until(lambda: len(pages) > count + 8, deadline_s=DEADLINE_S)
    assert (mirror.lease.contact, moves_at(scene)) == (contact, moves)
    assert scene.mirror.service.fleet.rollouts[rollout].state.status == "active"
    one = is_listed(scene, "failing")
    assert one["error"]["code"] == "mirror_parted" and one["applied"] == applied
    monkeypatch.setattr(mirror_books, "compare_page", real)
    scene.here(rollout, "halted")
    confirmed(scene, rollout)
    is_listed(scene, "ok")


def test_what_was_taken_though_the_answer_failed_is_told_again_not_anew(scene, monkeypatch):
    """The call that follows has no mark; that it does not follow what was taken says nothing."""
    (beacon,) = scene.beacons(1)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    scene.even()
    epoch, real, failed = scene.mirror.service.mirror._epoch, primary_store.import_changes, []

    def take(conn, mirror_id, page, changes, *args):
        found = real(conn, mirror_id, page, changes, *args)
        if changes and not failed:
            failed.append(page.mark)
        return found

    state = primary_store.export_state

    def gives(*args):
        if len(failed) == 1:
            failed.append("")
            raise Problem(503, "busy", "a defect")
        return state(*args)

    monkeypatch.setattr(primary_store, "import_changes", take)
    monkeypatch.setattr(primary_store, "export_state", gives)
    beacon.update(beacon.offered())
    until(lambda: len(failed) == 2, deadline_s=DEADLINE_S)
    scene.even()
    until(
        lambda: scene.admin.get_rollout(rollout)["results"] == {"success": 1}, deadline_s=DEADLINE_S
    )
    assert scene.mirror.service.mirror._epoch == epoch
    is_listed(scene, "ok")


def moves_at(scene) -> str:
    return scene.mirror.call(scene.mirror.service.db.read(outbox.get_moves))
