"""A month of a fleet in seconds: good releases reach everybody, bad ones stop where they began."""

import random
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from beacon_ota.orchestrator.rollout.advance import (
    halt_rollout,
    initial_state,
    pause_rollout,
    resume_rollout,
)
from beacon_ota.orchestrator.rollout.decide import ActiveRollout, decide
from beacon_ota.orchestrator.rollout.plan_types import DAY, HOUR, MINUTE, WEEK
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.simulate import AttemptOutcome, Simulation, simulate_rollout
from beacon_ota.orchestrator.rollout.types import Beacon, Kind, Reason, Result, Status
from beacon_ota.orchestrator.rollout.windows import Places, next_window
from tests.orchestrator.rollout.build import MONDAY, NEWER, PLACES, beacon, fleet, rollout, utc

HEALTHY = AttemptOutcome()
BRICK = AttemptOutcome(None)
CRASH = AttemptOutcome(Result.ROLLED_BACK, 5 * MINUTE, "boot")
STALL = AttemptOutcome(Result.FAILED, 4 * MINUTE, "download")
BUILDINGS = {"preset": "geographic", "buildings": ["hq/a", "hq/b"]}


def simulation(made: Rollout, beacons: list[Beacon], **how) -> Simulation:
    return Simulation(
        [ActiveRollout(made, initial_state(made, MONDAY))], beacons, PLACES, MONDAY, **how
    )


def status(run: Simulation) -> Status:
    return run.rollouts[0].state.status


def served(run: Simulation) -> set[str]:
    release = run.rollouts[0].rollout.plan.release
    return {one.id for one in run.beacons.values() if one.version == release.version}


def touched(run: Simulation) -> set[str]:
    return {offer.beacon_id for offer in run.offers}


def line(at: float, *words: object) -> None:
    print(f"{datetime.fromtimestamp(at, UTC):%a %d %b %H:%M}", *words)


def test_a_month_of_a_thousand_beacons_in_three_buildings():
    """The specification's example: building A in week 1, B in week 2, the others in week 3."""
    began = time.perf_counter()
    made = rollout(**BUILDINGS)
    beacons = fleet(1000)
    rng = random.Random(7)
    # One in twenty is switched off for days or weeks when it begins.
    joins = {one.id: MONDAY + rng.random() * 28 * DAY for one in rng.sample(beacons, 50)}

    def behave(one: Beacon, number: int, now: float) -> AttemptOutcome:
        return AttemptOutcome(Result.SUCCESS, rng.uniform(15, 90))

    run = simulation(made, beacons, behave=behave, joins=joins)
    run.run(MONDAY + 31 * DAY)
    took = time.perf_counter() - began

    assert status(run) is Status.COMPLETED
    assert len(served(run)) == 1000
    assert Counter(offer.beacon_id for offer in run.offers).most_common(1)[0][1] == 1
    weeks = {wave: Counter() for wave in range(3)}
    for offer in run.offers:
        weeks[offer.decision.wave or 0][int((offer.at - MONDAY) // WEEK)] += 1
        span = next_window(PLACES.place_of(run.beacons[offer.beacon_id].site).window, offer.at)
        assert span[0] <= offer.at < span[1]
    for wave, counts in weeks.items():
        assert counts[wave] > 0.9 * counts.total() and min(counts) == wave

    print()
    for _, change in run.transitions:
        building = "" if change.wave is None else made.plan.waves[change.wave].name
        stage = "" if change.stage is None else f"stage {change.stage + 1}"
        line(change.at, change.kind.value, building, stage, "-", change.detail)
    print(f"{len(run.offers)} offers, {len(served(run))} served, {took:.1f} s")


@pytest.mark.parametrize("bad", [1.0, 0.5, 0.2, 0.1])
@pytest.mark.parametrize("fate", [BRICK, CRASH, STALL], ids=["brick", "crash", "stall"])
def test_a_bad_release_is_halted_among_the_canaries(bad, fate):
    rng = random.Random(3)
    doomed = {one.id for one in fleet(600) if rng.random() < bad}
    made = rollout()
    run = simulation(
        made, fleet(600), behave=lambda one, n, at: fate if one.id in doomed else HEALTHY
    )
    run.run(MONDAY + 14 * DAY)
    halted = next(change for _, change in run.transitions if change.kind is Kind.HALTED)
    assert halted.stage == 0 and halted.reason in ("failures_in_a_row", "failure_share")
    canaries = {one.id for one in fleet(600) if made.stage_of(one.id, 0) == 0}
    assert touched(run) <= canaries
    assert len(canaries) <= 0.13 * 600
    print(f"\n{bad:.0%} fail: {len(touched(run))} of 600 touched, {halted.reason}: {halted.detail}")


def test_a_release_that_nobody_can_download_halts_though_failures_are_tried_again_first():
    made = rollout(gate={"retry_first": ["download"]})
    run = simulation(made, fleet(600), behave=lambda *_: STALL)
    run.run(MONDAY + 14 * DAY)
    assert status(run) is Status.HALTED
    assert all(made.stage_of(name, 0) == 0 for name in touched(run))


def test_silent_bricks_in_an_emergency():
    run = simulation(rollout(preset="emergency"), fleet(600), behave=lambda *_: BRICK)
    run.run(MONDAY + DAY)
    assert status(run) is Status.HALTED
    assert len(touched(run)) <= 0.13 * 600 and not served(run)
    halted = run.transitions[-1][1]
    assert halted.at - MONDAY < HOUR


def test_a_geographic_rollout_that_fails_in_the_second_building():
    made = rollout(**BUILDINGS)
    run = simulation(
        made, fleet(900), behave=lambda one, n, at: CRASH if "hq/b" in one.site else HEALTHY
    )
    run.run(MONDAY + 31 * DAY)
    halted = run.transitions[-1][1]
    assert (halted.kind, halted.wave, halted.stage) == (Kind.HALTED, 1, 0)
    assert all("hq/c" not in run.beacons[name].site for name in touched(run))
    assert len(served(run)) == 300  # the first building had it already


def test_a_release_that_dies_a_day_later_goes_no_further():
    run = simulation(rollout(), fleet(600))

    def die() -> None:
        for name in served(run):
            run.vanish(name)

    for hour in range(24 * 30):
        run.schedule(MONDAY + hour * HOUR, die)
    run.run(MONDAY + 30 * DAY)
    assert status(run) is Status.HALTED and run.transitions[-1][1].reason == "gone"
    assert len(touched(run)) <= 0.13 * 600


def test_a_flapping_beacon_neither_loops_nor_halts_the_fleet():
    run = simulation(rollout(window="00:00-24:00"), fleet(400))
    canary = next(n for n in run.beacons if run.rollouts[0].rollout.stage_of(n, 0) == 0)

    def falls_back() -> None:
        one = run.beacons[canary]
        if one.version == "1.2.3":
            run.join(replace(one, version="1.2.2", image="", version_at=run.now))

    for hour in range(24 * 14):
        run.schedule(MONDAY + hour * HOUR, falls_back)
    run.run(MONDAY + 14 * DAY)
    assert Counter(offer.beacon_id for offer in run.offers)[canary] == 3
    assert run.last_decisions[canary].reason is Reason.ATTEMPTS
    assert status(run) is Status.COMPLETED and len(served(run)) == 399


def test_failures_that_heal_when_retried():
    rng = random.Random(5)

    def behave(one: Beacon, number: int, now: float) -> AttemptOutcome:
        return STALL if number == 1 and rng.random() < 0.05 else HEALTHY

    made = rollout(gate={"retry_first": ["download"]})
    run = simulation(made, fleet(500), behave=behave)
    run.run(MONDAY + 14 * DAY)
    assert status(run) is Status.COMPLETED and len(served(run)) == 500
    tries = Counter(offer.beacon_id for offer in run.offers)
    assert set(tries.values()) == {1, 2}


def test_pause_and_resume():
    run = simulation(rollout(window="00:00-24:00"), fleet(300))
    run.run(MONDAY + 25 * HOUR)  # in the second stage
    run.apply_changes("r1", pause_rollout(run.rollouts[0].state, run.now, "ada"))
    before = len(run.offers)
    run.run(run.now + 3 * DAY)
    assert len(run.offers) == before < 300
    run.apply_changes("r1", resume_rollout(run.rollouts[0].state, run.now, "ada"))
    run.run(run.now + 3 * DAY)
    assert len(served(run)) == 300


def test_a_halt_stops_those_who_are_downloading():
    run = simulation(
        rollout(preset="emergency", ladder=[{"share": 1}]),
        fleet(300),
        behave=lambda *_: AttemptOutcome(Result.SUCCESS, 10 * MINUTE),
    )
    run.run(MONDAY + 13 * MINUTE)
    downloading = {one for one, tries in run.attempts.items() if tries[-1].rebooting_at is None}
    rebooting = set(run.attempts) - downloading
    run.apply_changes("r1", halt_rollout(run.rollouts[0].state, run.now, "ada"))
    run.run(MONDAY + DAY)
    assert downloading and rebooting
    assert served(run) == rebooting
    assert {run.attempts[one][-1].result for one in downloading} == {Result.STOPPED}


def test_a_newer_release_on_the_way_takes_over():
    run = simulation(rollout(), fleet(300))
    newer = rollout("r2", NEWER)
    run.schedule(
        MONDAY + 36 * HOUR,
        lambda: run.add_rollout(ActiveRollout(newer, initial_state(newer, run.now))),
    )
    run.run(MONDAY + 21 * DAY)
    assert {one.version for one in run.beacons.values()} == {"1.3.0"}
    assert [live.state.status for live in run.rollouts] == [Status.COMPLETED] * 2
    tries = Counter(offer.beacon_id for offer in run.offers)
    assert max(tries.values()) == 2  # each release once at most


def test_release_after_release():
    run = simulation(rollout(), fleet(60))
    for n in range(1, 6):
        release = replace(
            NEWER, firmware_id=f"{n:024x}", version=f"1.{n + 2}.0", checksum=f"{n:064x}"
        )
        made = rollout(f"r{n + 1}", release)
        run.schedule(
            MONDAY + n * WEEK,
            lambda made=made: run.add_rollout(ActiveRollout(made, initial_state(made, run.now))),
        )
    run.run(MONDAY + 7 * WEEK)
    assert {live.state.status for live in run.rollouts} == {Status.COMPLETED}
    assert {one.version for one in run.beacons.values()} == {"1.7.0"}
    assert len(run.offers) == 6 * 60


def test_late_joiners_are_served_after_completion():
    made = rollout()
    run = simulation(made, fleet(60))
    run.run(MONDAY + 10 * DAY)
    assert status(run) is Status.COMPLETED
    for n in range(20):
        run.join(beacon(f"late{n}"))
    run.run(MONDAY + 12 * DAY)
    assert len(served(run)) == 80


def test_a_beacon_that_moves_is_served_with_its_new_building():
    made = rollout(**BUILDINGS, ladder=[{"share": 1}])
    run = simulation(made, fleet(30))
    moving = next(one for one in fleet(30) if one.site == "hq/a/1")
    run.schedule(MONDAY + HOUR, lambda: run.join(replace(moving, site="hq/c/1")))
    run.run(MONDAY + 31 * DAY)
    offer = next(offer for offer in run.offers if offer.beacon_id == moving.id)
    assert offer.decision.wave == 2 and offer.at > MONDAY + 2 * WEEK


def test_the_cap_of_a_building_is_never_exceeded():
    made = rollout(preset="all-at-once", concurrency=5, window="00:00-24:00")
    run = simulation(made, fleet(150), behave=lambda *_: AttemptOutcome(Result.SUCCESS, 7 * MINUTE))
    run.run(MONDAY + 10 * DAY)
    assert len(served(run)) == 150
    for building in "abc":
        spans = sorted(
            (tries[0].offered_at, tries[0].ended_at or 0)
            for name, tries in run.attempts.items()
            if run.beacons[name].site == f"hq/{building}/1"
        )
        for start, _ in spans:
            assert sum(other[0] <= start < other[1] for other in spans) <= 5


def test_over_the_change_of_the_clocks():
    """Berlin, 29 March 2026: the window of that night is there, and where the clock says so."""
    start = utc(2026, 3, 28, 12)
    made = rollout(preset="all-at-once")
    beacons = fleet(60, site="hq/a/1")
    run = Simulation([ActiveRollout(made, initial_state(made, start))], beacons, PLACES, start)
    run.run(start + 2 * DAY)
    assert len(served(run)) == 60
    assert {int(offer.at // HOUR * HOUR) for offer in run.offers} == {int(utc(2026, 3, 29, 1))}


def test_two_runs_are_the_same():
    runs = []
    for _ in range(2):
        run = simulation(rollout(concurrency=3), fleet(100), behave=lambda *_: HEALTHY)
        run.run(MONDAY + 5 * DAY)
        runs.append(run)
    assert runs[0].offers == runs[1].offers and runs[0].transitions == runs[1].transitions


# ---- the preview ----


def test_the_preview_is_what_decide_then_says():
    made = rollout(**BUILDINGS)
    beacons = fleet(200)
    timeline = simulate_rollout(made, beacons, PLACES, MONDAY)
    assert len(timeline.slots) == 200 and not timeline.left_out
    assert timeline.ends_at is not None and timeline.ends_at < MONDAY + 31 * DAY
    run = simulation(made, beacons)
    by_id = {one.id: one for one in beacons}
    for slot in timeline.slots:
        assert slot.at is not None
        run.run(slot.at)
        one = by_id[slot.beacon_id]
        answer = decide(run.rollouts, one, slot.at, place=PLACES.place_of(one.site))
        assert answer.offered and (answer.wave, answer.stage) == (slot.wave, slot.stage)
    assert [change for _, change in run.transitions] == list(
        timeline.transitions[: len(run.transitions)]
    )


def test_the_preview_says_who_is_left_out_and_why():
    made = rollout(waves=[{"name": "a", "sites": ["hq/a"]}])
    beacons = [
        beacon("gets-it"),
        beacon("elsewhere", site="hq/b/1"),
        beacon("has-it", version="1.2.3"),
        beacon("kept", quarantined=True),
        replace(beacon("other"), device_type="esp32"),
    ]
    timeline = simulate_rollout(made, beacons, PLACES, MONDAY)
    reasons = {slot.beacon_id: slot.reason.value for slot in timeline.slots}
    assert reasons == {
        "gets-it": "offer",
        "elsewhere": "no_release",
        "has-it": "up_to_date",
        "kept": "quarantined",
        "other": "no_release",
    }
    assert timeline.left_out == {"no_release": 2, "up_to_date": 1, "quarantined": 1}


def test_the_preview_of_a_testing_release():
    beacons = [beacon("b1"), beacon("b2", channel="beta")]
    timeline = simulate_rollout(rollout(), beacons, PLACES, MONDAY, release_state="testing")
    assert {slot.beacon_id: slot.reason for slot in timeline.slots} == {
        "b1": Reason.CHANNEL,
        "b2": Reason.OFFER,
    }


def test_the_preview_ends_with_its_horizon():
    timeline = simulate_rollout(rollout(**BUILDINGS), fleet(30), PLACES, MONDAY, horizon_s=8 * DAY)
    assert timeline.ends_at is None
    later = [slot for slot in timeline.slots if slot.at is None]
    assert later and {slot.reason for slot in later} <= {Reason.WAVE, Reason.STAGE, Reason.WINDOW}


def test_the_preview_starts_in_the_future():
    timeline = simulate_rollout(rollout(), fleet(30), Places(), MONDAY + 30 * DAY)
    assert all(slot.at is not None and slot.at > MONDAY + 30 * DAY for slot in timeline.slots)


@settings(max_examples=6, deadline=None)
@given(
    start=st.floats(MONDAY, MONDAY + WEEK),
    size=st.sampled_from([1001, 2600, 4000]),
    plan=st.sampled_from([{"preset": "canary"}, {"preset": "canary", "concurrency": 5}, {}]),
)
@example(MONDAY + 37.3, 4000, {})
def test_a_preview_gets_on_whenever_it_starts_prop(start, size, plan):
    """A large fleet's engine looks rarely; beacons that wait for it poll no faster than others."""
    looks = Counter()

    def stop() -> bool:
        looks["events"] += 1
        assert looks["events"] < 100 * size, "it turns in circles"
        return False

    timeline = simulate_rollout(
        rollout(**plan), fleet(size), PLACES, start, horizon_s=2 * DAY, stop=stop
    )
    assert any(slot.at is not None for slot in timeline.slots)
    assert timeline.transitions[0].at == start


def test_a_preview_ends_when_it_is_told_to():
    seen = []

    def stop() -> bool:
        seen.append(1)
        return len(seen) > 10

    timeline = simulate_rollout(rollout(), fleet(30), PLACES, MONDAY, stop=stop)
    assert len(seen) == 11
    assert timeline.ends_at is None
