"""Whom a rollout leaves out because of the board."""

from beacon_ota.orchestrator.rollout.coverage import count_uncovered
from beacon_ota.orchestrator.rollout.decide import decide
from beacon_ota.orchestrator.rollout.plan_types import Plan, Release, Selector, Wave
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.simulate import simulate_rollout
from beacon_ota.orchestrator.rollout.types import Beacon, Reason
from beacon_ota.orchestrator.rollout.windows import Places

RELEASE = Release("f" * 24, "1.1.0", "esp32c3", "a" * 64)


def rollout(*waves: Wave) -> Rollout:
    plan = Plan("r" * 24, RELEASE, window="00:00-24:00")
    return Rollout(Plan("r" * 24, RELEASE, waves, window="00:00-24:00") if waves else plan)


def beacon(name: str, device_type: str = "esp32c3", said: str = "", site: str = "") -> Beacon:
    return Beacon(name, device_type, "1.0.0", site=site, said_type=said)


FLEET = [
    beacon("own"),
    beacon("own-proven", said="esp32c3"),
    beacon("doubted", said="esp32c3-8mb"),
    beacon("doubted-too", "esp32c3-8mb", said="esp32c3"),
    beacon("other", "esp32c3-8mb"),
    beacon("other-proven", "esp32c3-8mb", said="esp32c3-8mb"),
    beacon("third", "esp32c3-1m", said="esp32c3-8mb"),
]


def test_other_boards_and_doubted_ones_are_counted_apart():
    found = count_uncovered(rollout(), FLEET)
    assert found.questioned == 2
    assert list(found.boards.items()) == [("esp32c3-8mb", 2), ("esp32c3-1m", 1)]


def test_only_those_that_a_wave_selects_are_left_out():
    here = rollout(Wave("a", Selector(sites=("a",))))
    fleet = [beacon("x", "esp32c3-8mb", site="a/1"), beacon("y", "esp32c3-8mb", site="b")]
    assert count_uncovered(here, fleet).boards == {"esp32c3-8mb": 1}


def test_a_doubted_beacon_is_offered_nothing_and_wanted_by_nobody():
    plan = rollout()
    assert [one.id for one in FLEET if plan.targets(one)] == ["own", "own-proven"]
    for one in FLEET:
        said = decide([], one, 0.0)
        assert (said.reason is Reason.BOARD) == one.questioned


def test_a_preview_says_who_is_left_out():
    timeline = simulate_rollout(rollout(), FLEET, Places(), 1e9)
    assert timeline.left_out[Reason.BOARD] == 3
    assert timeline.left_out[Reason.NO_RELEASE] == 2
