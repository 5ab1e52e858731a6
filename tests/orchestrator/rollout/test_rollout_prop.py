"""What holds for every rollout, fleet and fate."""

import math
import random
from collections import Counter
from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.rollout.advance import (
    abort_rollout,
    advance,
    halt_rollout,
    initial_state,
    next_due_at,
    open_next_stage,
    pause_rollout,
    resume_rollout,
)
from beacon_ota.orchestrator.rollout.decide import OUTCOMES, ActiveRollout, decide, lost_attempts
from beacon_ota.orchestrator.rollout.gates import failures_to_limit, tripped_limit
from beacon_ota.orchestrator.rollout.plan_types import DAY, HOUR, MINUTE, Gate
from beacon_ota.orchestrator.rollout.rules import bucket_of, selector_matches
from beacon_ota.orchestrator.rollout.simulate import AttemptOutcome, Simulation, simulate_rollout
from beacon_ota.orchestrator.rollout.types import Kind, Reason, Result, StageCounts, Status
from tests.orchestrator.rollout.build import (
    ANY_TIME,
    MONDAY,
    PLACES,
    Bench,
    attempt,
    beacon,
    fleet,
    live,
    rollout,
    updated,
)

LADDERS = st.lists(st.floats(0.05, 0.95), max_size=3, unique=True).flatmap(
    lambda shares: st.lists(
        st.sampled_from(["0s", "1h", "12h", "1d"]),
        min_size=len(shares) + 1,
        max_size=len(shares) + 1,
    ).map(
        lambda soaks: [
            {"share": share, "soak": soak}
            for share, soak in zip([*sorted(shares), 1.0], soaks, strict=True)
        ]
    )
)
WAVES = st.sampled_from(
    [
        [{"name": "all", "rest": True}],
        [{"name": "a", "sites": ["hq/a"]}, {"name": "rest", "rest": True, "opens": "3d"}],
        [
            {"name": "a", "sites": ["hq/a"]},
            {"name": "b", "sites": ["hq/b"], "opens": {"after": "previous_end", "wait": "6h"}},
            {"name": "c", "sites": ["hq/c"], "opens": {"after": "previous_start", "wait": "1d"}},
        ],
    ]
)
PLANS = st.fixed_dictionaries(
    {"ladder": LADDERS, "waves": WAVES, "required": st.booleans()},
    optional={
        "concurrency": st.integers(1, 10),
        "window": st.sampled_from(["00:00-24:00", "22:00-04:00"]),
        "gate": st.fixed_dictionaries({"min_sample": st.integers(1, 5)}),
    },
)
IDS = st.integers(0, 2**32).map(str)


class Watched(Simulation):
    """A simulation that looks over the engine's shoulder."""

    def _begin(self, beacon, answer):
        if beacon.id not in self._open:
            self.check_offer(beacon, answer)
        super()._begin(beacon, answer)

    def check_offer(self, one, answer):
        live = self.rollouts[0]
        plan, state = live.rollout.plan, live.state
        assert state.status in (Status.ACTIVE, Status.COMPLETED)
        wave = plan.waves[answer.wave]
        assert wave.selector.rest or selector_matches(wave.selector, one.site, one.tags)
        # No share is exceeded: the beacon's bucket is below what is open.
        reached = state.waves[answer.wave].stage
        assert reached >= answer.stage
        assert bucket_of(plan.rollout_id, one.id) < live.rollout.ladders[answer.wave][reached].share
        assert one.version == "1.2.2"
        ends = [a for a in self.attempts.get(one.id, ()) if a.result in OUTCOMES]
        assert len(ends) < plan.retry.limit and answer.number == len(ends) + 1
        if ends:
            pause = plan.retry.pauses_s[len(ends) - 1]
            assert self.now >= max(a.ended_at or 0.0 for a in ends) + pause
        if plan.concurrency is not None:
            building = PLACES.place_of(one.site).building
            busy = [
                n for n in self._open if PLACES.place_of(self.beacons[n].site).building == building
            ]
            assert len(busy) < plan.concurrency
        if not plan.required:
            self.check_window(plan, one)

    def check_window(self, plan, one):
        own = PLACES.place_of(one.site).window
        local = datetime.fromtimestamp(self.now, ZoneInfo(own.zone)).strftime("%H:%M")
        opens, closes = (plan.window or "03:00-05:00").split("-")
        inside = opens <= local < closes if opens < closes else local >= opens or local < closes
        assert inside, local

    def _apply(self, rollout_id, changes):
        for change in changes:
            if change.kind in (Kind.STAGE_OPENED, Kind.WAVE_COMPLETED) and change.by == "engine":
                self.check_gate(change)
            super()._apply(rollout_id, [change])

    def check_gate(self, change):
        live = self.rollouts[0]
        own = live.state.waves[change.wave]
        assert live.state.status is Status.ACTIVE
        if change.kind is Kind.STAGE_OPENED:
            assert change.stage == own.stage + 1
            if change.stage == 0:
                return
        if change.reason in ("empty", "nobody_there", "nobody_took"):
            return
        # Anything else has been confirmed by enough of those who tried, and was watched.
        latest = {}
        for tries in self.attempts.values():
            ends = [a for a in tries if a.result in OUTCOMES]
            if ends:
                last = max(ends, key=lambda a: a.ended_at or 0.0)
                latest[last.beacon_id] = last
        results = [
            a.result for a in latest.values() if (a.wave, a.stage) == (change.wave, own.stage)
        ]
        healthy = sum(result is Result.SUCCESS for result in results)
        assert healthy >= 1 and healthy / len(results) >= 0.9
        assert len(results) >= 5 or healthy == len(results)
        if not live.rollout.plan.required:
            soak = live.rollout.ladders[change.wave][own.stage].soak_s
            assert self.now - own.sampled_at >= soak


def run_of(rollout_id, fields, size, behave, days=40, joins=None):
    made = rollout(rollout_id, **fields)
    run = Watched(
        [ActiveRollout(made, initial_state(made, MONDAY))],
        fleet(size),
        PLACES,
        MONDAY,
        behave=behave,
        joins=joins,
    )
    run.run(MONDAY + days * DAY)
    return run


@settings(max_examples=80, deadline=None)
@given(IDS, PLANS, st.integers(0, 60), st.integers(0, 2**32))
def test_a_healthy_fleet_is_served_whoever_comes_when(rollout_id, fields, size, seed):
    rng = random.Random(seed)
    late = {one.id: MONDAY + rng.random() * 20 * DAY for one in fleet(size) if rng.random() < 0.2}
    run = run_of(
        rollout_id,
        fields,
        size,
        lambda *_: AttemptOutcome(Result.SUCCESS, rng.uniform(10, 1000)),
        days=90,
        joins=late,
    )
    assert run.rollouts[0].state.status is Status.COMPLETED
    assert {one.version for one in run.beacons.values()} <= {"1.2.3"}
    assert len(run.offers) == size


@settings(max_examples=120, deadline=None)
@given(
    IDS,
    PLANS,
    st.integers(1, 60),
    st.integers(0, 2**32),
    st.tuples(st.floats(0, 0.5), st.floats(0, 0.3), st.floats(0, 0.3)),
)
def test_whatever_the_fates(rollout_id, fields, size, seed, shares):
    rng = random.Random(seed)
    failed, rolled_back, bricked = shares

    def behave(one, number, now):
        dice = rng.random()
        if dice < failed:
            return AttemptOutcome(Result.FAILED, rng.uniform(1, 300), "download")
        if dice < failed + rolled_back:
            return AttemptOutcome(Result.ROLLED_BACK, rng.uniform(60, 600), "boot")
        if dice < failed + rolled_back + bricked:
            return AttemptOutcome(None, rng.uniform(10, 60))
        return AttemptOutcome(Result.SUCCESS, rng.uniform(10, 100))

    run = run_of(rollout_id, fields, size, behave)
    halted = next((c for _, c in run.transitions if c.kind is Kind.HALTED), None)
    if halted is not None:
        assert run.rollouts[0].state.status is Status.HALTED
        assert all(offer.at <= halted.at for offer in run.offers)
        assert run.transitions[-1][1] is halted
    # Every attempt has come to an end: nothing is open for ever.
    assert all(a.result is not None for tries in run.attempts.values() for a in tries)


@settings(max_examples=40, deadline=None)
@given(IDS, PLANS, st.integers(1, 40), st.integers(0, 2**32))
def test_the_same_fleet_and_fates_give_the_same_rollout(rollout_id, fields, size, seed):
    runs = []
    for _ in range(2):
        rng = random.Random(seed)
        runs.append(
            run_of(
                rollout_id,
                fields,
                size,
                lambda *_, rng=rng: AttemptOutcome(rng.choice(list(Result)[:3]), 30, "boot"),
                days=10,
            )
        )
    assert runs[0].offers == runs[1].offers and runs[0].transitions == runs[1].transitions


@settings(max_examples=40, deadline=None)
@given(IDS, PLANS, st.integers(1, 40))
def test_decide_says_what_the_preview_said(rollout_id, fields, size):
    fields.pop("concurrency", None)  # who else is busy is not in a slot
    made = rollout(rollout_id, **fields)
    timeline = simulate_rollout(made, fleet(size), PLACES, MONDAY, horizon_s=90 * DAY)
    run = Simulation(
        [ActiveRollout(made, initial_state(made, MONDAY))], fleet(size), PLACES, MONDAY
    )
    beacons = {one.id: one for one in fleet(size)}
    for slot in timeline.slots:
        assert slot.at is not None
        one = beacons[slot.beacon_id]
        # Before the rollout has come to it: not now. When its time has come: yes.
        run.run(slot.at)
        place = PLACES.place_of(one.site)
        answer = decide(run.rollouts, one, slot.at, place=place)
        assert answer.offered and (answer.wave, answer.stage) == (slot.wave, slot.stage)
        opened = next(
            change.at
            for change in timeline.transitions
            if change.kind is Kind.STAGE_OPENED
            and (change.wave, change.stage) == (slot.wave, slot.stage)
        )
        assert slot.at >= opened
        start = ActiveRollout(made, initial_state(made, MONDAY))
        assert decide([start], one, MONDAY, place=place).reason is Reason.SCHEDULED


# ---- decide, without a run ----


@given(IDS, LADDERS, st.integers(0, 500))
def test_who_is_in_stays_in_while_the_stage_grows(rollout_id, ladder, number):
    made = rollout(rollout_id, ladder=ladder)
    one = beacon(f"b{number}")
    offered = [
        decide([live(made, Status.ACTIVE, stage)], one, MONDAY, place=ANY_TIME).offered
        for stage in range(len(ladder))
    ]
    assert offered == sorted(offered) and offered[-1]
    first = offered.index(True)
    share = bucket_of(rollout_id, one.id)
    assert share < ladder[first]["share"]
    assert first == 0 or share >= ladder[first - 1]["share"]


WORDS = st.text(max_size=70)


@st.composite
def any_beacon(draw):
    return beacon(
        draw(WORDS),
        draw(WORDS | st.sampled_from(["1.2.2", "1.2.3", "0.0.1-a.1", "1.2.3+x"])),
        image=draw(WORDS),
        channel=draw(WORDS | st.sampled_from(["stable", "beta"])),
        site=draw(WORDS | st.sampled_from(["hq/a/1", "hq/b", ""])),
        tags=draw(st.frozensets(WORDS, max_size=3)),
        on_trial=draw(st.booleans()),
        quarantined=draw(st.booleans()),
        cleared_at=draw(st.floats(0, 1e11)),
    )


@settings(max_examples=300, deadline=None)
@given(
    any_beacon(),
    st.lists(st.tuples(st.sampled_from(Status), st.sampled_from(["testing", "stable", "x"]))),
    st.lists(st.tuples(st.sampled_from([None, *Result]), st.floats(0, 4e9)), max_size=6),
    st.floats(0, 4e9),
    st.integers(-1, 1000),
)
def test_any_beacon_gets_an_answer(one, stands, tries, now, busy):
    lives = [
        live(rollout(f"r{n}", concurrency=5), status, release_state=word)
        for n, (status, word) in enumerate(stands)
    ]
    made = rollout("r0")
    attempts = [
        attempt(one, made, result, taken=at, ended=None if result is None else at)
        for result, at in tries
    ]
    answer = decide(lives, one, now, attempts=attempts, place=PLACES.place_of(one.site), busy=busy)
    assert answer == decide(
        lives, one, now, attempts=attempts, place=PLACES.place_of(one.site), busy=busy
    )
    if answer.again_at is not None:
        assert answer.again_at > now or answer.reason in (Reason.SCHEDULED, Reason.WAVE)
    if answer.offered:
        assert not one.on_trial and not one.quarantined
        assert answer.number <= 3 or answer.attempt_id  # what was begun is finished
        stand = dict(zip((f"r{n}" for n in range(len(stands))), stands, strict=True))
        status, word = stand[answer.rollout_id or ""]
        assert word == "stable" or (word, one.channel) == ("testing", "beta")
        assert status not in (Status.HALTED, Status.ABORTED, Status.SCHEDULED)
        if answer.not_after is not None:
            assert answer.not_before <= now < answer.not_after


# ---- advance, with a clock that nobody can trust and an operator who tries everything ----

MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("tick"), st.sampled_from([0, 1, 300, HOUR, DAY, -HOUR, -400 * DAY])),
        st.tuples(st.sampled_from(["ok", "bad", "take", "brick", "vanish"]), st.integers(0, 39)),
        st.tuples(st.sampled_from(["pause", "resume", "halt", "abort", "step"]), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(IDS, PLANS, MOVES)
def test_any_history(rollout_id, fields, moves):
    bench = Bench(rollout(rollout_id, **fields), fleet(40))
    verbs = {
        "pause": pause_rollout,
        "resume": resume_rollout,
        "halt": halt_rollout,
        "abort": abort_rollout,
    }
    for move, value in moves:
        before, made = bench.state, len(bench.made)
        if move == "tick":
            bench.now = max(bench.now + value, 0.0)
            quiet = [a for tries in bench.attempts.values() for a in tries]
            for gone in lost_attempts(bench.rollout, quiet, bench.now):
                mine = bench.attempts[gone.beacon_id]
                mine[mine.index(gone)] = replace(gone, result=Result.LOST, ended_at=bench.now)
            bench.tick()
            again = advance(bench.rollout, bench.state, bench.tally(), bench.now)
            assert not again  # one look is enough
        elif move in verbs or move == "step":
            try:
                if move == "step":
                    changes = open_next_stage(
                        bench.rollout, before, bench.tally(), bench.now, "ada"
                    )
                else:
                    changes = verbs[move](before, bench.now, "ada")
            except UsageError:
                assert bench.state == before
            else:
                bench.apply(changes)
        else:
            one = bench.beacons[f"b{value:04}"]
            reached = bench.state.waves[bench.rollout.wave_of(one) or 0].stage
            if move == "vanish":
                bench.seen[one.id] = bench.now
            elif one.version == "1.2.2" and reached >= 0:
                result = {"ok": Result.SUCCESS, "bad": Result.FAILED}.get(move)
                bench.end(one, result)
        check_history(bench, before, bench.made[made:])


def check_history(bench, before, changes):
    state = bench.state
    for old, new in zip(before.waves, state.waves, strict=True):
        assert new.stage >= old.stage
        assert old.ended_at is None or new.ended_at is not None
    if before.status is Status.ABORTED:
        assert state == before
    if before.status is Status.HALTED:
        assert {change.kind for change in changes} <= {Kind.RESUMED, Kind.ABORTED, Kind.CLOCK_BACK}
    if before.status is Status.PAUSED:
        opened = [change for change in changes if change.kind is Kind.STAGE_OPENED]
        assert not opened
    tally = bench.tally()
    assert tally.total.members == sum(cell.members for row in tally.stages for cell in row)
    behind = Counter(bench.members().values())
    for wave, cells in enumerate(tally.stages):
        for stage, cell in enumerate(cells):
            for name in ("healthy", "gone", "failed", "accepted", "open", "waiting", "away"):
                assert getattr(cell, name) == behind[wave, stage, name]
    at = next_due_at(bench.rollout, state, tally, bench.now)
    assert at is None or at >= bench.now


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(Result), st.floats(0, DAY)), max_size=12), st.data())
def test_counting_does_not_depend_on_the_order(outcomes, data):
    made = rollout(ladder=[{"share": 1}])
    beacons = fleet(4)
    tries = [
        attempt(beacons[n % 4], made, result, taken=MONDAY + at + n / 1000)
        for n, (result, at) in enumerate(outcomes)
    ]
    tallies = []
    for order in (tries, data.draw(st.permutations(tries))):
        bench = Bench(made, beacons)
        bench.now = MONDAY + 2 * DAY
        for one in order:
            bench.attempts.setdefault(one.beacon_id, []).append(one)
        tallies.append(bench.tally())
    assert tallies[0] == tallies[1]
    assert tallies[0].total.members <= 4


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 50), st.floats(0, 0.99))
def test_the_margin_is_the_number_of_failures_that_trips(healthy, failed, sample, share):
    gate = Gate(failure_share=share, failure_sample=sample, max_consecutive_failures=10**9)

    def after(more):
        return tripped_limit(StageCounts(healthy=healthy, failed=failed + more), gate)

    more = failures_to_limit(StageCounts(healthy=healthy, failed=failed), gate)
    if more is None:
        assert after(10**6) is None
    else:
        assert after(more) is not None and (more == 0 or after(more - 1) is None)


@given(st.integers(1, 200), st.floats(0, 0.3))
def test_success_and_failure_always_come_to_a_verdict(size, share):
    """No rollout stays where it is for ever when everybody has an outcome."""
    made = rollout(ladder=[{"share": 1}])
    bench = Bench(made, fleet(size))
    bench.tick()
    for n, one in enumerate(fleet(size)):
        bench.now += MINUTE
        bad = math.floor((n + 1) * share) > math.floor(n * share)
        bench.end(one, Result.FAILED if bad else Result.SUCCESS)
    bench.tick()
    bench.tick(31 * MINUTE)
    assert bench.state.status in (Status.COMPLETED, Status.HALTED)
    failed = math.floor(size * share)
    if size >= 5 and failed / size > 0.05:
        assert bench.state.status is Status.HALTED
    if failed == 0:
        assert bench.state.status is Status.COMPLETED
    assert {one.version for one in (updated(b, made) for b in fleet(1))} == {"1.2.3"}
