"""Polls: an offer is made upon what is committed, not upon what this process has heard of."""

import pytest

from tests.orchestrator.world import upload

EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}

CHANGES = {
    "halted": "UPDATE rollouts SET status = 'halted', revision = revision + 1",
    "moved": "UPDATE rollouts SET revision = revision + 1",
    "withdrawn": "UPDATE firmwares SET state = 'deprecated'",
    "damaged": "UPDATE firmwares SET damaged_at = 1.0",
    "quarantined": "UPDATE beacons SET quarantined_at = 1.0",
    "removed": "DELETE FROM beacons",
}


@pytest.fixture
def beacon(local, tmp_path):
    """A beacon that a release is due for."""
    (beacon,) = local.beacons(1)
    release = upload(local.admin(), "2.0.0", tmp_path, channel="stable")["firmware_id"]
    local.admin().create_rollout(release, EVERYBODY)
    local.step()
    return beacon


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_is_offered_after_a_change_elsewhere(local, elsewhere, beacon, change):
    elsewhere.execute(change)
    answer = beacon.poll()
    assert answer.status == 204 and answer.headers["retry-after"] == "1"
    assert not elsewhere.execute("SELECT id FROM attempts")
    assert (
        not local.service.fleet.open_attempts
        and not local.service.fleet.beacons[beacon.id].attempts
    )


@pytest.mark.parametrize(("zone", "offset"), [(None, 0), ("Asia/Kathmandu", 345)])
def test_an_offer_for_any_time_says_how_the_buildings_clock_goes(local, beacon, zone, offset):
    """A beacon has a window of its own, in its building's time, and no rules of that clock."""
    local.admin().create_site("hq", tz=zone)
    local.admin().change_beacon(beacon.id, site="hq")
    offer = beacon.offered()
    assert offer["utc_off"] == offset and "not_before" not in offer


def test_an_offer_in_a_window_brings_the_window(local, tmp_path):
    (beacon,) = local.beacons(1)
    release = upload(local.admin(), "2.0.0", tmp_path, channel="stable")["firmware_id"]
    local.admin().create_rollout(release, {"preset": "all-at-once", "window": "00:00-23:59"})
    local.step()
    offer = beacon.offered()
    assert offer["not_before"] < offer["not_after"] and "utc_off" not in offer


def test_an_offer_that_expired_is_not_renewed_after_a_halt_elsewhere(local, elsewhere, beacon):
    offer = beacon.offered()
    local.go_on(900.0)
    assert elsewhere.attempt(offer["attempt_id"])["result"] == "expired"
    elsewhere.execute(CHANGES["moved"])
    assert beacon.poll().status == 204
    assert elsewhere.attempt(offer["attempt_id"])["result"] == "expired"
    (known,) = local.service.fleet.beacons[beacon.id].attempts
    assert known.result == "expired"  # as before: the next one goes on with it
    elsewhere.execute("UPDATE rollouts SET revision = revision - 1")
    assert beacon.offered()["attempt_id"] == offer["attempt_id"]


def test_an_open_offer_is_looked_at_again_before_it_is_handed_out(local, elsewhere, beacon):
    beacon.offered()
    heard = []

    async def catch_up() -> None:
        heard.append(1)
        local.engine.apply_row(elsewhere.rollout(rollout))

    (rollout,) = local.service.fleet.rollouts
    local.service.catch_up = catch_up
    elsewhere.halt(rollout)
    answer = beacon.poll()
    assert answer.status == 204 and answer.headers["x-reason"] == "halted" and heard
