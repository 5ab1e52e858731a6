"""Whole rollouts through the API: real sockets, signed beacons, and time that we let pass."""

import json
import secrets

import pytest

from beacon_ota.errors import BeaconOtaError, InputError, UsageError
from beacon_ota.orchestrator.clock import ClockJumpDetector
from beacon_ota.orchestrator.rollout.plan_types import DAY, HOUR, MINUTE
from tests.orchestrator.world import Local, upload

ALWAYS = "00:00-24:00"


@pytest.fixture
def release(local, tmp_path):
    return upload(local.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]


def ask(fleet) -> list[tuple]:
    """Have everybody poll; return those who were offered something, with their offers."""
    answers = [(beacon, beacon.offer()) for beacon in fleet]
    return [(beacon, offer) for beacon, offer in answers if offer is not None]


def start(local, release, plan=None, **fields):
    return local.admin().create_rollout(release, plan or {"window": ALWAYS}, **fields)["rollout_id"]


def status(local, rollout):
    return local.admin().get_rollout(rollout)


def quiet(plan):
    """A plan whose failure limits do not trip."""
    return {**plan, "gate": {"failure_sample": 10_000, "in_a_row": 10_000}}


def test_the_spec_ladder(local, release):
    fleet = local.beacons(40)
    ask(fleet)  # they are known to be there
    rollout = start(local, release)
    canaries = ask(fleet)
    assert 1 <= len(canaries) <= 15
    for beacon, offer in canaries:
        beacon.update(offer)
    local.step()
    waits = status(local, rollout)["waves"][0]["waits_for"]
    assert waits["reason"] == "soak", waits
    assert ask(fleet) == []
    for _ in range(4):
        local.go_on(5.9 * HOUR)
        ask(fleet)
        local.step()
    assert status(local, rollout)["waves"][0]["stage"] == 0
    local.go_on(HOUR)
    second = ask(fleet)
    assert status(local, rollout)["waves"][0]["stage"] == 1
    assert len(canaries) + len(second) < 40 and second
    for beacon, offer in second:
        beacon.update(offer)
    local.step()  # the soak counts from here, not from when the engine next looks by itself
    for _ in range(3):
        local.go_on(5 * HOUR)
        third = ask(fleet)
        local.step()
    for beacon, offer in third:
        beacon.update(offer)
    local.step()
    shown = status(local, rollout)
    assert shown["status"] == "completed" and shown["results"]["success"] == 40
    assert [one["kind"] for one in shown["transitions"]] == [
        "started",
        "wave_opened",
        "stage_opened",
        "sampled",
        "stage_opened",
        "sampled",
        "stage_opened",
        "sampled",
        "wave_completed",
        "completed",
    ]
    assert {beacon.version for beacon in fleet} == {"1.1.0"}


def test_late_joiners_are_served_after_the_end(local, release):
    fleet = local.beacons(3)
    rollout = start(local, release, {"preset": "all-at-once", "window": ALWAYS})
    for beacon, offer in ask(fleet):
        beacon.update(offer)
    local.step()
    assert status(local, rollout)["status"] == "completed"
    (late,) = local.beacons(1, prefix="late")
    late.update(late.offer())
    assert status(local, rollout)["results"] == {"success": 4}


def test_silent_bricks_halt_in_the_first_stage(local, release):
    fleet = local.beacons(60)
    ask(fleet)
    rollout = start(local, release)
    touched = ask(fleet)
    for beacon, offer in touched:
        beacon.download(offer)
        beacon.report("rebooting", offer)  # and never a word again
    rest = [beacon for beacon in fleet if beacon not in [one for one, _ in touched]]
    for _ in range(30):
        local.go_on(MINUTE)
    assert status(local, rollout)["status"] == "halted"
    shown = status(local, rollout)
    assert shown["results"] == {"lost": len(touched)} and len(touched) <= 15
    assert shown["reason"] in ("failures_in_a_row", "failure_share")
    assert shown["waves"][0]["stage"] == 0
    for _ in range(2):
        local.go_on(3 * DAY)
        assert ask(rest) == []
    assert {beacon.poll().headers["x-reason"] for beacon in rest} == {"halted"}
    kinds = [event["kind"] for event in local.admin().list_latest_events()]
    assert kinds.count("attempt.lost") == len(touched) and "rollout.halted" in kinds
    assert any(
        e["action"] == "rollout.halted" for e in local.admin().list_audit_entries(newest=True)
    )


def test_a_late_success_is_noted_and_changes_nothing(local, release):
    (beacon,) = local.beacons(1)
    rollout = start(local, release, quiet({"preset": "all-at-once", "window": ALWAYS}))
    offer = beacon.offer()
    beacon.download(offer)
    beacon.report("rebooting", offer)
    local.go_on(31 * MINUTE)
    assert status(local, rollout)["results"] == {"lost": 1}
    beacon.install(offer)
    answer = beacon.report("success", offer, previous_version="1.0.0")
    assert answer.status == 200 and answer.json["recorded"] == "late"
    again = beacon.report("success", offer, previous_version="1.0.0")
    assert again.json["recorded"] == "repeated"
    (attempt,) = local.admin().get_beacon(beacon.id)["attempts"]
    assert (attempt["result"], attempt["late_result"]) == ("lost", "success")
    assert status(local, rollout)["results"] == {"lost": 1}
    assert beacon.version == local.admin().get_beacon(beacon.id)["version"] == "1.1.0"


def test_a_beacon_whose_report_got_lost_is_not(local, release):
    (beacon,) = local.beacons(1)
    rollout = start(local, release, {"preset": "all-at-once", "window": ALWAYS})
    offer = beacon.offer()
    beacon.download(offer)
    beacon.report("rebooting", offer)
    beacon.install(offer)
    local.clock.at += 60
    assert beacon.offer() is None  # it polls from the new image
    local.go_on(31 * MINUTE)
    assert status(local, rollout)["results"] == {"success": 1}


def test_back_on_the_old_image_without_a_word(local, release):
    (beacon,) = local.beacons(1)
    start(local, release, quiet({"preset": "all-at-once", "window": ALWAYS}))
    offer = beacon.offer()
    beacon.download(offer)
    beacon.report("rebooting", offer)
    local.clock.at += 60
    beacon.poll()
    assert local.admin().get_beacon(beacon.id)["attempts"][0]["result"] is None
    local.clock.at += 130  # it had its time to say why
    beacon.poll()
    attempt = local.admin().get_beacon(beacon.id)["attempts"][0]
    assert (attempt["result"], attempt["failed_in"], attempt["code"]) == (
        "rolled_back",
        "boot",
        "not_booted",
    )


def test_its_own_word_for_it_comes_first(local, release):
    (beacon,) = local.beacons(1)
    start(local, release, quiet({"preset": "all-at-once", "window": ALWAYS}))
    offer = beacon.offer()
    beacon.download(offer)
    beacon.report("rebooting", offer)
    local.clock.at += 60
    beacon.poll()
    beacon.report("rolled_back", offer, previous_version="1.0.0", stage="boot", code="watchdog")
    local.clock.at += 300
    beacon.poll()
    assert local.admin().get_beacon(beacon.id)["attempts"][-1]["code"] == "watchdog"


def test_three_failures_in_a_row_halt_and_what_is_under_way_stops(local, release):
    fleet = local.beacons(8)
    rollout = start(local, release, {"preset": "all-at-once", "window": ALWAYS})
    offers = ask(fleet)
    for beacon, offer in offers[:6]:
        beacon.download(offer)
    going, rebooting = offers[4], offers[5]
    rebooting[0].report("rebooting", rebooting[1])
    for beacon, offer in offers[:3]:
        beacon.report("failed", offer, stage="verify", code="checksum")
    local.step()
    assert status(local, rollout)["status"] == "halted"
    beacon, offer = going
    answer = beacon.report("downloading", offer)
    assert answer.status in (409, 410), answer.body
    assert beacon.report("rebooting", offer).status in (409, 410)
    assert beacon.download(offer).status in (409, 410)
    beacon, offer = offers[6]  # offered, and not begun
    assert beacon.download(offer).status in (409, 410)
    beacon, offer = rebooting  # beyond recall: its outcome counts
    beacon.install(offer)
    assert beacon.report("success", offer, previous_version="1.0.0").status == 200
    shown = status(local, rollout)["results"]
    assert shown == {"failed": 3, "success": 1, "stopped": 4}
    assert ask(fleet) == []


def test_halt_by_hand_and_resume(local, release):
    admin = local.admin()
    fleet = local.beacons(4)
    rollout = start(local, release, {"preset": "all-at-once", "window": ALWAYS})
    (beacon, offer), *_ = ask(fleet)
    beacon.download(offer)
    admin.post_rollout_action(rollout, "halt", "we saw smoke")
    assert beacon.report("rebooting", offer).status in (409, 410)
    assert ask(fleet) == []
    shown = status(local, rollout)
    assert shown["status"] == "halted" and shown["by"] == "first"
    assert shown["transitions"][-1]["detail"] == "we saw smoke"
    with pytest.raises(UsageError) as caught:
        admin.post_rollout_action(rollout, "pause")
    assert caught.value.code == "rollout_not_active"
    admin.post_rollout_action(rollout, "resume", "it was the toaster")
    for beacon, offer in ask(fleet):
        beacon.update(offer)
    local.step()
    assert status(local, rollout)["status"] == "completed"


def test_pause_lets_go_on_what_is_under_way(local, release):
    admin = local.admin()
    fleet = local.beacons(4)
    rollout = start(local, release, {"preset": "all-at-once", "window": ALWAYS})
    first, second = fleet[:2]
    begun, offered = first.offer(), second.offer()
    first.download(begun)
    admin.post_rollout_action(rollout, "pause", "lunch")
    assert second.download(offered).status == 410
    first.update(begun)
    assert ask(fleet[1:]) == [] and second.poll().headers["x-reason"] == "paused"
    admin.post_rollout_action(rollout, "resume")
    assert len(ask(fleet[1:])) == 3


def test_abort_is_the_end(local, release):
    admin = local.admin()
    fleet = local.beacons(3)
    rollout = start(local, release, {"preset": "all-at-once", "window": ALWAYS})
    (beacon, offer), *_ = ask(fleet)
    admin.post_rollout_action(rollout, "abort", "never mind")
    assert beacon.download(offer).status in (409, 410) and ask(fleet) == []
    for verb in ("resume", "halt", "abort", "advance"):
        with pytest.raises(UsageError):
            admin.post_rollout_action(rollout, verb)
    assert status(local, rollout)["status"] == "aborted"


def test_an_abort_seen_by_two_looks_is_put_away_once(local, release):
    rollout = start(local, release, {"preset": "all-at-once", "window": ALWAYS})
    entry = local.service.fleet.rollouts[rollout]
    local.admin().post_rollout_action(rollout, "abort", "never mind")
    for _ in range(2):  # the engine's own, and one that was waiting for it
        local.call(local.engine.evaluate_rollout(entry))
    assert rollout not in local.service.fleet.rollouts


def test_advance_by_hand(local, release):
    fleet = local.beacons(40)
    ask(fleet)
    rollout = start(local, release)
    few = ask(fleet)
    local.admin().post_rollout_action(rollout, "advance", "in a hurry")
    assert len(ask(fleet)) > len(few)
    assert status(local, rollout)["waves"][0]["stage"] == 1


def test_a_withdrawn_release_stops_everybody(local, release):
    admin = local.admin()
    fleet = local.beacons(3)
    rollout = start(local, release, {"preset": "all-at-once", "window": ALWAYS})
    (beacon, offer), *_ = ask(fleet)
    admin.post_firmware_action(release, "deprecate", "bad")
    # 409 when the attempt has been ended by then, which is the engine's work and in its own time.
    assert beacon.download(offer).status in (409, 410)
    assert ask(fleet) == []
    local.step()
    assert status(local, rollout)["results"] == {"stopped": 3}


def test_testing_releases_are_for_beta_beacons(local, tmp_path):
    admin = local.admin()
    firmware = upload(admin, "1.1.0", tmp_path)["firmware_id"]
    (stable,), (beta,) = local.beacons(1, "s"), local.beacons(1, "t", channel="beta")
    start(local, firmware, {"preset": "all-at-once", "window": ALWAYS})
    assert beta.offer() and stable.poll().headers["x-reason"] == "channel"
    admin.post_firmware_action(firmware, "promote")
    assert stable.offer()


def test_three_attempts_then_quarantine_until_forgiven(local, release):
    (beacon,) = local.beacons(1)
    start(local, release, quiet({"preset": "all-at-once", "window": ALWAYS}))
    for other, offer in ask(local.beacons(12, prefix="healthy")):
        other.update(offer)
    for pause in (120, 240, None):
        offer = beacon.offer()
        beacon.fail(offer, "download", "stall")
        local.step()
        if pause:
            local.go_on(pause - 1)
            assert beacon.poll().headers["x-reason"] == "retry"
            local.go_on(2)
    local.go_on(DAY)
    assert beacon.poll().headers["x-reason"] == "attempts"
    local.admin().post_beacon_action(beacon.id, "unquarantine", "new power supply")
    assert beacon.offer()


def test_quarantine_by_hand(local, release):
    (beacon,) = local.beacons(1)
    start(local, release, {"preset": "all-at-once", "window": ALWAYS})
    shown = local.admin().post_beacon_action(beacon.id, "quarantine", "on my desk")
    assert shown["quarantined_at"] and shown["quarantine_reason"] == "on my desk"
    assert beacon.poll().headers["x-reason"] == "quarantined"
    local.admin().post_beacon_action(beacon.id, "unquarantine", "")
    assert beacon.offer()


def test_waves_by_building_and_windows(local, release):
    admin = local.admin()
    admin.create_site("hq", tz="Europe/Berlin")
    for building in ("hq/a", "hq/b"):
        admin.create_site(building)
    first = local.beacons(3, "a", site="hq/a")
    second = local.beacons(3, "b", site="hq/b")
    rest = local.beacons(3, "c")
    local.clock.at = 1_900_065_600.0  # 2030-03-17 12:00 UTC, 13:00 in Berlin
    plan = {"preset": "geographic", "buildings": ["hq/a", "hq/b"], "ladder": [{"share": 1}]}
    start(local, release, plan)
    assert first[0].poll().headers["x-reason"] == "window"
    assert second[0].poll().headers["x-reason"] == "wave"
    local.go_on(14 * HOUR)  # 03:00 in Berlin
    offers = ask(first + second + rest)
    assert [beacon.id[0] for beacon, _ in offers] == ["a"] * 3
    assert offers[0][1]["not_after"] - offers[0][1]["not_before"] == 2 * HOUR
    for beacon, offer in offers:
        beacon.update(offer)
    local.step()
    local.go_on(7 * DAY)
    offers = ask(second + rest)
    assert [beacon.id[0] for beacon, _ in offers] == ["b"] * 3
    for beacon, offer in offers:
        beacon.update(offer)
    local.step()
    local.go_on(7 * DAY + HOUR)  # 03:00 UTC, where they are not in any site
    offers = ask(rest)
    assert len(offers) == 3


def test_required_ignores_windows(local, tmp_path):
    firmware = upload(local.admin(), "1.1.0", tmp_path, channel="stable", required="true")
    (beacon,) = local.beacons(1)
    local.clock.at = 1_900_065_600.0
    rollout = start(local, firmware["firmware_id"], {"preset": "all-at-once"})
    offer = beacon.offer()
    assert offer["required"] is True and "not_before" not in offer
    assert status(local, rollout)["plan"]["required"] is True


def test_the_cap_of_a_building(local, release):
    admin = local.admin()
    admin.create_site("hq")
    admin.create_site("hq/a")
    fleet = local.beacons(6, site="hq/a")
    start(local, release, {"preset": "all-at-once", "window": ALWAYS, "concurrency": 2})
    offers = ask(fleet)
    assert len(offers) == 2 and fleet[5].poll().headers["x-reason"] == "busy"
    offers[0][0].update(offers[0][1])
    assert len(ask(fleet[2:])) == 1
    local.go_on(11 * MINUTE)  # the untaken offers lose their places
    assert len(ask(fleet[3:])) >= 1


def test_an_offer_nobody_takes_expires_and_counts_for_nothing(local, release):
    (beacon,) = local.beacons(1)
    rollout = start(local, release, {"preset": "all-at-once", "window": ALWAYS})
    old = beacon.offer()
    local.go_on(11 * MINUTE)
    assert beacon.download(old).status == 409
    assert status(local, rollout)["results"] == {"expired": 1}
    for _ in range(5):
        new = beacon.offer()
        assert new["attempt_id"] == old["attempt_id"]  # nothing came of it: the same attempt
        local.go_on(11 * MINUTE)
    beacon.update(beacon.offer())
    assert status(local, rollout)["results"] == {"success": 1}
    (attempt,) = local.admin().get_beacon(beacon.id)["attempts"]
    assert attempt["n"] == 1 and attempt["result"] == "success"


def test_a_word_that_comes_after_the_offer_expired(local, release):
    (beacon,) = local.beacons(1)
    rollout = start(local, release, quiet({"preset": "all-at-once", "window": ALWAYS}))
    old = beacon.offer()
    local.go_on(11 * MINUTE)
    answer = beacon.report("failed", old, stage="flash", code="no_slot")
    assert answer.json["recorded"] == "late"
    new = beacon.offer()
    assert new["attempt_id"] != old["attempt_id"]
    beacon.update(new)
    assert status(local, rollout)["results"] == {"expired": 1, "success": 1}
    assert [a["n"] for a in local.admin().get_beacon(beacon.id)["attempts"]] == [2, 1]


def test_an_abort_lets_those_who_reboot_come_to_their_end(local, release):
    """Also when the orchestrator is started anew meanwhile."""
    fleet = local.beacons(2)
    rollout = start(local, release, {"preset": "all-at-once", "window": ALWAYS})
    offers = ask(fleet)
    for beacon, offer in offers:
        beacon.download(offer)
        beacon.report("rebooting", offer)
    local.admin().post_rollout_action(rollout, "abort")
    local.stop()
    local.start()
    local.step()
    assert status(local, rollout)["results"] == {"open": 2}
    beacon, offer = offers[0]
    beacon.connect(local.url)
    beacon.install(offer)
    assert beacon.report("success", offer, previous_version="1.0.0").status == 200
    local.go_on(31 * MINUTE)
    assert status(local, rollout)["results"] == {"success": 1, "lost": 1}


def test_a_restart_forgets_nothing(local, release):
    fleet = local.beacons(20)
    ask(fleet)
    rollout = start(local, release, quiet({"window": ALWAYS}))
    canaries = ask(fleet)
    done, begun = canaries[0], canaries[-1]
    done[0].update(done[1])
    if len(canaries) > 1:
        begun[0].download(begun[1])
    before = status(local, rollout)
    local.stop()
    local.start()
    for beacon in fleet:
        beacon.connect(local.url)
    local.step()
    after = status(local, rollout)
    assert after["results"] == before["results"] and after["waves"][0]["stage"] == 0
    assert (
        done[0].report("success", done[1], previous_version="1.0.0").json["recorded"] == "repeated"
    )
    if len(canaries) > 1:
        begun[0].update(begun[1])
        assert status(local, rollout)["results"]["success"] == 2


def test_silence_while_we_were_away_is_not_held_against_them(local, release):
    (beacon,) = local.beacons(1)
    rollout = start(local, release, {"preset": "all-at-once", "window": ALWAYS})
    beacon.download(beacon.offer())
    local.stop()
    local.clock.at += 2 * DAY
    local.start()
    local.step()
    assert status(local, rollout)["results"] == {"open": 1}
    local.go_on(31 * MINUTE)
    assert status(local, rollout)["results"] == {"lost": 1}


def test_a_start_in_the_future(local, release):
    (beacon,) = local.beacons(1)
    rollout = start(
        local, release, {"preset": "all-at-once", "window": ALWAYS}, start_at=local.clock.at + HOUR
    )
    assert status(local, rollout)["status"] == "scheduled" and beacon.offer() is None
    local.go_on(HOUR)
    assert beacon.offer()


def test_a_preview_starts_nothing(local, release):
    admin = local.admin()
    fleet = local.beacons(50)
    ask(fleet)
    found = admin.plan_rollout(release, {"window": ALWAYS})
    times = [slot["at"] for slot in found["beacons"]]
    assert len(times) == 50 and all(times) and found["ends_at"] >= max(times)
    assert [one["kind"] for one in found["transitions"]][-1] == "completed"
    assert admin.list_rollouts() == [] and ask(fleet) == []
    rollout = start(local, release)
    first = {slot["beacon_id"] for slot in found["beacons"] if slot["stage"] == 0}
    # Buckets are drawn anew for each rollout; the shares are what the preview promises.
    assert abs(len(first) - len(ask(fleet))) <= 10
    assert status(local, rollout)["plan"] == found["plan"]


def test_a_preview_names_the_beacons_that_the_rollout_picks(local, release):
    admin = local.admin()
    fleet = local.beacons(50)
    ask(fleet)
    found = admin.plan_rollout(release, {"window": ALWAYS})
    seed = found["seed"]
    again = admin.plan_rollout(release, {"window": ALWAYS}, seed=seed)
    assert again["beacons"] == found["beacons"]
    rollout = start(local, release, seed=seed)
    first = {slot["beacon_id"] for slot in found["beacons"] if slot["stage"] == 0}
    assert {beacon.id for beacon, _ in ask(fleet)} == first and rollout == seed
    with pytest.raises(UsageError) as caught:
        start(local, release, seed=seed)
    assert caught.value.code == "rollout_taken"
    assert len(admin.list_rollouts()) == 1


def test_a_clock_that_jumps_loses_nobody_and_opens_nothing(local, release):
    """Somebody sets the clock ahead by ten years, in the middle of it all."""
    fleet = local.beacons(40)
    ask(fleet)
    rollout = start(local, release)
    canaries = ask(fleet)
    for beacon, offer in canaries:
        assert beacon.download(offer).status == 200
    for beacon, offer in canaries[1:]:
        beacon.update(offer)
    local.step()
    offset = 0.0
    local.engine.clock_jumps = ClockJumpDetector(
        lambda: local.clock.at, lambda: local.clock.at - offset
    )
    local.step()
    offset = 10 * 365 * DAY
    local.go_on(offset)
    shown = status(local, rollout)
    assert shown["status"] == "active" and "lost" not in shown["results"]
    assert shown["transitions"][-1]["reason"] in ("clock_ahead", "sample")
    assert shown["waves"][0]["stage"] == 0
    canaries[0][0].update(canaries[0][1])
    local.step()
    for _ in range(25):
        local.go_on(HOUR)
        ask(fleet)
        if status(local, rollout)["waves"][0]["stage"] == 1:
            break
    kinds = [one["kind"] for one in status(local, rollout)["transitions"]]
    assert "clock_ahead" in kinds and status(local, rollout)["waves"][0]["stage"] == 1


@pytest.mark.parametrize(
    ("plan", "code"),
    [
        ({"preset": "yolo"}, "preset_unknown"),
        ({"colour": "red"}, "field_unknown"),
        ({"ladder": [{"share": 0.5}]}, "ladder_not_whole"),
        ({"ladder": []}, "ladder_empty"),
        ({"waves": []}, "waves_none"),
        ({"waves": [{"name": "x", "sites": ["nowhere"]}]}, "site_unknown"),
        ({"window": "03:00"}, "window_syntax"),
        ({"gate": {"silence": "-5m"}}, "time_negative"),
        ({"release": {}}, "field_missing"),
    ],
)
def test_wrong_plans_are_refused_by_their_codes(local, release, plan, code):
    for call in (local.admin().create_rollout, local.admin().plan_rollout):
        with pytest.raises(InputError) as caught:
            call(release, plan)
        assert caught.value.code in (code, "time_syntax", "number_range"), caught.value.code
    assert local.admin().list_rollouts() == []


def test_orders_for_what_is_not_there(local, release):
    admin = local.admin()
    with pytest.raises(InputError) as caught:
        admin.create_rollout("0" * 24)
    assert caught.value.code == "firmware_unknown"
    with pytest.raises(InputError) as caught:
        admin.get_rollout("0" * 24)
    assert caught.value.code == "rollout_unknown"
    admin.post_firmware_action(release, "deprecate")
    with pytest.raises(BeaconOtaError) as caught:
        admin.create_rollout(release)
    assert caught.value.code == "firmware_state"


def test_moved_by_two_at_once_it_moves_once(local, release):
    """Two workers that decided upon the same revision: the second is told to look again."""
    local.beacons(1)
    rollout = start(local, release, {"preset": "all-at-once", "window": ALWAYS})
    entry = local.service.fleet.rollouts[rollout]

    async def race():
        from beacon_ota.orchestrator.rollout import advance as moves

        revision = entry.revision
        made = moves.pause_rollout(entry.state, local.clock.at, "one")
        async with local.engine.rollout_lock:
            await local.engine.commit_transitions(entry, made)
            entry.revision = revision  # as another process would still have it
            with pytest.raises(UsageError) as caught:
                await local.engine.commit_transitions(entry, made)
        assert caught.value.code == "rollout_moved"
        return entry.revision, revision

    after, before = local.call(race())
    assert after == before + 1
    kinds = [one["kind"] for one in status(local, rollout)["transitions"]]
    assert kinds.count("paused") == 1


def test_deleted_beacons_stay_counted(local, release):
    fleet = local.beacons(4)
    rollout = start(local, release, {"preset": "all-at-once", "window": ALWAYS})
    for beacon, offer in ask(fleet):
        beacon.update(offer)
    local.admin().remove_beacon(fleet[0].id)
    local.step()
    assert status(local, rollout)["results"] == {"success": 4}
    answer = fleet[0].call("GET", "/firmwares/latest/esp32c3", check=False)
    assert answer.status == 401 and answer.json["code"] == "unknown_beacon"


def test_the_journal_of_a_fleet_survives_kills(tmp_path):
    with Local(tmp_path / "data") as local:
        (beacon,) = local.beacons(1)
        entry = [1, 5, "boot", "crash", secrets.token_hex(4)]
        beacon.report("idle", journal=[entry])
        local.stop()
        local.start()
        shown = local.admin().get_beacon(beacon.id)["journal"]
        assert json.dumps(shown[0]["detail"]) == json.dumps(entry[4])


def test_leaps():
    wall, steady = 1000.0, 5.0
    leaps = ClockJumpDetector(lambda: wall, lambda: steady)
    assert leaps.take_jump() == 0.0
    wall, steady = 1100.0, 105.0
    assert leaps.take_jump() == 0.0  # time passes
    wall += 59.0
    assert leaps.take_jump() == 0.0  # a clock that is disciplined
    wall += 3600.0
    assert leaps.take_jump() == 3600.0 and leaps.take_jump() == 0.0
    wall -= 86_400.0
    assert leaps.take_jump() == -86_400.0


def test_reports_in_any_order_come_to_one_result(local, release):
    """Reports that overtook each other: the first final one stays, whatever else comes."""
    rollout = start(local, release, quiet({"preset": "all-at-once", "window": ALWAYS}))
    first, second, third = fleet = local.beacons(3)
    offers = {beacon.id: beacon.offered() for beacon in fleet}

    # Success before anything else was heard of it, then all that went before.
    offer, old = offers[first.id], (first.version, first.image)
    first.install(offer)
    assert first.report("success", offer, previous_version=old[0]).json["recorded"] == "first"
    for word in ("downloading", "verifying", "rebooting"):
        answer = first.report(word, offer, previous_version=old[0])
        assert (answer.status, answer.json["code"]) == (409, "attempt_over"), word
    # To reboot first, to download afterwards: it goes on rebooting.
    offer = offers[second.id]
    assert second.report("rebooting", offer).status == 200
    rebooting_at = local.admin().get_beacon(second.id)["attempts"][0]["rebooting_at"]
    assert second.report("downloading", offer, progress=5).status == 200
    attempt = local.admin().get_beacon(second.id)["attempts"][0]
    assert attempt["rebooting_at"] == rebooting_at and attempt["result"] is None
    # Failed, then a success of the same attempt.
    offer = offers[third.id]
    assert third.report("failed", offer, stage="boot", code="crash", detail="").status == 200
    third.install(offer)
    late = third.report("success", offer, previous_version="1.0.0")
    assert late.json["recorded"] == "repeated"
    local.step()
    assert status(local, rollout)["results"] == {"success": 1, "failed": 1, "open": 1}


def test_a_beacon_that_flaps_is_one_failure(local, release):
    """Confirmed, back on the old release, confirmed again: one failure, and not for ever."""
    rollout = start(local, release, quiet({"preset": "all-at-once", "window": ALWAYS}))
    beacon, other = local.beacons(2)
    other.update(other.offered())
    rounds = 0
    while (offer := beacon.offer()) is not None and rounds < 10:
        rounds += 1
        old = beacon.version, beacon.image
        beacon.update(offer)
        local.go_on(MINUTE)
        beacon.version, beacon.image = old
        beacon.poll()
        local.go_on(MINUTE)
        cell = status(local, rollout)["total"]
        assert (cell["failed"], cell["healthy"]) == (1, 1), cell
        local.go_on(HOUR)
        other.poll()
    assert rounds == 3 and beacon.poll().headers["x-reason"] == "attempts"
