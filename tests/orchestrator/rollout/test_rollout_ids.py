"""Ids that keep to the shares."""

import hashlib

from beacon_ota.orchestrator.rollout.rollout_ids import choose_rollout_id
from tests.orchestrator.rollout.build import by_stage, fleet, rollout


def sizes(made, beacons, wave=0):
    return [len(cell) for cell in by_stage(made, beacons, wave)]


def test_no_more_canaries_than_asked_for():
    beacons = fleet(600)
    plain, drawn = [], []
    for n in range(10):
        plain.append(sizes(rollout(f"{n:024x}"), beacons))
        drawn_id = choose_rollout_id(rollout().plan, beacons, f"salt {n}")
        drawn.append(sizes(rollout(drawn_id), beacons))
    assert any(canaries > 60 for canaries, *_ in plain)  # left to chance
    for canaries, half, _ in drawn:
        assert 45 <= canaries <= 60 and canaries + half <= 330


def test_a_canary_in_every_small_building():
    fields = {"preset": "geographic", "buildings": ["hq/a", "hq/b"]}
    beacons = fleet(15)
    made = rollout(choose_rollout_id(rollout(**fields).plan, beacons, "salt"), **fields)
    assert [sizes(made, beacons, wave)[0] for wave in range(3)] == [1, 1, 1]


def test_the_same_question_has_the_same_answer():
    plan, beacons = rollout().plan, fleet(50)
    assert choose_rollout_id(plan, beacons, "a") == choose_rollout_id(plan, reversed(beacons), "a")
    assert choose_rollout_id(plan, beacons, "a") != choose_rollout_id(plan, beacons, "b")


def test_nobody_and_those_it_is_not_for():
    plan = rollout().plan
    nobody = choose_rollout_id(plan, [], "a")
    assert nobody == hashlib.sha256(b"a\n0").hexdigest()[:24]  # the first that is tried is fair
    assert choose_rollout_id(plan, [], "b") != nobody
    assert choose_rollout_id(plan, fleet(50, version=""), "a") == choose_rollout_id(
        plan, fleet(50), "a"
    )
    others = [*fleet(50, version="1.2.3"), *fleet(50, version="?"), *fleet(50, quarantined=True)]
    assert choose_rollout_id(plan, others, "a") == nobody
    assert choose_rollout_id(plan, fleet(50), "a", release_state="testing") == nobody
