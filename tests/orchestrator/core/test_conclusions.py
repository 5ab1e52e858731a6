"""Ends that the engine concludes: upon what is committed, and for no beacon that went on."""

import pytest

from beacon_ota.orchestrator.clock import ClockJumpDetector
from beacon_ota.orchestrator.rollout import advance as moves
from beacon_ota.orchestrator.rollout.plan_types import HOUR
from beacon_ota.orchestrator.rollout.types import Result
from tests.orchestrator.world import upload

CANARY = {"preset": "canary", "window": "00:00-24:00"}
EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}
ALWAYS = "00:00-24:00"
EVERYBODY = {"preset": "all-at-once", "window": ALWAYS}
YEAR = 365 * 86400


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


def begun(local, tmp_path, plan) -> str:
    """Start a rollout over twenty beacons; its first stage is open."""
    release = upload(local.admin(), "2.0.0", tmp_path, channel="stable")["firmware_id"]
    rollout = local.admin().create_rollout(release, plan)["rollout_id"]
    local.step()
    return rollout


def test_what_the_engine_concludes_upon_an_old_state_is_not_recorded(local, elsewhere, tmp_path):
    (beacon,) = local.beacons(1)
    rollout = begun(local, tmp_path, EVERYBODY)
    offer = beacon.offered()
    assert beacon.download(offer).status == 200
    local.admin().post_rollout_action(rollout, "pause")
    entry = local.service.fleet.rollouts[rollout]
    # Halted and resumed elsewhere: this process has heard of the halt alone.
    state, halt = entry.state, moves.halt_rollout(entry.state, local.clock.at, "somebody")
    elsewhere.move(rollout, moves.apply_transition(state, halt[0]))
    local.call(_take(local, elsewhere.rollout(rollout)))
    elsewhere.move(rollout, state)
    local.step()
    assert elsewhere.attempt(offer["attempt_id"])["result"] is None
    assert beacon.report("rebooting", offer).status == 200


async def _take(local, row) -> None:
    local.engine.apply_row(row)


@pytest.mark.parametrize("result", [Result.STOPPED, Result.EXPIRED])
def test_who_has_gone_on_elsewhere_is_not_given_up(local, elsewhere, tmp_path, result):
    """Acknowledged by another process, a ``rebooting`` or a download is not called back here."""
    (beacon,) = local.beacons(1)
    rollout = begun(local, tmp_path, EVERYBODY)
    offer = beacon.offered()
    if result is Result.STOPPED:
        assert beacon.download(offer).status == 200
        elsewhere.attempt(offer["attempt_id"], rebooting_at=local.clock.at)
        local.admin().post_rollout_action(rollout, "halt")
    else:
        elsewhere.attempt(offer["attempt_id"], taken_at=local.clock.at)
        local.go_on(900.0)
    local.step()
    assert elsewhere.attempt(offer["attempt_id"])["result"] is None


def test_a_confirmed_beacon_that_is_removed_holds_up_nobody(local, release):
    fleet = local.beacons(20)
    rollout = local.admin().create_rollout(release, {"preset": "canary", "window": ALWAYS})
    canaries = [beacon for beacon in fleet if beacon.offer()]
    for canary in canaries:
        canary.update(canary.offered())
    local.step()
    for canary in canaries:
        local.admin().remove_beacon(canary.id)
    rest = [beacon for beacon in fleet if beacon not in canaries]
    for _ in range(9):
        local.go_on(3 * HOUR)
        for beacon in rest:
            beacon.poll()
    shown = local.admin().get_rollout(rollout["rollout_id"])
    assert shown["status"] == "active" and shown["waves"][0]["stage"] == 1
    assert shown["total"]["healthy"] == len(canaries)


def test_a_confirmed_beacon_that_is_replaced_under_its_name_holds_up_nobody(local, release):
    fleet = local.beacons(20)
    rollout = local.admin().create_rollout(release, {"preset": "canary", "window": ALWAYS})
    canary = next(beacon for beacon in fleet if beacon.offer())
    canaries = [beacon for beacon in fleet if beacon.offer()]
    for one in canaries:
        one.update(one.offered())
    local.admin().remove_beacon(canary.id)
    (new,) = [local.admin().create_beacon(canary.id, "esp32c3")]  # in its box, not on the wall yet
    for _ in range(9):
        local.go_on(3 * HOUR)
        for beacon in fleet:
            if beacon is not canary:
                beacon.poll()
    assert new["last_seen"] is None
    shown = local.admin().get_rollout(rollout["rollout_id"])
    assert shown["status"] == "active" and shown["waves"][0]["stage"] == 1


@pytest.mark.parametrize("word", ["", "downloading", "rebooting"])
def test_who_is_removed_in_an_update_gives_its_place_back(local, release, word):
    admin = local.admin()
    buildings(admin, 1)
    fleet = local.beacons(2, site="hq/b0")
    rollout = admin.create_rollout(release, {**EVERYBODY, "concurrency": 1})["rollout_id"]
    offer = fleet[0].offered()
    if word:
        assert fleet[0].report(word, offer).status == 200
    assert fleet[1].poll().headers["x-reason"] == "busy"
    admin.remove_beacon(fleet[0].id)
    local.step()
    assert admin.get_rollout(rollout)["results"] == {"stopped": 1}
    fleet[1].update(fleet[1].offered())
    local.step()
    assert admin.get_rollout(rollout)["status"] == "completed"


def test_three_that_are_removed_in_their_updates_are_no_three_failures(local, release):
    fleet = local.beacons(9)
    rollout = local.admin().create_rollout(release, EVERYBODY)["rollout_id"]
    for beacon in fleet[:4]:
        assert beacon.report("rebooting", beacon.offered()).status == 200
        local.admin().remove_beacon(beacon.id)
    local.go_on(HOUR)
    shown = local.admin().get_rollout(rollout)
    assert (shown["status"], shown["results"]) == ("active", {"stopped": 4})


def test_what_began_before_the_clock_was_set_back_by_a_year_holds_no_place_for_a_year(
    local, tmp_path, by_hand
):
    taker, asker, third = local.beacons(3)
    made = upload(local.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]
    plan = {"preset": "all-at-once", "window": "00:00-24:00", "concurrency": 2}
    rollout = local.admin().create_rollout(made, plan)["rollout_id"]
    assert taker.download(taker.offered()).status == 200
    asker.offered()
    assert third.offer() is None  # two are under way in its building
    by_hand(YEAR)
    local.go_on(11 * 60)
    assert local.admin().get_rollout(rollout)["results"]["expired"] == 1
    assert third.offer() is not None
    local.go_on(20 * 60)
    assert local.admin().get_rollout(rollout)["results"]["lost"] == 1


def test_an_offer_that_is_renewed_after_the_clock_was_set_back_is_under_way(
    local, tmp_path, by_hand
):
    (beacon,) = local.beacons(1)
    made = upload(local.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]
    plan = {"preset": "all-at-once", "window": "00:00-24:00"}
    rollout = local.admin().create_rollout(made, plan)["rollout_id"]
    first = beacon.offered()
    local.go_on(11 * 60)
    assert local.admin().get_rollout(rollout)["results"] == {"expired": 1}
    by_hand(YEAR)
    offer = beacon.offered()
    assert offer["attempt_id"] == first["attempt_id"]
    assert beacon.download(offer).status == 200
    assert local.admin().get_rollout(rollout)["results"] == {"open": 1}
    local.go_on(31 * 60)
    assert local.admin().get_rollout(rollout)["results"] == {"lost": 1}
