"""In front of the beacons' calls: whom refusals are held against."""

from beacon_ota.orchestrator.limits import LIMITS
from tests.orchestrator.world import TestBeacon

TARGET = "/firmwares/latest/esp32c3?version=1.0.0"


def test_a_building_that_lost_its_clocks_is_told_the_time_every_beacon_of_it(local):
    """All behind one address; and one that repeats itself holds nobody back either."""
    fleet = local.beacons(LIMITS.refusals + 15)
    for beacon in fleet:
        beacon.clock = lambda: local.clock.at - 10_000
        answer = beacon.poll()
        assert (answer.status, answer.json["code"]) == (401, "clock_skew"), beacon.id
        beacon.clock = lambda told=answer.json["server_time"]: told
        assert beacon.poll().status == 204
    repeated = {"Authorization": fleet[0].sign("GET", TARGET)}
    fleet[0].call("GET", TARGET, headers=repeated)
    for _ in range(LIMITS.refusals + 5):
        answer = fleet[0].call("GET", TARGET, headers=repeated, check=False)
        assert answer.status == 401
    late = local.beacons(1, "late")[0]
    late.clock = lambda: 0.0
    assert late.poll().json["code"] == "clock_skew"
    # Nor is what it had to be told held against it when somebody beside it guesses.
    guess = TestBeacon(local.url, fleet[0].id, bytes(32))
    guess.clock = local.clock.now
    codes = [guess.call("GET", TARGET, check=False).status for _ in range(LIMITS.refusals + 1)]
    assert codes == [401] * LIMITS.refusals + [429]
    assert late.poll().json["code"] == "clock_skew"


def test_followers_are_told_of_a_bounded_number_of_refusals(local):
    (beacon,) = local.beacons(1)
    told = local.call(_follow(local))
    beacon.clock = lambda: 0.0
    for _ in range(3 * LIMITS.refusals):
        assert beacon.poll().status == 401
    events = [told.get_nowait() for _ in range(told.qsize())]
    assert [event["kind"] for event in events] == ["auth.refused"] * LIMITS.refusals


async def _follow(where):
    return where.service.hub.follow()
