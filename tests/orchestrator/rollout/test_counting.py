"""Counts: each beacon counts once, under its latest outcome."""

from dataclasses import replace

import pytest

from beacon_ota.orchestrator.rollout.counting import count_outcomes
from beacon_ota.orchestrator.rollout.plan_types import HOUR
from beacon_ota.orchestrator.rollout.roaming import MAX_CLOCK_DIFFERENCE_S
from beacon_ota.orchestrator.rollout.types import Result, StageCounts
from tests.orchestrator.rollout.build import (
    MONDAY,
    NEW,
    NEWER,
    attempt,
    beacon,
    by_stage,
    fleet,
    live,
    rollout,
    updated,
)

FLAT = [{"share": 1}]
ALWAYS = float("inf")


def count(made, beacons, attempts=(), *, now=MONDAY + HOUR, seen=None, since=0.0, **how):
    by_beacon = {}
    for one in attempts:
        by_beacon.setdefault(one.beacon_id, []).append(one)
    state = replace(live(made).state, since=since)
    seen = {one.id: ALWAYS for one in beacons} if seen is None else seen
    return count_outcomes(made, state, beacons, by_beacon, seen, now, **how)


def test_waiting_by_wave_and_stage():
    made = rollout(
        waves=[{"name": "a", "sites": ["hq/a"]}, {"name": "b", "sites": ["hq/b"]}],
    )
    beacons = fleet(300)
    counts = count(made, beacons)
    for wave in range(2):
        sizes = [len(cell) for cell in by_stage(made, beacons, wave)]
        assert [cell.waiting for cell in counts.stages[wave]] == sizes
    assert counts.total.waiting == counts.total.members == 200  # building c is in no wave


@pytest.mark.parametrize(
    "one",
    [
        beacon(version="1.2.3"),
        beacon(version="9.0.0"),
        beacon(version="odd"),
        beacon(image=NEW.checksum),
        beacon(quarantined=True),
        replace(beacon(), device_type="other"),
    ],
)
def test_those_the_release_is_not_for(one):
    assert count(rollout(), [one]).total == StageCounts()


def test_those_who_have_not_said_yet_what_they_run():
    one, now = beacon(version=""), MONDAY + 10 * HOUR
    assert count(rollout(), [one], seen={}, now=now).total == StageCounts(away=1)
    early = count(rollout(), [one], seen={}, now=now, listening_since=now)
    assert early.total == StageCounts(waiting=1)


def test_a_testing_release_waits_for_beta_beacons_only():
    beacons = [beacon("b1"), beacon("b2", channel="beta")]
    assert count(rollout(), beacons, release_state="testing").total.waiting == 1


def test_present_and_away():
    made, now = rollout(), MONDAY + 10 * HOUR
    beacons = fleet(4)
    seen = {"b0000": now - 5 * HOUR, "b0001": now - 7 * HOUR, "b0002": now + 100}
    total = count(made, beacons, now=now, seen=seen).total
    assert (total.waiting, total.away) == (2, 2)
    # Right after a start nobody could have been heard: they are not away yet.
    early = count(made, beacons, now=now, seen={}, listening_since=now - HOUR).total
    assert (early.waiting, early.away) == (4, 0)


def test_each_beacon_counts_once_under_its_latest_outcome():
    made = rollout(ladder=FLAT)
    one = beacon()
    failed = attempt(one, made, Result.FAILED, taken=MONDAY)
    again = attempt(one, made, Result.ROLLED_BACK, taken=MONDAY + 200)
    good = attempt(one, made, Result.SUCCESS, taken=MONDAY + 500)
    assert count(made, [one], [failed]).total.failed == 1
    assert count(made, [one], [failed, again]).total == StageCounts(failed=1, failure_streak=1)
    done = updated(one, made, MONDAY + 560)
    for order in ([failed, again, good], [good, again, failed]):
        assert count(made, [done], order).total == StageCounts(healthy=1)


def test_a_retry_under_way_does_not_hide_the_failure():
    made = rollout(ladder=FLAT)
    one = beacon()
    tries = [attempt(one, made, Result.LOST), attempt(one, made, taken=MONDAY + 900)]
    assert count(made, [one], tries).total == StageCounts(failed=1, failure_streak=1)


def test_open_and_untaken():
    made = rollout(ladder=FLAT)
    one, other = beacon("b1"), beacon("b2")
    tries = [attempt(one, made), attempt(other, made, taken=None)]
    assert count(made, [one, other], tries).total == StageCounts(open=1, waiting=1)


@pytest.mark.parametrize("result", [Result.EXPIRED, Result.STOPPED])
def test_what_counts_for_nothing(result):
    made = rollout(ladder=FLAT)
    assert count(made, [beacon()], [attempt(beacon(), made, result)]).total == StageCounts(
        waiting=1
    )


def test_other_rollouts_of_the_same_release():
    made, other = rollout(ladder=FLAT), rollout("r0", ladder=FLAT)
    one = beacon()
    failures = [attempt(one, other, Result.FAILED) for _ in range(3)]
    assert count(made, [one], failures[:2]).total == StageCounts(waiting=1)
    assert count(made, [one], failures).total == StageCounts()  # it has used up its attempts


def test_other_releases_use_up_nothing():
    made, earlier = rollout("r2", NEWER, ladder=FLAT), rollout("r1", ladder=FLAT)
    one = beacon()
    for result in Result:
        tries = [attempt(one, earlier, result) for _ in range(3)]
        assert count(made, [one], tries).total == StageCounts(waiting=1)


def test_an_outcome_stays_where_it_was_made():
    made = rollout(waves=[{"name": "a", "sites": ["hq/a"]}, {"name": "rest", "rest": True}])
    one = beacon(site="hq/a/1")
    failed = attempt(one, made, Result.FAILED)
    counts = count(made, [replace(one, site="hq/b/1")], [failed])
    assert sum(cell.failed for cell in counts.stages[0]) == 1
    assert counts.total.members == 1


def test_a_beacon_that_is_gone_from_the_registry_still_failed():
    made = rollout(ladder=FLAT)
    assert count(made, [], [attempt(beacon(), made, Result.LOST)]).total.failed == 1


def test_confirmed_and_then_silent():
    made, one = rollout(ladder=FLAT), beacon()
    good = attempt(one, made, Result.SUCCESS)
    done, now = updated(one, made, MONDAY + 60), MONDAY + 10 * HOUR
    assert count(made, [done], [good], now=now, seen={"b1": MONDAY + 60}).total == StageCounts(
        gone=1
    )
    assert count(made, [done], [good], now=now, seen={"b1": now - 60}).total == StageCounts(
        healthy=1
    )


def test_confirmed_and_then_back_on_the_old_release():
    made, one = rollout(ladder=FLAT), beacon()
    good = attempt(one, made, Result.SUCCESS)
    back = replace(one, version_at=MONDAY + HOUR)
    assert count(made, [back], [good]).total == StageCounts(failed=1, failure_streak=1)
    # What it said before the outcome proves nothing.
    assert count(made, [replace(one, version_at=MONDAY)], [good]).total == StageCounts(healthy=1)
    # Newer than the release is not back.
    newer = replace(one, version="1.4.0", version_at=MONDAY + HOUR)
    assert count(made, [newer], [good]).total == StageCounts(healthy=1)


def test_a_success_that_another_clock_has_dated_is_older_than_it_says():
    made, one = rollout(ladder=FLAT), beacon()
    good = replace(attempt(one, made, Result.SUCCESS), is_remote=True)
    ended = good.final_at
    ahead = replace(one, version_at=ended + MAX_CLOCK_DIFFERENCE_S)
    assert count(made, [ahead], [good], now=ended + HOUR).total == StageCounts(healthy=1)
    assert (
        count(made, [ahead], [replace(good, is_remote=False)], now=ended + HOUR).total.failed == 1
    )
    back = replace(one, version_at=ended + MAX_CLOCK_DIFFERENCE_S + 1)
    assert count(made, [back], [good], now=ended + HOUR).total.failed == 1


def test_a_success_that_was_undone_is_a_failure():
    made, one = rollout(ladder=FLAT), beacon(version="1.2.2")
    undone = attempt(one, made, Result.SUCCESS, ended=MONDAY, undone_at=MONDAY + 600)
    assert count(made, [one], [undone]).total == StageCounts(failed=1, failure_streak=1)
    # Also while it has not said yet what it runs now, and while it runs the release once more.
    for now in (updated(one, made), replace(one, version="")):
        assert count(made, [now], [undone]).total.failed == 1
    assert count(made, [one], [undone], since=MONDAY + 60).total.failed == 1
    assert count(made, [one], [undone], since=MONDAY + 601).total.accepted == 1


def test_nobody_waits_for_those_who_called_the_release_bad():
    made, other = rollout(ladder=FLAT), rollout("r2", ladder=FLAT)
    one = beacon()
    bad = attempt(one, other, Result.ROLLED_BACK, ended=MONDAY, blamed_at=MONDAY)
    assert count(made, [one], [bad]).total == StageCounts()
    cleared = replace(one, cleared_at=MONDAY + 1)
    assert count(made, [cleared], [bad]).total == StageCounts(waiting=1)
    # A stage whose failures may be tried again first: not by this one.
    patient = rollout(ladder=FLAT, gate={"retry_first": ["boot"]})
    mine = attempt(
        one, patient, Result.ROLLED_BACK, failed_in="boot", ended=MONDAY, blamed_at=MONDAY
    )
    assert count(patient, [one], [mine], now=MONDAY + 60).total.failed == 1
    undone = attempt(one, patient, Result.SUCCESS, failed_in="boot", undone_at=MONDAY + 30)
    assert count(patient, [one], [undone], now=MONDAY + 60).total.failed == 1


def test_failures_that_were_accepted():
    made = rollout(ladder=FLAT)
    one, other, third = fleet(3)
    tries = [
        attempt(one, made, Result.FAILED, ended=MONDAY + 60),
        attempt(other, made, Result.FAILED, ended=MONDAY + 600),
        attempt(third, made, Result.SUCCESS, ended=MONDAY + 60),
    ]
    beacons = [one, other, updated(third, made)]
    assert count(made, beacons, tries, since=MONDAY + 60).total == StageCounts(
        healthy=1, failed=1, accepted=1, failure_streak=1
    )
    retrying = [*tries, attempt(one, made, taken=MONDAY + 700)]
    assert count(made, beacons, retrying, since=MONDAY + 60).total.open == 1


def test_failures_that_may_be_tried_again_first():
    made = rollout(ladder=FLAT, gate={"retry_first": ["download"]})
    one, now = beacon(), MONDAY + 600
    stall = attempt(one, made, Result.FAILED, taken=MONDAY, failed_in="download")
    crash = attempt(one, made, Result.FAILED, taken=MONDAY, failed_in="boot")
    assert count(made, [one], [stall], now=now).total == StageCounts(open=1)
    assert count(made, [one], [crash], now=now).total.failed == 1
    # Not for ever: when it does not try again in time, and when it has tried three times.
    assert count(made, [one], [stall], now=MONDAY + 60 + 1800).total.failed == 1
    assert count(made, [one], [stall] * 3, now=now).total.failed == 1
    # Nor is time held against it in which nobody was there to listen.
    deaf = count(made, [one], [stall], now=MONDAY + 9000, listening_since=MONDAY + 8000)
    assert deaf.total == StageCounts(open=1)
    under_way = attempt(one, made, taken=MONDAY + 1800)
    assert count(made, [one], [stall, under_way], now=MONDAY + 2400).total == StageCounts(open=1)
