"""A mirror and its primary, with the line between them cut at will."""

import json
import secrets
from contextlib import ExitStack

import pytest

from beacon_ota.errors import BeaconOtaError, DeniedError, InputError, UsageError
from beacon_ota.orchestrator.db.tables import outbox
from beacon_ota.orchestrator.mirror import sync as mirrors
from beacon_ota.orchestrator.server.listen import ListenOptions
from beacon_ota.orchestrator.server.start import run_orchestrator
from beacon_ota.orchestrator.settings import Settings
from tests.orchestrator.db.tables.test_keys import heard, take
from tests.orchestrator.uplinks import Uplink
from tests.orchestrator.world import Local, TestBeacon, image, until, upload

EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}
CALM = {**EVERYBODY, "gate": {"failure_sample": 10_000, "in_a_row": 10_000}}
DEADLINE_S = 60.0


class Scene:
    """A primary, one mirror of the site ``a``, and beacons that ask the mirror."""

    def __init__(self, folder, stack: ExitStack):
        self.folder = folder
        self.primary = stack.enter_context(Local(folder / "primary"))
        self.clock = self.primary.clock
        self.admin = self.primary.admin()
        for path in ("a", "a/x", "b"):
            self.admin.call("POST", "/api/sites", json={"path": path, "tz": "UTC"})
        self.uplink = stack.enter_context(Uplink(self.primary.url))
        made = self.admin.create_mirror("lan-a", "a")
        self.id, self.token = made["mirror_id"], made["token"]
        self.mirror = stack.enter_context(
            Local(
                folder / "mirror",
                clock=self.clock,
                upstream=self.uplink.url,
                upstream_token=self.token,
            )
        )

    def beacons(self, count: int, site: str = "a/x", prefix: str = "b") -> list[TestBeacon]:
        made = self.primary.beacons(count, prefix, site=site)
        return [self.to_mirror(beacon) for beacon in made]

    def to_mirror(self, beacon: TestBeacon) -> TestBeacon:
        beacon.connect(self.mirror.url)
        return beacon

    def release(self, version: str = "1.1.0", plan=None) -> str:
        firmware = upload(self.admin, version, self.folder, channel="stable")["firmware_id"]
        return self.admin.create_rollout(firmware, plan or EVERYBODY)["rollout_id"]

    def here(self, rollout: str, status: str = "active") -> None:
        """Wait until the mirror serves a rollout as it is."""

        def there() -> bool:
            entry = self.mirror.service.fleet.rollouts.get(rollout)
            return entry is not None and entry.state.status == status

        until(there, deadline_s=DEADLINE_S, what=f"the mirror to have the rollout {status}")

    def known(self, count: int) -> None:
        until(lambda: len(self.mirror.service.fleet.beacons) == count, deadline_s=DEADLINE_S)

    def even(self) -> None:
        """Wait until the primary has heard everything."""
        self.mirror.call(self.mirror.service.flush_last_seen())
        until(
            lambda: not self.mirror.call(self.mirror.service.db.read(outbox.backlog_size)),
            deadline_s=DEADLINE_S,
            what="the mirror to have told everything",
        )

    def down(self) -> None:
        self.uplink.cut()
        until(lambda: self.mirror.service.mirror.error is not None, deadline_s=DEADLINE_S)


@pytest.fixture
def scene(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(mirrors, "SYNC_S", 0.1)
    with ExitStack() as stack:
        yield Scene(tmp_path, stack)
    failures = [record for record in caplog.records if record.exc_info]
    assert not failures, caplog.text


def test_a_whole_update_through_a_mirror(scene):
    (beacon,) = scene.beacons(1)
    (elsewhere,) = scene.beacons(1, site="b", prefix="other")
    rollout = scene.release()
    scene.here(rollout)
    assert list(scene.mirror.service.fleet.beacons) == [beacon.id]
    refused = elsewhere.call("GET", "/firmwares/latest/esp32c3?version=1.0.0", check=False)
    assert refused.json["code"] == "unknown_beacon"
    offer = beacon.offered()
    assert beacon.download(offer).body == image("1.1.0")
    journal = [[1, 0, "boot", "power", "x"]]
    assert beacon.report("rebooting", offer, journal=journal).status == 200
    beacon.install(offer)
    assert beacon.report("success", offer, previous_version="1.0.0").status == 200
    beacon.poll()
    scene.even()
    shown = scene.admin.get_beacon(beacon.id)
    assert shown["version"] == "1.1.0" and shown["last_seen"]
    assert [one["result"] for one in shown["attempts"]] == ["success"]
    assert [one["status"] for one in shown["reports"]] == ["success", "rebooting"]
    assert [one["detail"] for one in shown["journal"]] == ["x"]
    kinds = [
        (one["kind"], one["data"].get("mirror"))
        for one in scene.admin.call("GET", "/api/events/latest")["events"]
    ]
    assert kinds.count(("attempt.success", "lan-a")) == 1
    elsewhere.connect(scene.primary.url)
    elsewhere.update(elsewhere.offered())
    scene.primary.step()
    found = scene.admin.get_rollout(rollout)
    assert found["results"] == {"success": 2} and found["status"] == "completed"
    scene.here(rollout, "completed")
    (listed,) = scene.admin.list_mirrors()
    assert (
        listed["connected"] and listed["backlog"] == 0 and listed["releases"] == ["esp32c3/1.1.0"]
    )
    assert listed["url"] == scene.mirror.url
    for where, name in ((scene.primary, "lan-a"), (scene.mirror, "")):
        text = where.admin().request("GET", "/metrics").text
        assert f'beacon_ota_mirror_backlog{{mirror="{name}"}} 0.0' in text
        assert f'beacon_ota_mirror_silent_seconds{{mirror="{name}"}}' in text


def test_a_day_without_uplink_and_a_restart(scene, tmp_path):
    """What happened meanwhile is told in order and once; who was out of sight was not lost."""
    fleet = scene.beacons(6)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    under_way = fleet[0].offered()
    assert fleet[0].download(under_way).status == 200
    scene.even()
    scene.down()
    for beacon in fleet[1:4]:
        beacon.update(beacon.offered())
    fleet[4].fail(fleet[4].offered())
    scene.mirror.stop()
    for _ in range(24):
        scene.clock.at += 3600
        scene.primary.step()
    scene.mirror.start()
    shown = scene.admin.get_rollout(rollout)
    assert shown["results"] == {"open": 1}, "the primary gives up nobody that a mirror hears"
    (listed,) = scene.admin.list_mirrors()
    assert not listed["connected"] and listed["silent_s"] >= 86400
    late, last = scene.to_mirror(fleet[0]), scene.to_mirror(fleet[5])
    late.install(under_way)
    assert late.report("success", under_way, previous_version="1.0.0").status == 200
    last.update(last.offered())
    assert scene.mirror.call(scene.mirror.service.db.read(outbox.backlog_size)) > 10
    scene.uplink.restore()
    scene.even()
    shown = scene.admin.get_rollout(rollout)
    assert shown["results"] == {"success": 5, "failed": 1}
    rows = list(scene.admin.list_attempts(rollout))
    assert sorted(one["beacon_id"] for one in rows) == sorted(beacon.id for beacon in fleet)
    events = [
        one
        for one in scene.admin.call("GET", "/api/events/latest", params={"limit": 500})["events"]
        if one["kind"] in ("attempt.success", "attempt.failed")
    ]
    assert len(events) == 6
    assert [one["at"] for one in events] == sorted(one["at"] for one in events)
    for beacon in fleet:
        found = scene.admin.get_beacon(beacon.id)
        words = [one["status"] for one in found["reports"]][::-1]
        assert len(words) == len(set(words)) and words[-1] in ("success", "failed")


def test_an_exchange_whose_answer_is_lost_is_told_again_and_taken_once(scene):
    (beacon,) = scene.beacons(1)
    rollout = scene.release()
    scene.here(rollout)
    scene.down()
    beacon.update(beacon.offered())
    for budget in (1, 40, 200):  # the answer breaks off; what was told is told again
        scene.uplink.restore()
        scene.uplink.budget = budget
        scene.mirror.loop.call_soon_threadsafe(scene.mirror.service.mirror.wake)
        until(lambda: scene.uplink.budget == 0, deadline_s=DEADLINE_S)
    scene.uplink.restore()
    scene.even()
    found = scene.admin.get_beacon(beacon.id)
    assert [one["status"] for one in found["reports"]] == ["success", "rebooting"]
    assert scene.admin.get_rollout(rollout)["results"] == {"success": 1}
    kinds = [one["kind"] for one in scene.admin.call("GET", "/api/events/latest")["events"]]
    assert kinds.count("attempt.success") == 1


def test_the_mirror_opens_no_stage_and_stops_by_itself(scene):
    fleet = scene.beacons(40)
    scene.known(40)
    for beacon in fleet:
        beacon.poll()
    scene.even()
    plan = {
        "window": "00:00-24:00",
        "ladder": [{"share": 0.5, "soak": "1h"}, {"share": 1}],
        "gate": {"in_a_row": 3, "presence": "30d"},
    }
    rollout = scene.release(plan=plan)
    scene.here(rollout)
    scene.down()
    touched = [(beacon, offer) for beacon in fleet if (offer := beacon.offer())]
    assert 4 < len(touched) < 40
    scene.clock.at += 86400
    scene.mirror.step()
    assert scene.mirror.service.fleet.rollouts[rollout].state.waves[0].stage == 0
    # A failing release stops here although nobody can be asked.
    for beacon, _ in touched[:3]:
        offer = beacon.offered()
        assert beacon.download(offer).status == 200
        beacon.report("failed", offer, stage="verify", code="image", detail="x")
    scene.here(rollout, "halted")
    assert touched[-1][0].offer() is None
    assert scene.admin.get_rollout(rollout)["status"] == "active"
    scene.mirror.stop()
    scene.mirror.start()  # and it stays so
    scene.here(rollout, "halted")
    scene.uplink.restore()
    until(lambda: scene.admin.get_rollout(rollout)["status"] == "halted", deadline_s=DEADLINE_S)
    scene.even()
    shown = scene.admin.get_rollout(rollout)
    assert shown["by"] == "mirror lan-a" and shown["results"]["failed"] == 3
    scene.even()
    scene.admin.post_rollout_action(rollout, "resume", "looked at it")
    scene.here(rollout)
    scene.to_mirror(touched[-1][0])
    until(lambda: touched[-1][0].offer(), deadline_s=DEADLINE_S)


def test_what_is_done_at_the_primary_reaches_the_mirror(scene):
    one, two = scene.beacons(2)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    offer = one.offered()
    assert one.download(offer).status == 200
    scene.admin.post_rollout_action(rollout, "halt", "enough")
    scene.here(rollout, "halted")
    assert one.report("rebooting", offer).status in (409, 410)
    until(
        lambda: scene.admin.get_rollout(rollout)["results"] == {"stopped": 1}, deadline_s=DEADLINE_S
    )
    scene.admin.post_rollout_action(rollout, "abort", "over")
    until(lambda: rollout not in scene.mirror.service.fleet.rollouts, deadline_s=DEADLINE_S)
    scene.admin.call("DELETE", f"/api/beacons/{two.id}")
    scene.known(1)
    (three,) = scene.beacons(1, site="b", prefix="moved")
    scene.admin.change_beacon(three.id, site="a")
    scene.known(2)
    assert three.poll().status == 204


def test_a_new_key_learned_at_the_mirror(scene):
    (beacon,) = scene.beacons(1)
    scene.known(1)
    scene.admin.call("POST", f"/api/beacons/{beacon.id}/rekey")
    until(lambda: scene.mirror.service.fleet.beacons[beacon.id].next_key, deadline_s=DEADLINE_S)
    scene.down()
    from beacon_ota.orchestrator.beacon_api.auth import wrap_new_key
    from beacon_ota.wire import auth_header

    answer = beacon.report("idle")
    new = answer.json["rekey"]
    nonce = auth_header.parse_header(beacon.last_header)[2]  # type: ignore[index]
    beacon.key = bytes.fromhex(wrap_new_key(beacon.key, bytes.fromhex(new), nonce))
    assert beacon.poll().status == 204
    scene.uplink.restore()
    scene.even()
    until(lambda: not scene.admin.get_beacon(beacon.id)["rekeying"], deadline_s=DEADLINE_S)
    beacon.connect(scene.primary.url)
    assert beacon.poll().status == 204
    scene.to_mirror(beacon)
    assert beacon.poll().status == 204


@pytest.mark.parametrize("heard_by", ["mirror", "primary"])
def test_keys_given_while_a_mirror_hands_one_out(scene, heard_by):
    """The beacon has the first; the primary has given two more meanwhile, and knows nothing."""
    (beacon,) = scene.beacons(1)
    scene.known(1)
    scene.admin.post_beacon_action(beacon.id, "rekey")
    until(lambda: scene.mirror.service.fleet.beacons[beacon.id].next_key, deadline_s=DEADLINE_S)
    scene.down()
    take(beacon, beacon.report("idle"))
    assert beacon.poll().status == 204
    put = secrets.token_bytes(32)
    scene.admin.post_beacon_action(beacon.id, "rekey")
    scene.admin.set_beacon_key(beacon.id, put.hex())
    if heard_by == "primary":
        beacon.connect(scene.primary.url)
        assert beacon.poll().status == 204
    scene.uplink.restore()
    scene.even()
    scene.to_mirror(beacon)
    until(lambda: scene.mirror.service.fleet.beacons[beacon.id].next_key, deadline_s=DEADLINE_S)
    assert heard(beacon) == put
    until(lambda: not scene.admin.get_beacon(beacon.id)["rekeying"], deadline_s=DEADLINE_S)
    beacon.connect(scene.primary.url)
    assert beacon.poll().status == 204


def test_an_image_is_fetched_from_where_it_broke_off(scene):
    scene.beacons(1)
    scene.known(1)
    scene.down()
    firmware = upload(scene.admin, "1.1.0", scene.folder, channel="stable")
    rollout = scene.admin.create_rollout(firmware["firmware_id"], EVERYBODY)["rollout_id"]
    sent = scene.primary.service.counts
    part = scene.mirror.service.blobs.partial_path(firmware["blob"])
    seen = set()
    for _ in range(30):
        scene.uplink.restore()
        scene.uplink.budget = 7000
        scene.mirror.loop.call_soon_threadsafe(scene.mirror.service.mirror.wake)
        until(lambda: scene.uplink.budget == 0 or _has(scene, rollout), deadline_s=DEADLINE_S)
        if part.exists():
            seen.add(part.stat().st_size)
        if _has(scene, rollout):
            break
    scene.uplink.restore()
    scene.here(rollout)
    assert any(0 < size < firmware["size"] for size in seen)
    assert sent.downloads["206"] >= 1 and not part.exists()
    # Damage here is fetched anew, too.
    path = scene.mirror.service.blobs.path(firmware["blob"])
    path.write_bytes(b"rot")
    scene.mirror.stop()
    scene.mirror.start()
    until(lambda: path.exists() and path.read_bytes() == image("1.1.0"), deadline_s=DEADLINE_S)


def _has(scene, rollout: str) -> bool:
    return rollout in scene.mirror.service.fleet.rollouts


def test_who_may_what(scene):
    admin, mirror = scene.admin, scene.mirror.admin()
    with pytest.raises(UsageError) as caught:
        mirror.call("POST", "/api/sites", json={"path": "c"})
    assert caught.value.code == "mirror"
    stolen = type(admin)(scene.primary.url, scene.token)
    for method, path in (
        ("GET", "/api/beacons"),
        ("GET", "/api/tokens/me"),
        ("GET", "/metrics"),
        ("GET", "/"),
        ("POST", "/api/firmwares/upload"),
    ):
        with pytest.raises(DeniedError):
            stolen.call(method, path)
    body = {"epoch": "0" * 24, "changes": []}
    with pytest.raises(DeniedError) as caught:
        admin.call("POST", "/api/mirror/sync", json=body)
    assert caught.value.code == "not_a_mirror"
    with pytest.raises(UsageError):
        admin.create_mirror("lan-a", "b")
    with pytest.raises(InputError):
        admin.create_mirror("lan-c", "nowhere")
    admin.remove_mirror(scene.id)
    assert admin.list_mirrors() == []
    with pytest.raises(DeniedError):
        stolen.call("POST", "/api/mirror/sync", json=body)
    assert admin.create_mirror("lan-a", "b")["site"] == "b"


def test_a_mirror_tells_of_its_own_beacons_alone(scene):
    """Whatever a mirror sends that was taken over by somebody."""
    scene.down()
    (other,) = scene.beacons(1, site="b", prefix="other")
    rollout = scene.release()
    firmware = scene.admin.get_rollout(rollout)["firmware_id"]
    stolen = type(scene.admin)(scene.primary.url, scene.token)
    row = {
        "id": secrets.token_hex(12),
        "beacon_id": other.id,
        "firmware_id": firmware,
        "rollout_id": rollout,
        "wave": 0,
        "stage": 0,
        "n": 1,
        "offered_at": 1.0,
        "result": "failed",
    }

    def tell(seq: int, what: str, row: object) -> object:
        change = {"seq": seq, "what": what, "row": row}
        body = {"epoch": "1" * 24, "changes": [change]}
        return stolen.call("POST", "/api/mirror/sync", json=body)

    tell(1, "attempts", row)
    tell(2, "beacons", {"id": other.id, "version": "6.6.6", "last_seen": 9e9})
    tell(3, "reports", {"beacon_id": other.id, "at": 1.0, "status": "idle", "body": "{}", "id": 1})
    tell(4, "events", {"id": 1, "at": 1.0, "kind": "token.created", "subject": "x", "data": "{}"})
    tell(5, "halts", {"rollout_id": "nowhere", "reason": "x"})
    assert scene.admin.get_rollout(rollout)["results"] == {}
    shown = scene.admin.get_beacon(other.id)
    assert shown["version"] is None and shown["reports"] == []
    kinds = [one["kind"] for one in scene.admin.call("GET", "/api/events/latest")["events"]]
    assert "token.created" not in kinds
    for what, bad in (
        ("attempts", {**row, "n": "1"}),
        ("attempts", {**row, "result": "x" * 17}),
        ("attempts", {**row, "offered_at": None}),
        ("nothing", {}),
        ("events", {"id": 1, "at": 1.0, "kind": "attempt.x", "subject": "x", "data": 1}),
        ("events", {"id": 1, "at": 1.0, "kind": "attempt.x", "subject": "x", "data": "{"}),
        ("journal", {"beacon_id": other.id, "seq": -1}),
    ):
        with pytest.raises(InputError) as caught:
            tell(6, what, bad)
        assert caught.value.code == "mirror_change", (what, bad)
    assert scene.admin.list_mirrors()[0]["taken"] == 5


WRONG = {
    "attempts": [
        {"result": "pwned"},
        {"late_result": "pwned"},
        {"offered_at": -1e30},
        {"offered_at": 1e30},
        {"ended_at": float("nan")},
        {"taken_at": float("inf")},
        {"wave": 1},
        {"stage": 99},
        {"wave": -1},
        {"stage": 1 << 61},
        {"n": 0},
        {"failed_in": "pwned"},
        {"failed_in": "boot", "code": "checksum"},
        {"from_version": "<b>"},
        {"from_image": "x"},
        {"detail": "\ud800"},
        {"detail": 7},
        {"bytes": -1},
        {"trials": 1e3},
        {"beacon_id": ["b0000"]},
        {"rollout_id": None},
    ],
    "beacons": [
        {"version": 1},
        {"version": "pwned"},
        {"image": "x"},
        {"state": "dead"},
        {"last_seen": "now"},
        {"last_seen": 1e300},
        {"address": {}},
        {"heap_free_min": -1},
        {"said_type": "Not A Board"},
        {"said_type": "x" * 33},
        {"refused_code": "<b>"},
        {"refused_at": -1.0},
        {"refusals": -1},
        {"clock_unset": "yes"},
    ],
    "reports": [
        {"at": -1e30},
        {"status": "pwned"},
        {"body": "[]"},
        {"body": "{"},
        {"body": '{"a":' + "[" * 5000},
        {"attempt_id": 1},
    ],
    "journal": [{"seq": 1 << 40}, {"utc": "x"}, {"stage": ""}, {"detail": None}],
    "events": [{"at": -1e30}, {"data": "7"}, {"data": '{"reason": NaN}'}, {"subject": 1}],
}


def test_what_a_stolen_mirror_tells_is_checked_field_by_field(scene):
    """Nothing of it is taken, no page breaks, and the primary starts again."""
    scene.down()
    (beacon,) = scene.beacons(1)
    rollout = scene.release()
    firmware = scene.admin.get_rollout(rollout)["firmware_id"]
    stolen = type(scene.admin)(scene.primary.url, scene.token)
    attempt_id = secrets.token_hex(12)
    good = {
        "attempts": {
            "id": attempt_id,
            "beacon_id": beacon.id,
            "firmware_id": firmware,
            "rollout_id": rollout,
            "wave": 0,
            "stage": 0,
            "n": 1,
            "offered_at": 1.0,
            "ended_at": 2.0,
            "result": "failed",
            "late_at": 3.0,
            "late_result": "success",
        },
        "beacons": {"id": beacon.id, "version": "1.0.0", "last_seen": 5.0},
        "reports": {"beacon_id": beacon.id, "at": 1.0, "status": "idle", "body": "{}"},
        "journal": {
            "beacon_id": beacon.id,
            "seq": 1,
            "digest": "ab",
            "utc": 0,
            "stage": "boot",
            "code": "power",
            "detail": "",
            "stored_at": 1.0,
        },
        "events": {
            "at": 1.0,
            "kind": "mirror.halted",
            "subject": rollout,
            "data": '{"reason": "x"}',
        },
    }

    def tell(seq: int, what: str, row: object, **more: object) -> None:
        change = {"seq": seq, "what": what, "row": row}
        body = json.dumps({"epoch": "1" * 24, "changes": [change], **more})
        headers = {"Content-Type": "application/json"}
        stolen.request("POST", "/api/mirror/sync", data=body, headers=headers)

    def pages() -> None:
        for path in (
            "/api/rollouts",
            f"/api/rollouts/{rollout}",
            f"/api/rollouts/{rollout}/attempts",
            f"/api/beacons/{beacon.id}",
            "/api/beacons",
            "/api/events/latest",
            "/api/mirrors",
            "/metrics",
        ):
            assert scene.admin.request("GET", path).status_code == 200, path

    for what, changes in WRONG.items():
        for change in changes:
            with pytest.raises(InputError) as caught:
                tell(1, what, {**good[what], **change})
            assert caught.value.code == "mirror_change", (what, change)
    assert scene.admin.get_rollout(rollout)["results"] == {}
    wrong = {"backlog": "x", "lag_s": [], "releases": [{}], "version": {"a": 1}, "url": 1}
    for seq, what in enumerate(good, 1):
        tell(seq, what, good[what], status=wrong)
    pages()
    (listed,) = scene.admin.list_mirrors()
    assert listed["taken"] == len(good)
    assert (listed["backlog"], listed["url"], listed["releases"]) == (None, None, [])
    scene.primary.stop()
    scene.primary.start()
    scene.admin = scene.primary.admin()
    pages()
    assert scene.admin.get_rollout(rollout)["results"] == {"failed": 1}


def test_a_mirror_makes_no_events_about_others(scene):
    scene.down()
    (mine,) = scene.beacons(1)
    (other,) = scene.beacons(1, site="b", prefix="other")
    scene.release()
    other.connect(scene.primary.url)
    theirs = other.offered()["attempt_id"]
    stolen = type(scene.admin)(scene.primary.url, scene.token)
    told = [
        ("beacon.withheld", other.id, {}),
        ("beacon.quarantined", mine.id, {"by": "admin"}),
        ("attempt.success", theirs, {"beacon": mine.id}),
        ("attempt.success", "0" * 24, {"beacon": other.id}),
        ("mirror.halted", "0" * 24, {"reason": "x"}),
        ("attempt.downloading", theirs, {}),
    ]
    changes = [
        {
            "seq": seq,
            "what": "events",
            "row": {"at": 1.0, "kind": kind, "subject": subject, "data": json.dumps(data)},
        }
        for seq, (kind, subject, data) in enumerate(told, 1)
    ]
    body = {"epoch": "1" * 24, "changes": changes}
    assert stolen.call("POST", "/api/mirror/sync", json=body)["seq"] == len(changes)
    events = scene.admin.call("GET", "/api/events/latest")["events"]
    assert not [one for one in events if one["data"].get("mirror")]


def test_nobody_was_heard_in_the_future(scene):
    """A mirror's clock that runs ahead does not silence its beacons once it is right."""
    scene.down()
    (beacon,) = scene.beacons(1)
    stolen = type(scene.admin)(scene.primary.url, scene.token)

    def tell(seq: int, version: str, seen: float) -> None:
        row = {"id": beacon.id, "version": version, "last_seen": seen}
        body = {"epoch": "1" * 24, "changes": [{"seq": seq, "what": "beacons", "row": row}]}
        stolen.call("POST", "/api/mirror/sync", json=body)

    tell(1, "1.0.0", scene.clock.at + 86400)
    scene.clock.at += 60
    tell(2, "1.1.0", scene.clock.at)
    assert scene.admin.get_beacon(beacon.id)["version"] == "1.1.0"


@pytest.mark.parametrize(
    ("settings", "code"),
    [({"database": "postgresql://x@/y"}, "mirror_database"), ({"workers": 2}, "workers_sqlite")],
)
def test_a_mirror_keeps_sqlite_and_one_process(tmp_path, settings, code):
    given = Settings(tmp_path / "d", insecure=True, upstream="http://127.0.0.1:9", **settings)
    with pytest.raises(BeaconOtaError) as caught:
        run_orchestrator(given, ListenOptions(port=0))
    assert caught.value.code == code


def test_a_mirror_without_a_primary_serves_what_it_has(scene):
    (beacon,) = scene.beacons(1)
    rollout = scene.release()
    scene.here(rollout)
    scene.down()
    scene.mirror.stop()
    scene.mirror.start()
    scene.to_mirror(beacon).update(beacon.offered())
    row = scene.mirror.admin().get_rollout(rollout)
    assert row["results"] == {"success": 1}
    # What waits to be told is counted, also after the restart; and told when the line is back.
    until(lambda: _backlog(scene) > 0, deadline_s=DEADLINE_S, what="the backlog to be counted")
    assert scene.admin.get_rollout(rollout)["results"] == {}
    scene.uplink.restore()
    scene.even()
    until(lambda: _backlog(scene) == 0, deadline_s=DEADLINE_S, what="the backlog to be told")
    assert scene.admin.get_rollout(rollout)["results"] == {"success": 1}


def _backlog(scene) -> int:
    async def status():
        return scene.mirror.service.mirror.status()

    return json.loads(json.dumps(scene.mirror.call(status())))["backlog"]


def test_a_mirror_gets_the_images_of_what_it_serves_and_no_others(scene):
    """A release that no rollout hands out, or none any more, is not for a stolen token."""
    scene.beacons(1)
    stolen = type(scene.admin)(scene.primary.url, scene.token)

    def image_of(firmware_id: str) -> int:
        return stolen._session.get(
            f"{scene.primary.url}/api/mirror/images/{firmware_id}",
            headers={"Authorization": f"Bearer {scene.token}"},
            timeout=DEADLINE_S,
        ).status_code

    unused = upload(scene.admin, "2.0.0", scene.folder, channel="stable")["firmware_id"]
    assert image_of(unused) == 404
    rollout = scene.admin.create_rollout(unused, EVERYBODY)["rollout_id"]
    assert image_of(unused) == 200
    scene.admin.post_rollout_action(rollout, "abort", "no")
    assert image_of(unused) == 404
    withdrawn = upload(scene.admin, "2.1.0", scene.folder, channel="stable")["firmware_id"]
    scene.admin.create_rollout(withdrawn, EVERYBODY)
    assert image_of(withdrawn) == 200
    scene.admin.call("POST", f"/api/firmwares/{withdrawn}/deprecate")
    assert image_of(withdrawn) == 404


def test_a_beacon_that_asked_both_while_the_line_was_down(scene):
    """Each side has made an attempt; both are counted, and a halt still reaches the mirror."""
    beacon, other = scene.beacons(2)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    scene.known(2)
    scene.down()
    assert beacon.fail(beacon.offered()).json["recorded"] == "first"
    beacon.connect(scene.primary.url)
    scene.clock.at += 600
    beacon.fail(beacon.offered(), stage="download", code="stall")
    scene.uplink.restore()
    scene.even()
    until(
        lambda: len(scene.admin.get_beacon(beacon.id)["attempts"]) == 2,
        what="the primary to hear of both attempts",
    )
    until(
        lambda: len(scene.mirror.admin().get_beacon(beacon.id)["attempts"]) == 2,
        what="the mirror to hear of both attempts",
    )
    scene.admin.post_rollout_action(rollout, "halt")
    scene.here(rollout, "halted")
    assert other.offer() is None


def test_a_beacon_whose_first_attempt_its_primary_has_not_taken_is_offered_the_next(scene):
    """It had left, with a key that the mirror has not: the numbers have a gap for good."""
    (beacon,) = scene.beacons(1)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    scene.known(1)
    scene.down()
    assert beacon.fail(beacon.offered()).json["recorded"] == "first"
    _move(scene, beacon, "b")
    beacon.key = secrets.token_bytes(32)
    scene.admin.set_beacon_key(beacon.id, beacon.key.hex())
    beacon.connect(scene.primary.url)
    assert beacon.report("idle").status == 200
    scene.uplink.restore()
    scene.known(0)
    scene.even()
    assert scene.admin.get_beacon(beacon.id)["attempts"] == []
    _move(scene, beacon, "a/x")
    scene.known(1)
    scene.to_mirror(beacon)
    scene.clock.at += 600
    assert beacon.fail(beacon.offered()).json["recorded"] == "first"
    scene.even()
    assert [one["n"] for one in scene.admin.get_beacon(beacon.id)["attempts"]] == [2]
    _move(scene, beacon, "b")
    beacon.connect(scene.primary.url)
    scene.clock.at += 600
    beacon.update(beacon.offered())
    assert [one["n"] for one in scene.admin.get_beacon(beacon.id)["attempts"]] == [3, 2]


def _move(scene, beacon: TestBeacon, site: str) -> None:
    scene.admin.call("PATCH", f"/api/beacons/{beacon.id}", json={"site": site})


def test_the_first_word_of_a_board_reaches_the_primary_and_comes_back(scene):
    (beacon,) = scene.beacons(1)
    large = upload(scene.admin, "1.1.0", scene.folder, device_type="esp32c3-8mb", channel="stable")
    rollout = scene.admin.create_rollout(large["firmware_id"], EVERYBODY)["rollout_id"]
    scene.known(1)
    beacon.device_type = "esp32c3-8mb"
    assert beacon.poll().headers["x-reason"] == "board"  # a mirror decides nothing about it
    scene.even()
    assert scene.admin.get_beacon(beacon.id)["device_type"] == "esp32c3-8mb"
    [event] = [
        one for one in scene.admin.list_latest_events(100) if one["kind"] == "beacon.retyped"
    ]
    assert event["data"]["by"] == "mirror lan-a"
    scene.here(rollout)
    scene.clock.at += 1
    beacon.update(beacon.offered())
    scene.even()
    assert scene.admin.get_rollout(rollout)["results"] == {"success": 1}


def test_a_board_that_is_questioned_and_accepted_behind_a_mirror(scene):
    (beacon,) = scene.beacons(1)
    scene.known(1)
    assert beacon.poll().status == 204
    scene.even()
    scene.clock.at += 60
    beacon.device_type = "esp32c3-8mb"
    assert beacon.poll().headers["x-reason"] == "board"
    scene.even()
    assert scene.admin.get_beacon(beacon.id)["standing"] == "board"

    def told():
        events = scene.admin.list_latest_events(100)
        return [one for one in events if one["kind"] == "beacon.questioned"]

    [event] = until(told, deadline_s=DEADLINE_S)
    assert event["subject"] == beacon.id
    scene.admin.retype_beacon(beacon.id)
    node = scene.mirror.service.fleet.beacons[beacon.id]
    until(lambda: node.beacon.device_type == "esp32c3-8mb", deadline_s=DEADLINE_S)
    assert beacon.poll().headers["x-reason"] == "no_release"


def test_a_change_of_board_calls_off_what_a_mirror_has_begun(scene):
    (beacon,) = scene.beacons(1)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    assert beacon.download(beacon.offered()).status == 200
    scene.even()  # its own word has arrived: what is set by hand stays
    scene.admin.retype_beacon(beacon.id, "esp32c3-8mb")
    node = scene.mirror.service.fleet.beacons[beacon.id]
    until(lambda: node.beacon.device_type == "esp32c3-8mb", deadline_s=DEADLINE_S)
    scene.mirror.step()
    scene.even()
    assert scene.admin.get_rollout(rollout)["results"] == {"stopped": 1}


def test_refusals_behind_a_mirror_are_shown_at_the_primary(scene):
    (beacon,) = scene.beacons(1)
    scene.known(1)
    for _ in range(3):
        assert beacon.call("GET", "/firmwares/latest/esp32c3?version=odd").status == 422
    scene.even()
    shown = scene.admin.get_beacon(beacon.id)
    assert (shown["refused_code"], shown["refusals"]) == ("poll_query", 3)
    assert shown["standing"] == "refused"
