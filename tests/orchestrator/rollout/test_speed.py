"""How long decisions take; printed (-s), and bounded only where something would be broken.

Campaigns only: the machine decides. What is decided is the other modules'.
"""

from time import perf_counter

import pytest

from beacon_ota.orchestrator.rollout.advance import advance
from beacon_ota.orchestrator.rollout.decide import decide
from beacon_ota.orchestrator.rollout.polling import poll_delay
from beacon_ota.orchestrator.rollout.types import Reason, Result, Status
from tests.orchestrator.rollout.build import (
    ANY_TIME,
    MONDAY,
    NEWER,
    PLACES,
    Bench,
    attempt,
    fleet,
    live,
    rollout,
    updated,
)

pytestmark = pytest.mark.slow


def microseconds(work, items) -> float:
    best = float("inf")
    for _ in range(3):
        began = perf_counter()
        for item in items:
            work(item)
        best = min(best, (perf_counter() - began) / len(items))
    return best * 1e6


def test_one_decision():
    made = rollout()
    beacons = fleet(1000)
    tries = {one.id: [attempt(one, made, Result.FAILED)] for one in beacons}
    old = [live(rollout(f"old{n}"), Status.COMPLETED) for n in range(8)]
    closed = PLACES.place_of("hq/a/1")
    done = [updated(one, made) for one in beacons]
    cases = {
        "offer": ([live(made)], beacons, ANY_TIME, Reason.OFFER),
        "window": ([live(made)], beacons, closed, Reason.WINDOW),
        "up to date": ([live(made)], done, ANY_TIME, Reason.UP_TO_DATE),
        "up to date, 9 rollouts": ([live(made), *old], done, ANY_TIME, Reason.UP_TO_DATE),
        "scheduled, 9 rollouts": (
            [live(rollout("next", NEWER), Status.SCHEDULED), *old],
            done,
            ANY_TIME,
            Reason.SCHEDULED,
        ),
    }
    print()
    now = MONDAY + 3600
    for name, (lives, who, place, reason) in cases.items():
        assert decide(lives, who[0], now, place=place).reason is reason
        took = microseconds(
            lambda one, lives=lives, place=place: decide(lives, one, now, place=place), who
        )
        print(f"decide, {name}: {took:.1f} µs")
        assert took < 500
    lives = [live(made)]
    again = microseconds(
        lambda one: decide(lives, one, MONDAY + 3600, attempts=tries[one.id], place=ANY_TIME),
        beacons,
    )
    print(f"decide, with an attempt: {again:.1f} µs")
    print(f"poll_delay: {microseconds(lambda one: poll_delay(one.id, MONDAY), beacons):.1f} µs")


def test_one_look_at_a_large_fleet():
    made = rollout()
    bench = Bench(made, fleet(10_000))
    bench.tick()
    for one in list(bench.beacons.values())[:5000]:
        bench.end(one, Result.SUCCESS)
    began = perf_counter()
    tally = bench.tally()
    counted = perf_counter()
    advance(made, bench.state, tally, bench.now)
    ended = perf_counter()
    print(f"\n10,000 beacons: counted in {(counted - began) * 1e3:.1f} ms, ", end="")
    print(f"judged in {(ended - counted) * 1e6:.0f} µs")
    assert tally.total.healthy == 5000
    assert counted - began < 5
