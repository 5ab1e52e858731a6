"""How a rollout climbs, waits, halts, and is steered by hand."""

from dataclasses import replace

import pytest

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.rollout.advance import (
    abort_rollout,
    advance,
    apply_transition,
    halt_rollout,
    initial_state,
    next_due_at,
    open_next_stage,
    pause_rollout,
    restart_soaks,
    resume_rollout,
)
from beacon_ota.orchestrator.rollout.gates import judge_stage
from beacon_ota.orchestrator.rollout.plan_types import DAY, HOUR, MINUTE, WEEK
from beacon_ota.orchestrator.rollout.types import Kind, Result, Status, Transition
from tests.orchestrator.rollout.build import (
    MONDAY,
    Bench,
    beacon,
    by_stage,
    fleet,
    rollout,
    utc,
)

OK, BAD = Result.SUCCESS, Result.FAILED


def climb(size: int = 200, **fields) -> tuple[Bench, list]:
    """A rollout that has just started, and the beacons of its first wave's stages."""
    made = rollout(**fields)
    bench = Bench(made, fleet(size))
    assert bench.tick() == ["started", "wave_opened", "stage_opened"]
    return bench, by_stage(made, fleet(size))


def serve(bench: Bench, cell, result=OK) -> None:
    for one in cell:
        bench.end(one, result)


def waits(bench: Bench, wave: int = 0) -> str:
    return judge_stage(bench.rollout, bench.state, bench.tally(), wave, bench.now)[1]


def test_the_ladder_of_the_specification():
    bench, cells = climb()
    serve(bench, cells[0])
    assert bench.tick() == ["sampled"]
    assert bench.tick(24 * HOUR - 1) == []
    assert bench.tick(1) == ["stage_opened"]
    serve(bench, cells[1])
    assert bench.tick() == ["sampled"]
    assert bench.tick(12 * HOUR - 1) == []
    assert bench.tick(1) == ["stage_opened"]
    serve(bench, cells[2])
    assert bench.tick() == ["sampled", "wave_completed", "completed"]
    assert bench.state.status is Status.COMPLETED
    assert bench.tick(WEEK) == []


def test_it_starts_when_it_is_told_to():
    bench = Bench(rollout(), fleet(30), start=MONDAY)
    bench.now = MONDAY - 10
    assert bench.tick() == []
    assert next_due_at(bench.rollout, bench.state, bench.tally(), bench.now) == MONDAY
    assert bench.tick(10) == ["started", "wave_opened", "stage_opened"]


def test_the_watch_begins_with_the_sample_not_with_the_opening():
    bench, cells = climb()
    bench.tick(17 * HOUR)  # the night's window comes late
    serve(bench, cells[0][:3])
    assert bench.tick() == ["sampled"]
    assert bench.tick(10 * HOUR) == []  # a day after the opening
    assert bench.tick(14 * HOUR) == ["stage_opened"]


def test_two_of_three_are_not_a_sample():
    bench, cells = climb()
    serve(bench, cells[0][:2])
    assert bench.tick() == [] and waits(bench) == "sample"
    assert bench.tick(6 * DAY) == []
    serve(bench, cells[0][2:3])
    assert bench.tick() == ["sampled"]


def test_all_when_fewer():
    made = rollout()
    ids = by_stage(made, fleet(400))
    bench = Bench(made, ids[0][:2] + ids[1][:1] + ids[2][:1])
    bench.tick()
    bench.end(ids[0][0], OK)
    assert bench.tick() == []
    bench.end(ids[0][1], OK)
    assert bench.tick() == ["sampled"]
    assert bench.tick(DAY) == ["stage_opened"]


def test_one_of_two_is_no_success():
    made = rollout()
    ids = by_stage(made, fleet(400))
    bench = Bench(made, ids[0][:2] + ids[1][:5])
    bench.tick()
    serve(bench, ids[0][:1])
    serve(bench, ids[0][1:2], BAD)
    assert bench.tick() == ["sampled"]
    assert bench.tick(DAY) == ["halted"]
    assert (bench.state.reason, bench.state.by) == ("healthy_share", "engine")
    assert "1 of 2" in bench.made[-1].detail


def test_a_failure_that_was_made_good():
    made = rollout()
    ids = by_stage(made, fleet(400))
    bench = Bench(made, ids[0][:2] + ids[1][:5])
    bench.tick()
    serve(bench, ids[0][:1])
    serve(bench, ids[0][1:2], BAD)
    bench.tick()
    bench.now += 300
    serve(bench, ids[0][1:2])
    assert bench.tick(DAY) == ["stage_opened"]


def test_an_empty_stage_is_kept_open_and_hands_its_watch_on():
    made = rollout()
    ids = by_stage(made, fleet(400))
    bench = Bench(made, ids[1][:3] + ids[2][:3])
    assert bench.tick() == ["started", "wave_opened", "stage_opened"]
    assert bench.tick(24 * HOUR - 1) == [] and waits(bench) == "empty"
    assert bench.tick(1) == ["stage_opened"]
    serve(bench, ids[1][:3])
    assert bench.tick() == ["sampled"]
    assert bench.tick(12 * HOUR) == []  # these are the canaries now
    assert bench.tick(12 * HOUR) == ["stage_opened"]


def test_an_empty_stage_after_somebody_has_tried_is_passed_at_once():
    made = rollout()
    ids = by_stage(made, fleet(400))
    bench = Bench(made, ids[0][:3] + ids[2][:3])
    bench.tick()
    serve(bench, ids[0][:3])
    bench.tick()
    assert bench.tick(24 * HOUR) == ["stage_opened", "stage_opened"]
    assert bench.made[-1].reason == "empty"


def test_a_fleet_that_is_being_set_up_does_not_find_the_ladder_climbed():
    made = rollout()
    bench = Bench(made, [])
    bench.tick()
    for one in by_stage(made, fleet(400))[2] + by_stage(made, fleet(400))[0]:
        bench.beacons[one.id] = one
        bench.seen[one.id] = float("inf")
        assert bench.tick(60) == []
    assert bench.stages == [0] and waits(bench) == "sample"


def test_a_fleet_of_one():
    made = rollout()
    canary, last = (by_stage(made, fleet(400))[stage][0] for stage in (0, 2))
    bench = Bench(made, [canary])
    bench.tick()
    bench.end(canary, OK)
    assert bench.tick() == ["sampled"]
    done = ["stage_opened", "stage_opened", "wave_completed", "completed"]
    assert bench.tick(DAY) == done

    bench = Bench(made, [last])
    bench.tick()
    assert bench.tick(DAY) == ["stage_opened"]
    assert bench.tick(DAY) == ["stage_opened"]
    bench.end(last, OK)
    bench.tick()
    assert bench.tick(DAY) == ["wave_completed", "completed"]


def test_an_emergency_does_not_wait_for_an_empty_stage():
    made = rollout(required=True)
    bench = Bench(made, by_stage(made, fleet(400))[2][:3])
    assert bench.tick()[-2:] == ["stage_opened", "stage_opened"]
    assert bench.stages == [2]


def test_nobody_registered_yet_is_not_everybody_served():
    bench = Bench(rollout(), [])
    assert bench.tick() == ["started", "wave_opened", "stage_opened"]
    assert bench.tick(6 * DAY) == [] and waits(bench) == "empty"
    bench.beacons = {one.id: one for one in fleet(100)}
    assert waits(bench) == "nobody_there"
    bench.seen = dict.fromkeys(bench.beacons, float("inf"))
    assert bench.tick() == [] and waits(bench) == "sample" and bench.stages == [0]
    # A wave that nobody joins in a week is over; who comes later is served all the same.
    alone = Bench(rollout(), [])
    alone.tick()
    assert alone.tick(WEEK) == ["stage_opened"]
    alone.tick(WEEK)
    assert alone.tick(WEEK) == ["wave_completed", "completed"]


def test_a_fleet_that_reports_one_by_one_does_not_leave_the_canaries_behind():
    made = rollout()
    silent = [replace(one, version="") for one in fleet(100)]
    bench = Bench(made, silent)
    bench.seen = {}
    bench.tick()
    for one in by_stage(made, fleet(100))[2]:
        bench.beacons[one.id] = one
        bench.seen[one.id] = float("inf")
        assert bench.tick(1) == []
    assert bench.stages == [0]


def test_absent_canaries_do_not_hold_the_others_for_ever():
    bench, cells = climb()
    bench.seen.update((one.id, 0.0) for one in cells[0])
    assert bench.tick(23 * HOUR) == []
    assert bench.tick(HOUR) == ["stage_opened"]
    assert bench.made[-1].reason == "nobody_there"
    # The next ones are the canaries, and are watched as long.
    serve(bench, cells[1])
    bench.tick()
    assert bench.tick(12 * HOUR) == []
    assert bench.tick(12 * HOUR) == ["stage_opened"]


def test_absent_ones_are_not_counted_in_a_stage():
    bench, cells = climb()
    bench.seen.update((one.id, 0.0) for one in cells[0][1:])
    bench.end(cells[0][0], OK)
    assert bench.tick() == ["sampled"]  # all of those who are there
    assert bench.tick(DAY) == ["stage_opened"]


def test_a_restart_does_not_take_the_fleet_for_absent():
    bench, _ = climb(required=True)
    bench.seen = {}
    bench.now += 3 * DAY
    bench.listening_since = bench.now
    assert bench.tick(MINUTE) == [] and bench.stages == [0]


def test_under_way_is_not_healthy():
    bench, cells = climb(1000)
    some = cells[0][:20]
    serve(bench, some[:15])
    for one in some[15:]:
        bench.end(one, None)
    bench.tick()
    assert bench.tick(DAY) == [] and waits(bench) == "open"
    for one in some[15:]:
        bench.attempts[one.id][-1] = replace(
            bench.attempts[one.id][-1], result=OK, ended_at=bench.now
        )
    assert bench.tick() == ["stage_opened"]


def test_the_last_stage_serves_everybody_who_is_there():
    bench, cells = climb(30, preset="all-at-once")
    bench.seen[cells[0][-1].id] = 0.0  # not there
    serve(bench, cells[0][:10])
    assert bench.tick() == ["sampled"] and waits(bench) == "serving"
    serve(bench, cells[0][10:-1])
    assert bench.tick() == ["wave_completed", "completed"]


def test_stragglers_of_earlier_stages_are_served_before_it_ends():
    bench, cells = climb(40)
    serve(bench, cells[0][:-1])
    bench.tick()
    bench.tick(DAY)
    serve(bench, cells[1])
    bench.tick()
    bench.tick(12 * HOUR)
    serve(bench, cells[2])
    assert bench.tick() == ["sampled"] and waits(bench) == "serving"
    serve(bench, cells[0][-1:])
    assert bench.tick() == ["wave_completed", "completed"]


def test_an_empty_last_stage_does_not_end_it_early():
    made = rollout(ladder=[{"share": 0.75}, {"share": 1}])
    bench = Bench(made, by_stage(made, fleet(40))[0][:10])
    first = list(bench.beacons.values())
    bench.tick()
    serve(bench, first[:3])
    assert bench.tick() == ["sampled", "stage_opened"] and waits(bench) == "serving"
    serve(bench, first[3:])
    assert bench.tick() == ["wave_completed", "completed"]


def test_a_wave_that_ends_under_the_share_halts():
    made = rollout(ladder=[{"share": 0.5}, {"share": 1}], gate={"failure_share": 1.0})
    cells = by_stage(made, fleet(40))
    bench = Bench(made, cells[0][:6] + cells[1][:3])
    bench.tick()
    serve(bench, cells[0][:3])
    assert bench.tick() == ["sampled", "stage_opened"]
    for result, one in zip((BAD, OK, BAD), cells[0][3:6], strict=True):
        bench.now += 1
        bench.end(one, result)  # of the first stage, after its gate was passed
    serve(bench, cells[1][:3])
    assert bench.tick() == ["sampled"] and waits(bench) == "retries"
    assert bench.tick(31 * MINUTE) == ["halted"]
    assert "7 of 9" in bench.made[-1].detail


def test_those_who_ask_but_never_begin_hold_it_for_a_week():
    bench, cells = climb(30, preset="all-at-once")
    serve(bench, cells[0][:-1])
    bench.tick()
    assert bench.tick(6 * DAY) == []
    assert bench.tick(DAY) == ["wave_completed", "completed"]


def test_nobody_of_a_stage_ever_begins():
    bench, cells = climb()
    serve(bench, cells[0])
    bench.tick()
    assert bench.tick(DAY) == ["stage_opened"]
    assert bench.tick(6 * DAY) == [] and waits(bench) == "sample"
    assert bench.tick(DAY) == ["stage_opened"]
    assert bench.made[-1].reason == "nobody_took"
    # But where nobody at all has begun, there is nothing to go on from.
    other, _ = climb()
    assert other.tick(3 * WEEK) == []


def test_silent_after_success_holds_and_then_halts():
    bench, cells = climb()
    serve(bench, cells[0])
    bench.tick()
    for one in cells[0]:
        bench.seen[one.id] = bench.now
    assert bench.tick(DAY) == [] and waits(bench) == "gone"
    assert bench.tick(5 * DAY) == []
    for one in cells[0]:
        bench.seen[one.id] = bench.now  # they come back
    assert bench.tick() == ["stage_opened"]

    bench, cells = climb()
    serve(bench, cells[0])
    bench.tick()
    bench.seen.update((one.id, bench.now) for one in cells[0])
    assert bench.tick(WEEK) == ["halted"] and bench.state.reason == "gone"


def test_completing_under_the_share_halts():
    bench, cells = climb(4, preset="all-at-once")
    serve(bench, cells[0][:1], BAD)
    serve(bench, cells[0][1:])
    assert bench.tick() == ["sampled"]
    assert bench.tick(29 * MINUTE) == [] and waits(bench) == "retries"
    assert bench.tick(MINUTE) == ["halted"]


def test_failures_halt_at_once_and_everything():
    bench, cells = climb(
        waves=[{"name": "a", "sites": ["hq/a"]}, {"name": "rest", "rest": True, "opens": "1d"}]
    )
    bench.tick(DAY)
    serve(bench, cells[0][:3], BAD)
    assert bench.tick() == ["halted"]
    last = bench.made[-1]
    assert (last.reason, last.wave, last.stage) == ("failures_in_a_row", 0, 0)
    assert bench.tick(30 * DAY) == []


def test_a_straggler_of_an_earlier_stage_still_counts_there():
    bench, cells = climb()
    serve(bench, cells[0][:4])
    bench.tick()
    bench.tick(DAY)
    assert bench.stages == [1]
    bench.end(cells[0][4], BAD)
    assert bench.tick() == ["halted"]
    assert bench.made[-1].stage == 0


def test_late_joiners_can_halt_what_is_completed():
    bench, cells = climb(30, preset="all-at-once")
    serve(bench, cells[0])
    bench.tick()
    assert bench.state.status is Status.COMPLETED
    late = [beacon(f"late{n}") for n in range(3)]
    bench.beacons.update((one.id, one) for one in late)
    serve(bench, late, BAD)
    assert bench.tick() == ["halted"]
    bench.apply(resume_rollout(bench.state, bench.now, "ada"))
    assert bench.state.status is Status.COMPLETED


# ---- waves ----


def test_waves_open_one_after_the_other():
    made = rollout(
        ladder=[{"share": 1}],
        waves=[
            {"name": "a", "sites": ["hq/a"]},
            {"name": "b", "sites": ["hq/b"], "opens": {"after": "previous_end", "wait": "1d"}},
            {"name": "c", "sites": ["hq/c"], "opens": {"after": "previous_start", "wait": "1h"}},
        ],
    )
    bench = Bench(made, fleet(30))
    bench.tick()
    assert bench.stages == [0, -1, -1]
    bench.tick(WEEK / 2)
    assert bench.stages == [0, -1, -1]
    serve(bench, [one for one in fleet(30) if one.site == "hq/a/1"])
    assert bench.tick() == ["sampled", "wave_completed"]
    ended = bench.now
    assert next_due_at(made, bench.state, bench.tally(), bench.now) == ended + DAY
    assert bench.tick(DAY) == ["wave_opened", "stage_opened"]
    assert bench.tick(HOUR) == ["wave_opened", "stage_opened"]
    assert bench.stages == [0, 0, 0]


def test_waves_of_the_geographic_preset():
    made = rollout(preset="geographic", buildings=["hq/a", "hq/b"])
    bench = Bench(made, fleet(30))
    opened = []
    for _ in range(15):
        bench.tick()
        opened.append(sum(wave.opened_at is not None for wave in bench.state.waves))
        bench.now += DAY
    assert opened == [1] * 7 + [2] * 7 + [3]


def test_a_wave_at_a_time_of_its_own():
    made = rollout(waves=[{"name": "x", "rest": True, "opens": "2026-03-05T00:00:00+01:00"}])
    bench = Bench(made, fleet(3))
    assert bench.tick() == ["started"]
    bench.now = utc(2026, 3, 4, 23) - 1
    assert bench.tick() == []
    assert bench.tick(1)[0] == "wave_opened"


def test_a_time_before_the_start_waits_for_the_start():
    made = rollout(waves=[{"name": "x", "rest": True, "opens": "2020-01-01T00:00:00Z"}])
    bench = Bench(made, fleet(3))
    bench.now = MONDAY - 1
    assert bench.tick() == []
    assert bench.tick(1)[:2] == ["started", "wave_opened"]


def test_required_does_not_soak_but_is_judged():
    bench, cells = climb(required=True)
    assert bench.tick(DAY) == []
    serve(bench, cells[0][:2])
    assert bench.tick() == []
    serve(bench, cells[0][2:3])
    assert bench.tick() == ["sampled", "stage_opened"]
    serve(bench, cells[1][:3], BAD)
    assert bench.tick() == ["halted"]


# ---- by hand ----


def test_pause_and_resume():
    bench, cells = climb()
    serve(bench, cells[0])
    bench.tick()
    assert bench.apply(pause_rollout(bench.state, bench.now, "ada", "lunch")) == ["paused"]
    assert (bench.state.by, bench.made[-1].detail) == ("ada", "lunch")
    assert bench.tick(2 * DAY) == []
    assert bench.apply(resume_rollout(bench.state, bench.now, "ada")) == ["resumed"]
    assert bench.state.since == 0.0  # nothing was accepted by that
    assert bench.tick() == ["stage_opened"]


def test_a_paused_rollout_can_still_halt():
    bench, cells = climb()
    bench.apply(pause_rollout(bench.state, bench.now, "ada"))
    serve(bench, cells[0][:3], BAD)
    assert bench.tick() == ["halted"]


def test_paused_before_the_start():
    bench = Bench(rollout(), fleet(10))
    bench.now = MONDAY - DAY
    bench.apply(pause_rollout(bench.state, bench.now, "ada"))
    bench.apply(resume_rollout(bench.state, bench.now, "ada"))
    assert bench.state.status is Status.SCHEDULED
    assert bench.tick(DAY)[0] == "started"


def test_resuming_after_a_halt_accepts_what_has_failed():
    bench, cells = climb()
    serve(bench, cells[0][:3], BAD)
    assert bench.tick() == ["halted"]
    bench.apply(resume_rollout(bench.state, bench.now, "ada", "they were unplugged"))
    assert bench.tick() == []
    serve(bench, cells[0][3:])
    assert bench.tick(1) == ["sampled"]
    assert bench.tick(DAY) == ["stage_opened"]


def test_after_resuming_it_halts_again_for_new_failures():
    bench, cells = climb(400)
    serve(bench, cells[0][:3], BAD)
    bench.tick()
    bench.apply(resume_rollout(bench.state, bench.now, "ada"))
    bench.now += 60
    serve(bench, cells[0][3:6], BAD)
    assert bench.tick() == ["halted"]


def test_halt_and_abort_by_hand():
    bench, _ = climb()
    assert bench.apply(halt_rollout(bench.state, bench.now, "ada", "smoke")) == ["halted"]
    assert (bench.state.reason, bench.state.by) == ("by_hand", "ada")
    assert bench.apply(abort_rollout(bench.state, bench.now, "ada")) == ["aborted"]
    for verb in (pause_rollout, resume_rollout, halt_rollout, abort_rollout):
        with pytest.raises(UsageError):
            verb(bench.state, bench.now, "ada")
    assert bench.tick(DAY) == []


@pytest.mark.parametrize(
    ("verb", "code"),
    [
        (resume_rollout, "rollout_not_stopped"),
        (pause_rollout, "rollout_not_active"),
        (halt_rollout, "rollout_not_active"),
    ],
)
def test_verbs_at_the_wrong_time(verb, code):
    bench, _ = climb()
    state = bench.state if verb is resume_rollout else replace(bench.state, status=Status.HALTED)
    with pytest.raises(UsageError) as error:
        verb(state, bench.now, "ada")
    assert error.value.code == code


def test_a_step_by_hand_skips_the_waiting():
    bench, cells = climb()
    steps = []
    for _ in range(3):
        made = open_next_stage(
            bench.rollout, bench.state, bench.tally(), bench.now, "ada", reason="sure"
        )
        steps.append(bench.apply(made))
    assert steps == [["stage_opened"], ["stage_opened"], ["wave_completed", "completed"]]
    assert {change.by for change in bench.made[3:]} == {"ada"}


def test_a_step_opens_a_wave_early():
    bench, _ = climb(preset="geographic", buildings=["hq/a"])
    made = open_next_stage(bench.rollout, bench.state, bench.tally(), bench.now, "ada", wave=1)
    assert bench.apply(made) == ["wave_opened", "stage_opened"]
    assert bench.stages == [0, 0]


def test_a_step_does_not_go_over_failures():
    bench, cells = climb()
    serve(bench, cells[0][:3], BAD)
    with pytest.raises(UsageError) as error:
        open_next_stage(bench.rollout, bench.state, bench.tally(), bench.now, "ada")
    assert error.value.code == "gate_tripped"


@pytest.mark.parametrize(("wave", "code"), [(7, "wave_unknown"), (-1, "wave_unknown")])
def test_a_step_into_the_unknown(wave, code):
    bench, _ = climb()
    with pytest.raises(UsageError) as error:
        open_next_stage(bench.rollout, bench.state, bench.tally(), bench.now, "ada", wave=wave)
    assert error.value.code == code


def test_a_step_in_a_wave_that_has_ended():
    bench, _ = climb(preset="geographic", buildings=["hq/a"], ladder=[{"share": 1}])
    bench.apply(
        open_next_stage(bench.rollout, bench.state, bench.tally(), bench.now, "ada", wave=0)
    )
    with pytest.raises(UsageError) as error:
        open_next_stage(bench.rollout, bench.state, bench.tally(), bench.now, "ada", wave=0)
    assert error.value.code == "wave_ended"


# ---- the clock ----


def test_a_clock_that_goes_back_restarts_the_watch_and_loses_nothing():
    bench, cells = climb()
    serve(bench, cells[0])
    bench.tick()
    bench.now -= 400 * DAY
    for one in bench.attempts:  # the outcomes' stamps now lie in the future
        assert (bench.attempts[one][0].ended_at or 0) > bench.now
    assert bench.tick() == ["clock_back"]
    assert bench.stages == [0]
    assert bench.tick(DAY - 1) == []
    assert bench.tick(1) == ["stage_opened"]


def test_a_clock_that_goes_back_while_halted():
    bench, cells = climb()
    serve(bench, cells[0][:3], BAD)
    bench.tick()
    bench.apply(resume_rollout(bench.state, bench.now, "ada"))
    assert bench.state.since == bench.now
    bench.apply(halt_rollout(bench.state, bench.now, "ada"))
    bench.now -= DAY
    assert bench.tick() == ["clock_back"]
    assert bench.state.since == bench.now and bench.state.status is Status.HALTED


def test_a_clock_that_is_set_ahead_restarts_the_watch_too():
    bench, cells = climb()
    serve(bench, cells[0])
    bench.tick()
    bench.now += 10 * 365 * DAY
    assert bench.apply(restart_soaks(bench.state, bench.now)) == ["clock_ahead"]
    assert bench.tick() == ["sampled"]
    assert bench.tick(DAY - 1) == []
    assert bench.tick(1) == ["stage_opened"]
    assert (
        restart_soaks(initial_state(bench.rollout, bench.now), bench.now) == ()
    )  # nothing soaks yet
    ended = replace(bench.state, status=Status.ABORTED)
    assert restart_soaks(ended, bench.now) == ()


def test_asking_twice_gives_the_same_answer_and_applying_it_ends_it():
    bench, cells = climb()
    serve(bench, cells[0])
    bench.now += DAY
    args = (bench.rollout, bench.state, bench.tally(), bench.now)
    assert advance(*args) == advance(*args) != ()
    bench.tick()
    assert bench.tick() == []


def test_due_is_when_something_happens():
    bench, cells = climb()
    serve(bench, cells[0])
    bench.tick()
    for kind in ("stage_opened",):
        at = next_due_at(bench.rollout, bench.state, bench.tally(), bench.now)
        while at is not None:
            bench.now = at
            if kind in bench.tick():
                break
            at = next_due_at(bench.rollout, bench.state, bench.tally(), bench.now)
    assert bench.now == MONDAY + DAY
    for status in (Status.PAUSED, Status.HALTED, Status.COMPLETED, Status.ABORTED):
        state = replace(bench.state, status=status)
        assert next_due_at(bench.rollout, state, bench.tally(), bench.now) is None


@pytest.mark.parametrize("wave", [None, 0])
def test_transitions_that_are_none(wave):
    bench, _ = climb()
    kind = Kind.SAMPLED if wave is None else Kind.CLOCK_BACK
    with pytest.raises(UsageError) as error:
        apply_transition(bench.state, Transition(MONDAY, kind, wave))
    assert error.value.code == "transition_kind"
