"""What counts, once each, and what the counts say."""

from dataclasses import replace

import pytest

from beacon_ota.orchestrator.rollout.gates import tripped_limit
from beacon_ota.orchestrator.rollout.plan_types import Gate
from beacon_ota.orchestrator.rollout.types import Result, StageCounts
from tests.orchestrator.rollout.build import (
    Bench,
    beacon,
    fleet,
    rollout,
)

FLAT = [{"share": 1}]


def outcomes(word: str, **fields) -> Bench:
    """A stage whose beacons took the offer in this order: . healthy, x failed, L lost late."""
    made = rollout(ladder=FLAT, **fields)
    bench = Bench(made, fleet(len(word)))
    bench.tick()
    for one, letter in zip(list(bench.beacons.values()), word, strict=True):
        bench.now += 1
        bench.end(one, {".": Result.SUCCESS, "x": Result.FAILED, "L": Result.LOST}[letter])
        if letter == "L":
            late = bench.attempts[one.id][-1]
            bench.attempts[one.id][-1] = replace(late, ended_at=bench.now + 1800)
    return bench


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("xx", None),
        ("xxx", "failures_in_a_row"),
        (".xxx", "failures_in_a_row"),
        ("xx.x", None),
        ("x...", None),
        ("x....", "failure_share"),
        ("....x", "failure_share"),
        ("." * 19 + "x", None),  # one in twenty is the limit, not above it
        ("." * 18 + "x", "failure_share"),
        ("." * 56 + "xx" + ".x", None),
        ("." * 55 + "xx" + ".x", "failure_share"),
        ("." * 57 + "xx" + "x", "failures_in_a_row"),
        ("." * 100, None),
        # Lost ones are all known at the same late moment, but were not neighbours.
        ("L......................L......................L...............", None),
        ("LLL", "failures_in_a_row"),
    ],
)
def test_what_trips(word, reason):
    bench = outcomes(word)
    bench.tick(2000)
    halted = [change.reason for change in bench.made if change.kind == "halted"]
    assert halted == ([reason] if reason else [])


def test_one_beacon_that_flaps_is_not_a_row():
    made = rollout(ladder=FLAT, retry={"limit": 9})
    bench = Bench(made, fleet(10))
    bench.tick()
    for _ in range(6):
        bench.now += 300
        bench.end(bench.beacons["b0000"], Result.FAILED)
    assert bench.tally().total.failure_streak == 1
    assert bench.tick() == []


def test_limits_are_the_gate_s():
    gate = Gate(failure_share=0.5, failure_sample=2, max_consecutive_failures=4)
    assert tripped_limit(StageCounts(healthy=1, failed=1, failure_streak=1), gate) is None
    assert tripped_limit(StageCounts(healthy=1, failed=2, failure_streak=2), gate)
    assert tripped_limit(StageCounts(failed=4, healthy=9, failure_streak=4), gate)


def test_small_waves_do_not_hide_a_pattern():
    made = rollout(waves=[{"name": f"w{n}", "sites": [f"s/{n}"]} for n in range(4)], ladder=FLAT)
    beacons = [beacon(f"b{n}", site=f"s/{n}") for n in range(4)]
    bench = Bench(made, beacons)
    bench.tick()
    for one in beacons[:3]:
        bench.now += 60
        bench.end(one, Result.ROLLED_BACK)
    assert bench.tick() == ["halted"]
    assert bench.made[-1].wave is None


def test_a_wave_with_a_gate_of_its_own_is_judged_by_it_alone():
    made = rollout(
        waves=[
            {"name": "lab", "sites": ["hq/a"], "gate": {"failure_share": 1.0, "in_a_row": 99}},
            {"name": "rest", "rest": True},
        ],
        ladder=FLAT,
    )
    bench = Bench(made, fleet(30))
    bench.tick()
    for one in fleet(30)[::3]:
        bench.now += 60
        bench.end(one, Result.FAILED)
    assert bench.tally().total.failed == 10 and bench.tally().common.failed == 0
    assert "halted" not in bench.tick()
