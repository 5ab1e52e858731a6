"""Counts a rollout's beacons by wave, stage and outcome.

The counts are computed from the beacons and their unique outcomes each time; nothing is stored.
A beacon counts once: under its latest outcome, in the wave and stage of that attempt; a beacon that
has taken no offer counts in its present wave and stage.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from .decide import OUTCOMES, blocked_by_channel, is_blamed_by, is_other_board
from .plan_types import Gate
from .roaming import MAX_CLOCK_DIFFERENCE_S
from .rules import Rollout, version_key
from .types import Attempt, Beacon, OutcomeCounts, Result, RolloutState, StageCounts

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
    """Return by beacon id where :func:`count_outcomes` counts it: wave, stage, count."""
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
