"""The engine's memory: which rollouts stay, which are over, and what bounds them."""

import json
from dataclasses import replace

import pytest

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.clock import ClockJumpDetector
from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.db.tables import rollouts
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.rollout.plan_types import DAY, HOUR
from tests.orchestrator.world import upload

ALWAYS = "00:00-24:00"
EVERYBODY = {"preset": "all-at-once", "window": ALWAYS}


@pytest.fixture
def release(local, tmp_path):
    return upload(local.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]


def building(number: int) -> dict:
    """A plan for one building alone."""
    wave = {"name": "one", "sites": [f"hq/b{number}"]}
    return {"waves": [wave], "ladder": [{"share": 1}], "window": ALWAYS}


def buildings(admin, count: int) -> None:
    admin.create_site("hq")
    for number in range(count):
        admin.create_site(f"hq/b{number}", kind="building")


def restart(local, *fleet) -> None:
    local.stop()
    local.start()
    for beacon in fleet:
        beacon.connect(local.url)
    local.clock.at += 1


# ---- what stays ----


def test_a_rollout_for_each_of_twelve_buildings(local, release):
    admin = local.admin()
    buildings(admin, 12)
    fleet = [local.beacons(1, f"b{n}-", site=f"hq/b{n}")[0] for n in range(12)]
    for beacon in fleet:
        beacon.poll()
    made = [admin.create_rollout(release, building(n))["rollout_id"] for n in range(12)]
    assert all(beacon.offer() for beacon in fleet)
    admin.post_rollout_action(made[0], "halt", "smoke")
    assert fleet[0].poll().headers["x-reason"] == "halted"
    restart(local, *fleet)
    assert fleet[0].poll().headers["x-reason"] == "halted" and fleet[1].offer()
    local.admin().post_rollout_action(made[0], "resume")
    assert fleet[0].offer()


@pytest.mark.parametrize("verb", ["", "pause", "halt"])
def test_whatever_is_not_complete_stays_under_newer_ones(local, tmp_path, release, verb):
    admin = local.admin()
    (beacon,) = local.beacons(1)
    beacon.poll()
    first = admin.create_rollout(release, EVERYBODY)["rollout_id"]
    later = admin.create_rollout(release, EVERYBODY, start_at=local.clock.at + 9 * DAY)
    if verb:
        admin.post_rollout_action(first, verb)
    for number in range(2, 6):
        newer = upload(admin, f"1.{number}.0", tmp_path, channel="stable")["firmware_id"]
        made = admin.create_rollout(newer, EVERYBODY)["rollout_id"]
        beacon.update(beacon.offered())
        local.step()
        assert admin.get_rollout(made)["status"] == "completed"
    local.step()
    for rollout in (first, later["rollout_id"]):
        assert rollout in local.service.fleet.rollouts
        admin.post_rollout_action(rollout, "abort", "never mind")


def test_a_completed_rollout_with_nobody_left_to_serve_is_over_for_good(local, tmp_path, release):
    admin = local.admin()
    (beacon,) = local.beacons(1)
    beacon.poll()
    made = []
    for number in range(2, 6):
        newer = upload(admin, f"1.{number}.0", tmp_path, channel="stable")["firmware_id"]
        made.append(admin.create_rollout(newer, EVERYBODY)["rollout_id"])
        beacon.update(beacon.offered())
        local.step()
    local.step()
    shown = admin.get_rollout(made[0])
    assert shown["status"] == "completed" and shown["transitions"][-1]["kind"] == "retired"
    assert sorted(local.service.fleet.rollouts) == sorted(made[1:])
    for rollout in made[1:]:
        admin.post_rollout_action(rollout, "abort")
    restart(local, beacon)
    assert not local.service.fleet.rollouts  # what was over does not serve again
    with pytest.raises(UsageError) as caught:
        local.admin().post_rollout_action(made[0], "halt")
    assert caught.value.code == "rollout_not_active" and caught.value.found == "completed"
    (late,) = local.beacons(1, "late")
    assert late.poll().headers["x-reason"] == "no_release"


def test_a_completed_rollout_stays_for_those_whom_no_newer_one_selects(local, tmp_path):
    admin = local.admin()
    buildings(admin, 2)
    fleet = [local.beacons(1, f"b{n}-", site=f"hq/b{n}")[0] for n in range(2)]
    old = upload(admin, "1.1.0", tmp_path, channel="stable")["firmware_id"]
    everybody = admin.create_rollout(old, EVERYBODY)["rollout_id"]
    for beacon in fleet:
        beacon.update(beacon.offered())
    local.step()
    made = []
    for number in range(2, 7):
        newer = upload(admin, f"1.{number}.0", tmp_path, channel="stable")["firmware_id"]
        made.append(admin.create_rollout(newer, building(1))["rollout_id"])
        fleet[1].update(fleet[1].offered())
        local.step()
    local.step()
    assert sorted(local.service.fleet.rollouts) == sorted([everybody, *made[2:]])
    (late,) = local.beacons(1, "late", site="hq/b0")
    assert late.offered()["version"] == "1.1.0"


def test_too_many_rollouts_are_refused_by_name(local, release, monkeypatch):
    monkeypatch.setattr(rollouts, "LIMITS", replace(LIMITS, rollouts=2))
    admin = local.admin()
    made = [admin.create_rollout(release, EVERYBODY)["rollout_id"] for _ in range(2)]
    for _ in range(2):
        with pytest.raises(UsageError) as caught:
            admin.create_rollout(release, EVERYBODY)
        assert caught.value.code == "rollouts_too_many" and caught.value.found == 2
    assert sorted(local.service.fleet.rollouts) == sorted(made)
    admin.post_rollout_action(made[0], "abort")
    admin.create_rollout(release, EVERYBODY)


def test_a_rollout_made_after_the_clock_went_back_is_the_newest(local, tmp_path, release):
    admin = local.admin()
    (beacon,) = local.beacons(1)
    beacon.poll()
    for _ in range(9):
        admin.create_rollout(release, EVERYBODY)
    urgent = upload(admin, "1.2.0", tmp_path, channel="stable")["firmware_id"]
    local.clock.at -= DAY
    restart(local, beacon)
    admin = local.admin()
    made = admin.create_rollout(urgent, EVERYBODY)["rollout_id"]
    assert admin.list_rollouts()[0]["rollout_id"] == made
    assert beacon.offered()["version"] == "1.2.0"
    assert admin.post_rollout_action(made, "pause")["status"] == "paused"
    assert beacon.poll().headers["x-reason"] == "paused"
    restart(local, beacon)
    assert beacon.poll().headers["x-reason"] == "paused"


# ---- read again ----


def test_reading_again_leaves_nothing_open_that_has_ended(local, release):
    admin = local.admin()
    buildings(admin, 1)
    fleet = local.beacons(2, site="hq/b0")
    rollout = admin.create_rollout(release, {**EVERYBODY, "concurrency": 1})["rollout_id"]
    offer = fleet[0].offered()
    assert fleet[1].poll().headers["x-reason"] == "busy"

    def end(conn) -> None:  # as another worker does, and this one was too far behind to hear of it
        conn.exec_driver_sql("UPDATE attempts SET result = 'stopped', ended_at = 1900000001.0")
        row = rollouts.get(conn, rollout)
        assert row is not None
        state = json.dumps({**json.loads(row["state"]), "status": "aborted"})
        rollouts.update_if_unmoved(
            conn, rollout, row["revision"], {"status": "aborted", "state": state}
        )

    async def read_again() -> None:
        await local.service.db.write(end)
        local.service.reload_fleet()
        local.engine.reload_rollouts()

    local.call(read_again())
    view = local.service.fleet
    assert (
        not view.open_attempts and view.updates_in_building("hq/b0", view.beacons[fleet[1].id]) == 0
    )
    assert fleet[0].download(offer).status == 409
    admin.create_rollout(release, {**EVERYBODY, "concurrency": 1})
    assert fleet[1].offer()


def test_reading_again_keeps_an_offer_that_is_being_committed(local, release):
    (beacon,) = local.beacons(1)
    local.admin().create_rollout(release, EVERYBODY)
    put_attempt = local.service.fleet.put_attempt

    def put_and_read_again(attempt) -> None:
        put_attempt(attempt)
        if not again:
            again.append(attempt.id)  # once the offer is on its way to the writer
            local.loop.call_soon(local.engine.reload_rollouts)

    again: list[str] = []
    local.service.fleet.put_attempt = put_and_read_again
    offer = beacon.offered()
    assert again == [offer["attempt_id"]]
    beacon.update(offer)
    local.step()
    assert local.admin().list_rollouts()[0]["results"] == {"success": 1}


# ---- beacons that are removed ----


def test_a_name_that_comes_back_is_the_same_before_and_after_a_restart(local, release):
    """What was under way goes on, what had failed is not held against the new one."""
    admin = local.admin()
    buildings(admin, 1)
    plan = {**EVERYBODY, "concurrency": 1, "gate": {"failure_sample": 99, "in_a_row": 99}}
    rollout = admin.create_rollout(release, plan)["rollout_id"]
    beacon, other = local.beacons(2, site="hq/b0")
    for pause in (130.0, 250.0, 490.0):
        beacon.fail(beacon.offered(), "download", "stall")
        local.go_on(pause)
    assert beacon.poll().headers["x-reason"] == "attempts"

    def replace_it() -> None:
        local.call(local.engine.rollout_lock.acquire())  # faster than the engine looks
        local.admin().remove_beacon(beacon.id)
        local.admin().create_beacon(beacon.id, "esp32c3", key=beacon.key.hex(), site="hq/b0")
        local.loop.call_soon_threadsafe(local.engine.rollout_lock.release)

    replace_it()
    beacon.report("rebooting", beacon.offered())
    replace_it()
    seen = []
    for _ in range(2):
        seen.append((beacon.poll().headers["x-reason"], other.poll().headers["x-reason"]))
        seen.append(local.admin().get_rollout(rollout)["total"])
        restart(local, beacon, other)
    assert seen[:2] == seen[2:] and seen[0] == ("rebooting", "busy")
    local.go_on(2 * HOUR)
    assert beacon.offer() or other.offer()


def test_forgiven_by_a_clock_that_was_ahead_it_still_has_three_attempts(local, release):
    plan = {**EVERYBODY, "gate": {"failure_sample": 99, "in_a_row": 99}}
    local.admin().create_rollout(release, plan)
    (beacon,) = local.beacons(1)
    local.clock.at += 9 * DAY
    local.admin().post_beacon_action(beacon.id, "unquarantine", "once more")
    local.clock.at -= 9 * DAY
    for pause in (130.0, 250.0, 490.0):
        beacon.fail(beacon.offered(), "download", "stall")
        local.go_on(pause)
    assert beacon.poll().headers["x-reason"] == "attempts"


def test_a_rollout_of_a_deprecated_release_does_not_stay_active(local, release):
    admin = local.admin()
    fleet = local.beacons(3)
    made = [admin.create_rollout(release, EVERYBODY)["rollout_id"]]
    made.append(admin.create_rollout(release, EVERYBODY, start_at=local.clock.at + DAY))
    made[1] = made[1]["rollout_id"]
    assert fleet[0].report("rebooting", fleet[0].offered()).status == 200
    admin.post_firmware_action(release, "deprecate", "bad")
    admin.remove_beacon(fleet[0].id)
    local.step()
    for rollout in made:
        shown = admin.get_rollout(rollout)
        assert (shown["status"], shown["reason"]) == ("halted", "withdrawn")
    assert fleet[1].poll().headers["x-reason"] == "withdrawn"


# ---- clocks that leap, and who leads ----


def soaking(local, release):
    """Start a rollout whose canaries are watched; returns its id, and a way to set the clock."""
    offset = [0.0]
    local.engine.clock_jumps = ClockJumpDetector(
        lambda: local.clock.at, lambda: local.clock.at - offset[0]
    )
    fleet = local.beacons(20)
    rollout = local.admin().create_rollout(release, {"preset": "canary", "window": ALWAYS})
    for beacon in fleet:
        if offer := beacon.offer():
            beacon.update(offer)
    local.step()

    def leap(seconds: float) -> None:
        offset[0] += seconds
        local.clock.at += seconds

    return rollout["rollout_id"], leap


def times_restarted(local, rollout) -> int:
    history = local.admin().get_rollout(rollout)["transitions"]
    return [one["kind"] for one in history].count("clock_ahead")


def test_who_takes_the_lead_deals_with_no_leap_that_the_one_before_dealt_with(local, release):
    rollout, leap = soaking(local, release)
    entry = local.service.fleet.rollouts[rollout]
    follower = Engine(local.service)
    follower.clock_jumps = ClockJumpDetector(
        lambda: local.clock.at, local.engine.clock_jumps._steady
    )
    leap(9 * DAY)
    local.step()
    assert times_restarted(local, rollout) == 1
    local.clock.at += 11 * HOUR  # the follower has looked at nothing all the while, …
    local.call(follower.evaluate_rollout(entry))  # … and leads from here
    local.call(follower.evaluate_rollout(entry))
    assert times_restarted(local, rollout) == 1


def test_who_takes_the_lead_deals_with_a_leap_that_the_one_before_did_not_live_to(local, release):
    rollout, leap = soaking(local, release)
    entry = local.service.fleet.rollouts[rollout]
    follower = Engine(local.service)
    follower.clock_jumps = ClockJumpDetector(
        lambda: local.clock.at, local.engine.clock_jumps._steady
    )
    leap(9 * DAY)
    local.clock.at += 1
    local.call(follower.evaluate_rollout(entry))
    assert times_restarted(local, rollout) == 1
    assert local.admin().get_rollout(rollout)["waves"][0]["stage"] == 0
    leap(-9 * DAY)  # and back again: nothing is restarted over and over
    for _ in range(3):
        local.clock.at += 60
        local.call(follower.evaluate_rollout(entry))
    assert times_restarted(local, rollout) == 1


YEAR = 365 * 86400


@pytest.fixture
def by_hand(local):
    """The clock as its owner sets it, beside the time that passes."""
    offset = [0.0]
    local.engine.clock_jumps = ClockJumpDetector(
        lambda: local.clock.at, lambda: local.clock.at - offset[0]
    )

    def set_back(seconds: float) -> None:
        local.clock.at -= seconds
        offset[0] -= seconds
        local.step()

    return set_back


def test_failures_count_after_a_resume_by_a_clock_that_was_ahead(local, tmp_path, by_hand):
    """What was accepted then are the failures until then, and none that come after."""
    fleet = local.beacons(8)
    made = upload(local.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]
    plan = {"preset": "all-at-once", "window": ALWAYS}
    rollout = local.admin().create_rollout(made, plan)["rollout_id"]
    for beacon in fleet[:3]:
        beacon.fail(beacon.offered())
    local.step()
    assert local.admin().get_rollout(rollout)["status"] == "halted"
    local.admin().post_rollout_action(rollout, "resume")
    by_hand(YEAR)
    local.step()
    assert local.admin().get_rollout(rollout)["status"] == "active"
    local.clock.at += 1
    for beacon in fleet[3:6]:
        beacon.fail(beacon.offered())
    local.step()
    assert local.admin().get_rollout(rollout)["status"] == "halted"


def test_a_beacon_forgiven_by_a_clock_that_was_ahead_may_fail_no_more_often(
    local, tmp_path, by_hand
):
    (beacon,) = local.beacons(1)
    admin = local.admin()
    made = upload(admin, "1.1.0", tmp_path, channel="stable")["firmware_id"]
    plan = {"preset": "all-at-once", "window": ALWAYS, "gate": {"in_a_row": 99}}
    admin.create_rollout(made, plan)
    beacon.fail(beacon.offered())
    admin.post_beacon_action(beacon.id, "unquarantine", "once more")
    by_hand(YEAR)
    offers = 0
    for _ in range(6):
        local.clock.at += 40 * 60
        if (offer := beacon.offer()) is not None:
            offers += 1
            beacon.fail(offer)
    assert offers == 3
