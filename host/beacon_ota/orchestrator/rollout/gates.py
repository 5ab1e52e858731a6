"""What a rollout has come to, in counts, and what the counts mean.

The counts are taken from the beacons and their unique outcomes each time; nothing is kept.
A beacon counts once: under its latest outcome, in the wave and stage of that attempt, or, when it
has taken no offer, where it stands now.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum

from .decide import OUTCOMES, blocked_by_channel, is_blamed_by, is_other_board
from .fields import format_duration
from .roaming import MAX_CLOCK_DIFFERENCE_S
from .rules import Rollout, version_key
from .types import (
    Attempt,
    Beacon,
    Gate,
    OutcomeCounts,
    Result,
    RolloutState,
    StageCounts,
    WaveState,
)

SKEW_S = 60.0  # a clock that is being disciplined goes back by less

_FAILURES = OUTCOMES - {Result.SUCCESS}
_FIELDS = ("healthy", "gone", "failed", "accepted", "open", "waiting", "away")
_HEALTHY, _GONE, _FAILED, _ACCEPTED, _OPEN, _WAITING, _AWAY = range(len(_FIELDS))


def count_outcomes(
    rollout: Rollout,
    state: RolloutState,
    beacons: Iterable[Beacon],
    attempts: Mapping[str, Sequence[Attempt]],
    seen: Mapping[str, float],
    now: float,
    *,
    release_state: str = "stable",
    listening_since: float = 0.0,
) -> OutcomeCounts:
    """Count a rollout's beacons by wave and stage.

    Args:
        beacons: all that are registered; those the release is not for are left out here.
        attempts: by beacon id, of any rollout and release, in any order.
        seen: by beacon id, when it was last heard from, UTC seconds.
        listening_since: since when the orchestrator has been there to hear anybody.
    """
    counting = _Counting(rollout, state, seen, now, release_state, listening_since)
    counting.everybody(beacons, attempts)
    return counting.result()


def locate_beacons(
    rollout: Rollout,
    state: RolloutState,
    beacons: Iterable[Beacon],
    attempts: Mapping[str, Sequence[Attempt]],
    seen: Mapping[str, float],
    now: float,
    *,
    release_state: str = "stable",
    listening_since: float = 0.0,
) -> dict[str, tuple[int, int, str]]:
    """Return who is behind the counts of :func:`tally`: by beacon id its wave, stage and count."""
    counting = _Counting(rollout, state, seen, now, release_state, listening_since)
    counting.everybody(beacons, attempts)
    return {
        beacon_id: (wave, stage, _FIELDS[field])
        for beacon_id, (wave, stage, field) in counting.where.items()
    }


class _Counting:
    """One pass over the fleet."""

    def __init__(
        self,
        rollout: Rollout,
        state: RolloutState,
        seen: Mapping[str, float],
        now: float,
        release_state: str,
        listening_since: float,
    ):
        self.rollout = rollout
        self.since = state.since
        self.seen = seen
        self.now = now
        self.release_state = release_state
        self.listening_since = listening_since
        self.counts = [[[0] * len(_FIELDS) for _ in ladder] for ladder in rollout.ladders]
        self.where: dict[str, tuple[int, int, int]] = {}  # beacon -> wave, stage, count
        # Per cell: (taken, ended, attempt, failed?) of every beacon with an outcome.
        self.ends: list[list[list[tuple[float, float, str, bool]]]] = [
            [[] for _ in ladder] for ladder in rollout.ladders
        ]

    def everybody(
        self, beacons: Iterable[Beacon], attempts: Mapping[str, Sequence[Attempt]]
    ) -> None:
        known = set()
        for beacon in beacons:
            mine = attempts.get(beacon.id, ())
            if mine:
                known.add(beacon.id)
            self.add(beacon.id, beacon, mine)
        for beacon_id, mine in attempts.items():
            if beacon_id not in known:  # no longer registered; what it reported still happened
                self.add(beacon_id, None, mine)

    def add(self, beacon_id: str, beacon: Beacon | None, attempts: Sequence[Attempt]) -> None:
        rollout = self.rollout
        own = rollout.plan.rollout_id
        firmware_id = rollout.plan.release.firmware_id
        latest = current = None
        tries = 0
        cleared_at = 0.0 if beacon is None else beacon.cleared_at
        blamed = False
        for attempt in attempts:
            if attempt.firmware_id != firmware_id:
                continue
            blamed = blamed or (beacon is not None and is_blamed_by(attempt, beacon))
            if attempt.result in OUTCOMES:
                if attempt.final_at > cleared_at:
                    tries += 1
                if attempt.rollout_id == own and (latest is None or _later(attempt, latest)):
                    latest = attempt
            elif (
                attempt.result is None
                and attempt.taken_at is not None
                and attempt.rollout_id == own
            ):
                current = attempt
        if blamed:  # it is offered the release no more
            tries = rollout.plan.retry.limit
        if latest is not None:
            self._count_outcome(beacon_id, beacon, latest, current, tries)
        elif current is not None:
            self._count(beacon_id, current.wave, current.stage, _OPEN)
        elif beacon is not None and tries < rollout.plan.retry.limit:
            self._count_waiting(beacon)

    def _count_outcome(
        self,
        beacon_id: str,
        beacon: Beacon | None,
        latest: Attempt,
        current: Attempt | None,
        tries: int,
    ) -> None:
        gate = self.rollout.gates[latest.wave]
        ended = latest.final_at
        # What ended in the future did so before the clock was set back; whoever resumed the rollout
        # since could not do so in vain until the clock has caught up.
        accepted = ended <= self.since or (self.since > 0 and ended > self.now + SKEW_S)
        undone = latest.undone_at is not None
        failed = latest.result in _FAILURES or undone or self._fell_back(beacon, latest)
        if not failed:
            field = _HEALTHY if self._stands(beacon_id, beacon, gate) else _GONE
            if accepted and field == _GONE:
                field = _ACCEPTED
        elif accepted:
            field = _ACCEPTED if current is None else _OPEN
        elif (
            latest.failed_in in gate.retry_first
            and not undone
            and tries < self.rollout.plan.retry.limit
            and (
                current is not None
                or self.now < max(ended, self.listening_since) + gate.report_timeout_s
            )
        ):
            field = _OPEN
        else:
            field = _FAILED
        where = latest if current is None or field != _OPEN else current
        self._count(beacon_id, where.wave, where.stage, field)
        if field in (_HEALTHY, _GONE, _FAILED):
            self.ends[where.wave][where.stage].append(
                (latest.taken_at or latest.offered_at, ended, latest.id, failed)
            )

    def _count_waiting(self, beacon: Beacon) -> None:
        rollout = self.rollout
        if (
            not rollout.targets(beacon)
            or blocked_by_channel(self.release_state, beacon.channel) is not None
        ):
            return
        wave = rollout.wave_of(beacon)
        if wave is None:
            return
        field = _WAITING if self._present(beacon.id, rollout.gates[wave]) else _AWAY
        self._count(beacon.id, wave, rollout.stage_of(beacon.id, wave), field)

    def _count(self, beacon_id: str, wave: int, stage: int, field: int) -> None:
        self.counts[wave][stage][field] += 1
        self.where[beacon_id] = (wave, stage, field)

    def _present(self, beacon_id: str, gate: Gate) -> bool:
        heard = self.seen.get(beacon_id, 0.0)
        return max(heard, self.listening_since) > self.now - gate.liveness_window_s

    def _stands(self, beacon_id: str, beacon: Beacon | None, gate: Gate) -> bool:
        """True for a beacon whose silence is no reason to doubt what it has confirmed.

        Whoever was removed is not waited for; nor is whoever was registered again under its name
        and has yet to say a word.
        """
        return beacon is None or beacon_id not in self.seen or self._present(beacon_id, gate)

    def _fell_back(self, beacon: Beacon | None, latest: Attempt) -> bool:
        """True for a beacon that confirmed the release and has stated an older version since.

        When the attempt's end was dated by another orchestrator's clock, "since" waits for as much
        as two clocks may differ by: the beacon states what it runs with every poll.
        """
        since = latest.final_at + (MAX_CLOCK_DIFFERENCE_S if latest.is_remote else 0.0)
        if beacon is None or beacon.version_at <= since:
            return False
        if is_other_board(beacon, self.rollout.plan.release.device_type):
            return False  # what it runs as that says nothing about this release
        running = version_key(beacon.version)
        return (
            running is not None
            and running < self.rollout.version_key
            and beacon.image != self.rollout.plan.release.checksum
        )

    def result(self) -> OutcomeCounts:
        cells = tuple(
            tuple(_cell(*cell) for cell in zip(counts, ends, strict=True))
            for counts, ends in zip(self.counts, self.ends, strict=True)
        )
        everything = range(len(cells))
        common = [w for w in everything if self.rollout.plan.waves[w].gate is None]
        total = self._sum(everything)
        return OutcomeCounts(
            cells, total, total if len(common) == len(cells) else self._sum(common)
        )

    def _sum(self, waves: Iterable[int]) -> StageCounts:
        waves = tuple(waves)
        ends = [end for wave in waves for stage in self.ends[wave] for end in stage]
        counts = [0] * len(_FIELDS)
        for wave in waves:
            for stage in self.counts[wave]:
                counts = [a + b for a, b in zip(counts, stage, strict=True)]
        return _cell(counts, ends)


def _cell(counts: Sequence[int], ends: list) -> StageCounts:
    # The order matters only where more than one has failed.
    row = longest_failure_streak(ends) if counts[_FAILED] > 1 else counts[_FAILED]
    return StageCounts(**dict(zip(_FIELDS, counts, strict=True)), failure_streak=row)


def longest_failure_streak(ends: Collection[tuple[float, float, str, bool]]) -> int:
    """Return the longest run of failures among (taken, ended, attempt id, failed).

    In the order in which the offers were taken: a ``lost`` is known half an hour after its
    neighbours' successes, and all of them at once would look like a row at the end.
    """
    longest = run = 0
    for *_, failed in sorted(ends):
        run = run + 1 if failed else 0
        longest = max(longest, run)
    return longest


def _later(attempt: Attempt, other: Attempt) -> bool:
    return ((attempt.ended_at or 0.0), attempt.offered_at) > (
        (other.ended_at or 0.0),
        other.offered_at,
    )


def tripped_limit(cell: StageCounts, gate: Gate) -> tuple[str, str] | None:
    """Return why a cell's failures stop the rollout, as (word, sentence); None if they do not."""
    if cell.failure_streak >= gate.max_consecutive_failures:
        return "failures_in_a_row", f"{cell.failure_streak} beacons failed one after another"
    if _over(cell.failed, cell.decided, gate):
        return (
            "failure_share",
            f"{cell.failed} of {cell.decided} failed ({cell.failed / cell.decided:.1%}), "
            f"the limit is {gate.failure_share:.1%}",
        )
    return None


def _over(failed: int, decided: int, gate: Gate) -> bool:
    return decided >= gate.failure_sample and failed / decided > gate.failure_share


def failures_to_limit(cell: StageCounts, gate: Gate) -> int | None:
    """Return how many failures more would take the share of failures over its limit.

    Those that come next, with nothing else in between; 0 when it is over, None when no number
    of them would do.
    """
    if gate.failure_share >= 1:
        return None
    exact = (gate.failure_share * cell.decided - cell.failed) / (1 - gate.failure_share)
    more = max(0, math.floor(exact) - 1, gate.failure_sample - cell.decided)
    while not _over(cell.failed + more, cell.decided + more, gate):
        more += 1
    return more


class GateVerdict(StrEnum):
    """What a gate says about a stage."""

    WAIT = "wait"
    SAMPLED = "sampled"
    PASS = "pass"
    HALT = "halt"


def judge_stage(
    rollout: Rollout, state: RolloutState, tally: OutcomeCounts, wave: int, now: float
) -> tuple[GateVerdict, str, str]:
    """Judge the present stage of an open wave, and with the last stage the wave.

    Returns:
        The verdict; a stable word; a sentence with the numbers.
    """
    found = _judge_present_stage(rollout, state, tally, wave, now)
    if found[0] is GateVerdict.PASS and state.waves[wave].stage == len(rollout.ladders[wave]) - 1:
        return _judge_end(rollout, state, tally, wave, now) or found
    return found


def _judge_present_stage(
    rollout: Rollout, state: RolloutState, tally: OutcomeCounts, wave: int, now: float
) -> tuple[GateVerdict, str, str]:
    own = state.waves[wave]
    stage = own.stage
    gate = rollout.gates[wave]
    cell = tally.stages[wave][stage]
    stage_at = now if own.stage_at is None else own.stage_at
    patient = _patient(own, gate, now)
    if not any(other.reach for other in tally.stages[wave]):
        verdict = GateVerdict.WAIT if patient else GateVerdict.PASS
        if any(other.members for other in tally.stages[wave]):
            return verdict, "nobody_there", "nobody in this wave can be reached"
        return verdict, "empty", "nobody in this wave is due for the release"
    soak = soak_time(rollout, tally, wave, stage)
    tried = any(other.tried for other in tally.stages[wave])
    if cell.members == 0:
        # Before anybody has tried the release, a stage that is empty may yet fill: a fleet that is
        # being set up must not find its ladder climbed.
        if tried or now - stage_at >= soak:
            return GateVerdict.PASS, "empty", "nobody in this stage"
        return GateVerdict.WAIT, "empty", "nobody in this stage so far"
    if cell.reach == 0:
        if now - stage_at >= soak:
            return GateVerdict.PASS, "nobody_there", f"{cell.members} in this stage, none reachable"
        return GateVerdict.WAIT, "soak", "nobody in this stage can be reached so far"
    if not patient and cell.attempted == 0 and tried:
        return GateVerdict.PASS, "nobody_took", f"{cell.waiting} in this stage never took the offer"
    need = required_sample(rollout, state, tally, wave, now)
    if cell.decided < need:
        return GateVerdict.WAIT, "sample", f"{cell.decided} of the {need} outcomes needed"
    sampled_at = own.sampled_at
    if sampled_at is None:
        return GateVerdict.SAMPLED, "sample", f"{cell.decided} outcomes, {need} needed"
    if now - sampled_at < soak:
        return GateVerdict.WAIT, "soak", f"watched for {format_duration(soak)}"
    says = f"{cell.healthy} of {cell.attempted} confirmed healthy"
    if cell.healthy / cell.attempted >= gate.healthy_share:
        return GateVerdict.PASS, "healthy", says
    if cell.open:
        return GateVerdict.WAIT, "open", f"{cell.open} under way"
    if cell.failed and now - sampled_at < gate.report_timeout_s:
        return GateVerdict.WAIT, "retries", f"{cell.failed} failed and may try again"
    if (cell.healthy + cell.gone) / cell.attempted >= gate.healthy_share:
        if patient:
            return GateVerdict.WAIT, "gone", f"{cell.gone} confirmed and not heard from since"
        return GateVerdict.HALT, "gone", f"{cell.gone} confirmed and not heard from since"
    return GateVerdict.HALT, "healthy_share", f"{says}, {gate.healthy_share:.0%} needed"


def required_sample(
    rollout: Rollout, state: RolloutState, tally: OutcomeCounts, wave: int, now: float
) -> int:
    """Return how many outcomes the present stage of an open wave needs before it is judged.

    Those who keep asking and never begin are waited for, too, but not for ever.
    """
    own = state.waves[wave]
    gate = rollout.gates[wave]
    cell = tally.stages[wave][own.stage]
    reach = cell.reach if _patient(own, gate, now) else cell.attempted
    return min(gate.min_sample, reach or cell.reach)


def _patient(own: WaveState, gate: Gate, now: float) -> bool:
    return own.stage_at is None or now - own.stage_at < gate.stage_timeout_s


def _judge_end(
    rollout: Rollout, state: RolloutState, tally: OutcomeCounts, wave: int, now: float
) -> tuple[GateVerdict, str, str] | None:
    """Return what keeps a wave from ending after its last stage, None when nothing does.

    It ends when everybody who is there has been served, stragglers of earlier stages included,
    and enough of all who tried are healthy.
    """
    gate = rollout.gates[wave]
    stage_at = state.waves[wave].stage_at
    age = 0.0 if stage_at is None else now - stage_at
    under_way = sum(cell.open for cell in tally.stages[wave])
    to_come = sum(cell.waiting for cell in tally.stages[wave])
    if age < gate.stage_timeout_s and under_way + to_come:
        return GateVerdict.WAIT, "serving", f"{under_way} under way, {to_come} to come"
    attempted = sum(cell.attempted for cell in tally.stages[wave])
    healthy = sum(cell.healthy + cell.gone for cell in tally.stages[wave])
    if attempted == 0 or healthy / attempted >= gate.healthy_share:
        return None
    if under_way or age < gate.report_timeout_s:
        return GateVerdict.WAIT, "retries", f"{attempted - healthy} failed and may try again"
    return (
        GateVerdict.HALT,
        "healthy_share",
        f"{healthy} of {attempted} confirmed healthy, {gate.healthy_share:.0%} needed",
    )


def soak_time(rollout: Rollout, tally: OutcomeCounts, wave: int, stage: int) -> float:
    """Return how long a stage is watched, seconds.

    A stage in which nobody was tried hands its watch on: the first beacons of a small building
    are its canaries, in whichever stage they stand.
    """
    if rollout.plan.required:
        return 0.0
    ladder = rollout.ladders[wave]
    soak = ladder[stage].soak_s
    for before in range(stage - 1, -1, -1):
        if tally.stages[wave][before].tried:
            break
        soak = max(soak, ladder[before].soak_s)
    return soak
