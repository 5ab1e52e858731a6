"""The decision table: one beacon, one moment, one answer."""

from dataclasses import replace

import pytest

from beacon_ota.orchestrator.rollout.decide import (
    decide,
    expired_attempts,
    lost_attempts,
    may_continue,
    revocable_attempts,
)
from beacon_ota.orchestrator.rollout.plan_types import DAY, HOUR
from beacon_ota.orchestrator.rollout.types import Beacon, Reason, Result, Status, WaveState
from tests.orchestrator.rollout.build import (
    ANY_TIME,
    MONDAY,
    NEWER,
    PLACES,
    attempt,
    beacon,
    by_stage,
    fleet,
    live,
    rollout,
    updated,
    utc,
)

SHARE = [{"share": 0.5}, {"share": 1}]


def ask(lives, one=None, now=MONDAY, **how):
    return decide(lives, one or beacon(), now, **{"place": ANY_TIME, **how})


def test_an_offer_says_all_there_is():
    made = rollout()
    answer = ask([live(made)])
    assert answer.offered
    assert (answer.rollout_id, answer.firmware_id) == ("r1", "f" * 24)
    assert (answer.wave, answer.stage) == (0, made.stage_of("b1", 0))
    assert (answer.attempt_id, answer.number, answer.required) == (None, 1, False)
    assert (answer.not_before, answer.not_after) == (None, None)


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (beacon(version="1.2.3"), Reason.UP_TO_DATE),
        (beacon(version="2.0.0"), Reason.UP_TO_DATE),
        (beacon(version="1.2.3+local"), Reason.UP_TO_DATE),
        (beacon(version="1.2.3-rc.1"), Reason.OFFER),
        (beacon(image="ab" * 32), Reason.UP_TO_DATE),
        (beacon(version=""), Reason.VERSION),
        (beacon(version="yesterday"), Reason.VERSION),
        (beacon(on_trial=True), Reason.TRIAL),
        (beacon(quarantined=True), Reason.QUARANTINED),
        (Beacon("b1", "esp32", "1.0.0"), Reason.NO_RELEASE),
    ],
)
def test_what_the_beacon_is(one, reason):
    assert ask([live(rollout())], one).reason is reason


@pytest.mark.parametrize(
    ("release_state", "channel", "reason"),
    [
        ("stable", "stable", Reason.OFFER),
        ("stable", "beta", Reason.OFFER),
        ("testing", "beta", Reason.OFFER),
        ("testing", "stable", Reason.CHANNEL),
        ("deprecated", "stable", Reason.WITHDRAWN),
        ("deprecated", "beta", Reason.WITHDRAWN),
        ("anything", "beta", Reason.WITHDRAWN),
    ],
)
def test_channels(release_state, channel, reason):
    lives = [live(rollout(), release_state=release_state)]
    assert ask(lives, beacon(channel=channel)).reason is reason


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (Status.SCHEDULED, Reason.SCHEDULED),
        (Status.ACTIVE, Reason.OFFER),
        (Status.PAUSED, Reason.PAUSED),
        (Status.HALTED, Reason.HALTED),
        (Status.ABORTED, Reason.ABORTED),
        (Status.COMPLETED, Reason.OFFER),
    ],
)
def test_where_the_rollout_stands(status, reason):
    assert ask([live(rollout(), status)]).reason is reason


def test_no_rollout_at_all():
    assert ask([]).reason is Reason.NO_RELEASE


def test_only_open_stages_are_offered():
    made = rollout()
    cells = by_stage(made, fleet(300))
    for reached in range(3):
        for stage, cell in enumerate(cells):
            for one in cell:
                answer = ask([live(made, Status.ACTIVE, reached)], one)
                assert answer.reason is (Reason.OFFER if stage <= reached else Reason.STAGE)


def test_a_wave_that_is_not_open_says_when():
    made = rollout(
        waves=[
            {"name": "a", "sites": ["hq/a"]},
            {"name": "b", "sites": ["hq/b"], "opens": "7d"},
            {"name": "c", "sites": ["hq/c"], "opens": {"after": "previous_start", "wait": "7d"}},
            {"name": "d", "sites": ["hq/d"], "opens": {"after": "previous_end"}},
            {"name": "e", "sites": ["hq/e"], "opens": "2026-05-01T00:00:00Z"},
        ]
    )
    lives = [live(made, Status.ACTIVE, 2, -1, -1, -1, -1)]
    opens = {
        site: ask(lives, beacon(site=f"hq/{site}/1")).again_at for site in ("b", "c", "d", "e")
    }
    assert opens == {
        "b": MONDAY + 7 * DAY,
        "c": MONDAY + 14 * DAY,
        "d": None,
        "e": utc(2026, 5, 1),
    }
    assert ask(lives, beacon(site="hq/d/1")).reason is Reason.WAVE


def test_a_scheduled_rollout_says_when():
    made = rollout()
    state = replace(live(made).state, status=Status.SCHEDULED, waves=(WaveState(),))
    answer = ask([replace(live(made), state=state)], now=MONDAY - 10)
    assert (answer.reason, answer.again_at) == (Reason.SCHEDULED, MONDAY)


# ---- windows ----


def test_outside_the_window_it_waits_for_the_next():
    place = PLACES.place_of("hq/a/1")
    answer = ask([live(rollout())], place=place)
    assert (answer.reason, answer.again_at) == (Reason.WINDOW, utc(2026, 3, 3, 2))
    inside = ask([live(rollout())], now=utc(2026, 3, 3, 3), place=place)
    assert inside.offered
    assert (inside.not_before, inside.not_after) == (utc(2026, 3, 3, 2), utc(2026, 3, 3, 4))


def test_required_skips_the_window_but_not_the_stage():
    made = rollout(required=True, ladder=SHARE)
    early, late = by_stage(made, fleet(50))
    lives = [live(made, Status.ACTIVE, 0)]
    answer = ask(lives, early[0], place=PLACES.place_of("hq/a"))
    assert answer.offered and answer.required and answer.not_before is None
    assert ask(lives, late[0]).reason is Reason.STAGE


def test_the_plan_s_own_window_goes_first():
    made = rollout(window="11:00-12:00")
    answer = ask([live(made)], place=PLACES.place_of("hq/a"))
    assert (answer.reason, answer.not_before) == (Reason.OFFER, MONDAY)


def test_a_moved_beacon_lives_by_its_new_building():
    made = rollout(
        waves=[{"name": "a", "sites": ["hq/a"]}, {"name": "rest", "rest": True, "opens": "7d"}]
    )
    lives = [live(made, Status.ACTIVE, 2, -1)]
    one = beacon(site="hq/a/1")
    assert ask(lives, one).offered
    assert ask(lives, replace(one, site="hq/c/1")).reason is Reason.WAVE
    now = utc(2026, 3, 2, 19)  # 04:00 in Tokyo
    assert ask([live(made)], one, now=now, place=PLACES.place_of("hq/a/1")).reason is Reason.WINDOW
    moved = replace(one, site="hq/c/1")
    assert ask([live(made)], moved, now=now, place=PLACES.place_of(moved.site)).offered


# ---- places in a building ----


def test_the_cap_of_a_building():
    lives = [live(rollout(concurrency=2))]
    assert ask(lives, busy=1).offered
    assert ask(lives, busy=2).reason is Reason.BUSY
    assert ask([live(rollout())], busy=1000).offered


def test_an_offer_that_was_made_keeps_its_place():
    made = rollout(concurrency=2)
    made_offer = attempt(beacon(), made, taken=None)
    answer = ask([live(made)], busy=2, attempts=[made_offer])
    assert (answer.reason, answer.attempt_id) == (Reason.OFFER, made_offer.id)


# ---- attempts ----


def test_what_was_begun_goes_on_at_any_hour():
    made = rollout(concurrency=1)
    begun = attempt(beacon(), made)
    answer = ask([live(made)], attempts=[begun], place=PLACES.place_of("hq/a"), busy=5)
    assert (answer.reason, answer.attempt_id, answer.not_after) == (Reason.OFFER, begun.id, None)
    assert ask([live(made, Status.PAUSED)], attempts=[begun]).attempt_id == begun.id
    assert ask([live(made, Status.HALTED)], attempts=[begun]).reason is Reason.HALTED


def test_while_it_reboots_nothing_new_begins():
    made = rollout()
    rebooting = attempt(beacon(), made, rebooting_at=MONDAY + 30)
    assert ask([live(made)], attempts=[rebooting]).reason is Reason.REBOOTING
    # Nor from another rollout of the same release.
    again = rollout("r2")
    assert ask([live(again)], attempts=[rebooting]).reason is Reason.REBOOTING


def test_three_tries_two_and_four_minutes_apart():
    made = rollout()
    tries, now = [], MONDAY
    for number, pause in ((1, 120), (2, 240)):
        answer = ask([live(made)], now=now, attempts=tries)
        assert (answer.reason, answer.number) == (Reason.OFFER, number)
        tries.append(attempt(beacon(), made, Result.FAILED, taken=now, ended=now + 50))
        early = ask([live(made)], now=now + 50 + pause - 1, attempts=tries)
        assert (early.reason, early.again_at) == (Reason.RETRY, now + 50 + pause)
        now += 50 + pause
    assert ask([live(made)], now=now, attempts=tries).number == 3
    tries.append(attempt(beacon(), made, Result.LOST, taken=now, ended=now + 1800))
    spent = ask([live(made)], now=now + DAY, attempts=tries)
    assert (spent.reason, spent.number) == (Reason.ATTEMPTS, 3)
    # Also in another rollout of the same release, but not for another release.
    assert ask([live(rollout("r2"))], now=now + DAY, attempts=tries).reason is Reason.ATTEMPTS
    newer = rollout("r3", NEWER)
    assert ask([live(newer)], now=now + DAY, attempts=tries).number == 1


def test_the_pauses_of_many_tries():
    made = rollout(retry={"limit": 9})
    pauses = []
    for tries in range(1, 8):
        ended = [attempt(beacon(), made, Result.FAILED, ended=MONDAY) for _ in range(tries)]
        pauses.append((ask([live(made)], attempts=ended).again_at or 0) - MONDAY)
    assert pauses == [120, 240, 480, 960, 1920, 1920, 1920]


def test_a_success_that_did_not_last_is_a_try_too():
    made = rollout()
    tries = [attempt(beacon(), made, Result.SUCCESS, taken=MONDAY + n * HOUR) for n in range(3)]
    assert ask([live(made)], now=MONDAY + DAY, attempts=tries).reason is Reason.ATTEMPTS


def test_what_counts_for_nothing():
    made = rollout()
    none = [attempt(beacon(), made, result) for result in (Result.EXPIRED, Result.STOPPED)] * 5
    assert ask([live(made)], now=MONDAY + 61, attempts=none).number == 1


def test_cleared_by_hand_it_may_try_again():
    made = rollout()
    tries = [attempt(beacon(), made, Result.FAILED) for _ in range(3)]
    assert ask([live(made)], now=MONDAY + DAY, attempts=tries).reason is Reason.ATTEMPTS
    cleared = beacon(cleared_at=MONDAY + HOUR)
    assert ask([live(made)], cleared, now=MONDAY + DAY, attempts=tries).number == 1


def test_what_a_beacon_called_bad_is_not_offered_again():
    made = rollout()
    bad = attempt(beacon(), made, Result.ROLLED_BACK, ended=MONDAY, blamed_at=MONDAY)
    later = rollout("r2")
    for orders in ([live(made)], [live(later), live(made)]):
        answer = decide(orders, beacon(), MONDAY + DAY, attempts=[bad], place=ANY_TIME)
        assert (answer.reason, answer.again_at) == (Reason.BLAMED, None)
    # A newer release is another matter, and so is what was cleared by hand.
    newer = rollout("r3", NEWER)
    offers = [live(newer), live(made)]
    assert decide(offers, beacon(), MONDAY + DAY, attempts=[bad], place=ANY_TIME).offered
    cleared = beacon(cleared_at=MONDAY + 1)
    assert decide([live(made)], cleared, MONDAY + DAY, attempts=[bad], place=ANY_TIME).offered
    # Another beacon's word is its own.
    assert decide([live(made)], beacon("b2"), MONDAY + DAY, place=ANY_TIME).offered


def test_a_verdict_counts_whatever_the_attempt_came_to():
    """It may have been given up, or confirmed, before the beacon said so."""
    made = rollout()
    for result in (Result.LOST, Result.SUCCESS, Result.STOPPED, Result.EXPIRED):
        bad = attempt(beacon(), made, result, ended=MONDAY, blamed_at=MONDAY + 60)
        answer = decide([live(made)], beacon(), MONDAY + DAY, attempts=[bad], place=ANY_TIME)
        assert answer.reason is Reason.BLAMED, result


def test_an_undone_success_is_a_try_that_ended_when_it_was_undone():
    made = rollout()
    undone = attempt(beacon(), made, Result.SUCCESS, ended=MONDAY, undone_at=MONDAY + HOUR)
    soon, later = MONDAY + HOUR + 60, MONDAY + HOUR + 121
    answer = decide([live(made)], beacon(), soon, attempts=[undone], place=ANY_TIME)
    assert (answer.reason, answer.again_at) == (Reason.RETRY, MONDAY + HOUR + 120)
    answer = decide([live(made)], beacon(), later, attempts=[undone], place=ANY_TIME)
    assert answer.offered and answer.number == 2


def test_a_clock_that_went_back_does_not_hold_a_beacon_for_years():
    made = rollout()
    ahead = attempt(beacon(), made, Result.FAILED, ended=MONDAY + 1000 * DAY)
    assert ask([live(made)], attempts=[ahead]).offered
    # The limit stands whatever the clock says.
    assert ask([live(made)], attempts=[ahead] * 3).reason is Reason.ATTEMPTS


# ---- several rollouts ----


def test_the_newest_wins():
    lives = [live(rollout("r2", NEWER)), live(rollout("r1"))]
    assert ask(lives).rollout_id == "r2"


def test_a_newer_one_that_climbs_holds_the_older_back():
    newer = rollout("r2", NEWER, ladder=SHARE)
    late = by_stage(newer, fleet(50))[1][0]
    lives = [live(newer, Status.ACTIVE, 0), live(rollout("r1"), Status.COMPLETED)]
    assert ask(lives, late).reason is Reason.STAGE
    # A required one is not held back.
    required = [lives[0], live(rollout("r1", required=True), Status.COMPLETED)]
    assert ask(required, late).rollout_id == "r1"


@pytest.mark.parametrize("status", [Status.HALTED, Status.ABORTED, Status.SCHEDULED])
def test_a_newer_one_that_stands_aside(status):
    lives = [live(rollout("r2", NEWER), status), live(rollout("r1"), Status.COMPLETED)]
    assert ask(lives).rollout_id == "r1"
    # Nothing older is left: the reason is the newest one's.
    assert ask(lives, updated(beacon(), lives[1].rollout)).reason.value == status.value


def test_a_newer_one_for_others():
    beta = live(rollout("r2", NEWER), release_state="testing")
    lives = [beta, live(rollout("r1"))]
    assert ask(lives).rollout_id == "r1"
    assert ask(lives, beacon(version="1.2.3")).reason is Reason.UP_TO_DATE
    assert ask(lives, beacon(channel="beta")).rollout_id == "r2"


def test_older_versions_rolled_out_later_do_not_go_back():
    lives = [live(rollout("r2")), live(rollout("r1", NEWER))]
    assert ask(lives, beacon(version="1.2.9")).rollout_id == "r1"
    assert ask(lives, beacon(version="1.3.0")).reason is Reason.UP_TO_DATE


def test_a_paused_newer_one_holds_its_beacons():
    lives = [live(rollout("r2", NEWER), Status.PAUSED), live(rollout("r1"))]
    assert ask(lives).reason is Reason.PAUSED


# ---- open attempts ----


@pytest.mark.parametrize(
    ("status", "offered", "taken", "rebooting"),
    [
        (Status.ACTIVE, True, True, True),
        (Status.COMPLETED, True, True, True),
        (Status.PAUSED, False, True, True),
        (Status.HALTED, False, False, True),
        (Status.ABORTED, False, False, True),
    ],
)
def test_who_may_go_on(status, offered, taken, rebooting):
    made = rollout()
    open_attempts = [
        attempt(beacon(), made, taken=None),
        attempt(beacon(), made),
        attempt(beacon(), made, rebooting_at=MONDAY),
    ]
    allowed = [may_continue(status, "stable", one) for one in open_attempts]
    assert allowed == [offered, taken, rebooting]
    assert not may_continue(status, "stable", attempt(beacon(), made, Result.STOPPED))


@pytest.mark.parametrize(
    ("release_state", "channel", "goes"),
    [
        ("stable", "stable", True),
        ("stable", None, False),  # quarantined, or removed
        ("testing", "beta", True),
        ("testing", "stable", False),
        ("testing", None, False),
    ],
)
def test_what_is_withheld_from_a_beacon_stops_it_unless_it_reboots(release_state, channel, goes):
    made = rollout()
    for taken, rebooting_at in ((None, None), (MONDAY, None), (MONDAY, MONDAY)):
        one = attempt(beacon(), made, taken=taken, rebooting_at=rebooting_at)
        may = may_continue(Status.ACTIVE, release_state, one, channel=channel)
        assert may is (goes or rebooting_at is not None)


def test_a_halt_holds_for_older_rollouts_of_its_release():
    halted = live(rollout("new", NEWER), Status.HALTED)
    older = live(rollout("old", NEWER))
    required = live(rollout("old", NEWER, required=True))
    before = live(rollout("before"))  # of another release
    for lives in ([halted, older], [halted, required]):
        assert ask(lives).reason is Reason.HALTED
        assert ask([*lives, before]).rollout_id == "before"
    elsewhere = live(rollout("new", NEWER, waves=[{"name": "b", "sites": ["hq/b"]}]), Status.HALTED)
    assert ask([elsewhere, older]).rollout_id == "old"  # it was stopped for others
    assert ask([older, halted]).rollout_id == "old"  # it was started after the halt


def test_a_withdrawn_release_stops_who_has_not_rebooted():
    made = rollout()
    assert not may_continue(Status.ACTIVE, "deprecated", attempt(beacon(), made))
    assert may_continue(Status.ACTIVE, "deprecated", attempt(beacon(), made, rebooting_at=MONDAY))


def test_silence_is_a_loss():
    made, other = rollout(), rollout("r2")
    taken = attempt(beacon(), made)
    quiet = [
        taken,
        attempt(beacon(), made, taken=None),
        attempt(beacon(), made, Result.SUCCESS),
        attempt(beacon(), other),
    ]
    assert lost_attempts(made, quiet, MONDAY + 1799) == []
    assert lost_attempts(made, quiet, MONDAY + 1800) == [taken]
    # What happened while nobody listened is not held against a beacon.
    assert lost_attempts(made, quiet, MONDAY + 7200, listening_since=MONDAY + 7000) == []
    assert lost_attempts(made, quiet, MONDAY + 8800, listening_since=MONDAY + 7000) == [taken]
    assert lost_attempts(made, quiet, MONDAY - DAY) == []


def test_silence_by_wave():
    made = rollout(
        waves=[
            {"name": "slow", "sites": ["hq/a"], "gate": {"silence": "2h"}},
            {"name": "rest", "rest": True},
        ]
    )
    one, other = attempt(beacon("b1"), made), attempt(beacon("b2", site="hq/b"), made)
    assert lost_attempts(made, [one, other], MONDAY + 1800) == [other]


def test_offers_nobody_takes():
    made = rollout(offer="5m")
    offered = attempt(beacon(), made, taken=None)
    others = [offered, attempt(beacon(), made), attempt(beacon(), rollout("r2"), taken=None)]
    assert expired_attempts(made, others, MONDAY + 299) == []
    assert expired_attempts(made, others, MONDAY + 300) == [offered]


def test_what_a_halt_ends():
    made = rollout()
    ends = [attempt(beacon(), made, taken=None), attempt(beacon(), made)]
    stays = [
        attempt(beacon(), made, rebooting_at=MONDAY),
        attempt(beacon(), made, Result.FAILED),
    ]
    assert revocable_attempts(ends + stays) == ends
