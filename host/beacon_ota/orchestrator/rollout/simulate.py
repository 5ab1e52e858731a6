"""Simulates a fleet and its rollouts: the real decisions, driven by events instead of a clock.

:func:`simulate_rollout` runs a plan over the registered beacons as if every update went well, and
returns which beacon would get the release when. With other outcomes the same code shows how a bad
release would be stopped.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from .advance import advance, apply_transition, initial_state, next_due_at
from .counting import count_outcomes
from .decide import ActiveRollout, decide, lost_attempts, revocable_attempts
from .plan_types import DAY
from .polling import PERIOD_S, poll_delay
from .rules import Rollout
from .types import (
    Attempt,
    Beacon,
    Decision,
    Kind,
    OutcomeCounts,
    PreviewSlot,
    Reason,
    Result,
    Status,
    Timeline,
    Transition,
)
from .windows import Places

UPDATE_S = 60.0
TICK_S = 60.0  # between two looks at the gates, and as much more as a fleet is larger than …
TICK_FLEET = 1000  # … this, up to ten times
HORIZON_S = 366 * DAY
_REBOOT = 0.8  # of an update's time has passed when the beacon reboots
_ALWAYS = float("inf")
_HEARD = frozenset(Kind) - {  # by beacons
    Kind.SAMPLED,
    Kind.WAVE_COMPLETED,
    Kind.CLOCK_BACK,
    Kind.CLOCK_AHEAD,
}


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """What becomes of one attempt: a result after some seconds; None is silence for ever."""

    result: Result | None = Result.SUCCESS
    after_s: float = UPDATE_S
    failed_in: str | None = None


OutcomeModel = Callable[[Beacon, int, float], AttemptOutcome]


def always_succeeds(beacon: Beacon, number: int, now: float) -> AttemptOutcome:
    """The fate of every attempt in a preview."""
    return AttemptOutcome()


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer that was made: when, to whom, by which rollout."""

    at: float
    beacon_id: str
    decision: Decision


class Simulation:
    """Beacons that poll, rollouts that move, and nothing between them but the decisions.

    Args:
        rollouts: newest first.
        start_at: UTC seconds.
        behave: the fate of (beacon, number of the attempt, time).
        joins: by beacon id, when it is first heard from; others are there from the start.
        period_s: between two polls of a beacon.

    Attributes:
        now: UTC seconds of the last event.
        beacons, attempts: by beacon id, as they stand.
        offers, transitions: what has happened so far; transitions as (rollout id, transition).
        said: by beacon id, the last decision.
    """

    def __init__(
        self,
        rollouts: Iterable[ActiveRollout],
        beacons: Iterable[Beacon],
        places: Places,
        start_at: float,
        *,
        behave: OutcomeModel = always_succeeds,
        joins: Mapping[str, float] | None = None,
        period_s: float = PERIOD_S,
    ):
        self.now = start_at
        self.rollouts = list(rollouts)
        self.beacons = {beacon.id: beacon for beacon in beacons}
        self.attempts: dict[str, list[Attempt]] = {}
        self.offers: list[Offer] = []
        self.transitions: list[tuple[str, Transition]] = []
        self.last_decisions: dict[str, Decision] = {}
        self._places = places
        self._behave = behave
        self._period_s = period_s
        self._open: dict[str, Attempt] = {}
        self._busy: Counter[str] = Counter()
        self._building: dict[str, str] = {}  # of an open attempt, wherever its beacon is moved
        self._queues: dict[str, deque[str]] = {}
        self._seen: dict[str, float] = {}
        self._parked: set[str] = set()
        self._next: dict[str, float] = {}
        self._ticks: set[float] = set()
        self._tick_s = TICK_S * min(max(len(self.beacons) / TICK_FLEET, 1.0), 10.0)
        self._serial = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        joins = joins or {}
        for beacon_id in self.beacons:
            at = max(start_at, joins.get(beacon_id, start_at))
            first = at + poll_delay(beacon_id, at, period_s=period_s)
            self.schedule(first, lambda beacon_id=beacon_id: self._arrive(beacon_id))
            if at <= start_at:
                self._seen[beacon_id] = _ALWAYS
        self._ticks.add(start_at)  # the first look comes before anybody polls, on no grid
        self.schedule(start_at, self._tick)

    def schedule(self, when: float, event: Callable[[], None]) -> None:
        """Have something happen at a time."""
        heapq.heappush(self._events, (max(when, self.now), next(self._serial), event))

    def run(self, until: float, *, stop: Callable[[], bool] = lambda: False) -> None:
        """Go on until a time, or until ``stop`` says so; then ``now`` is that time."""
        while self._events and self._events[0][0] <= until:
            if stop():
                return
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = max(self.now, until)

    def apply_changes(self, rollout_id: str, changes: Sequence[Transition]) -> None:
        """Apply transitions to a rollout, as an administrator's calls do."""
        self._apply(rollout_id, changes)
        self._tick_at(self.now)

    def _apply(self, rollout_id: str, changes: Sequence[Transition]) -> None:
        live = self._live(rollout_id)
        state = live.state
        for change in changes:
            state = apply_transition(state, change)
            self.transitions.append((rollout_id, change))
        self.rollouts[self.rollouts.index(live)] = replace(live, state=state)
        if state.status in (Status.HALTED, Status.ABORTED):
            mine = [a for a in self._open.values() if a.rollout_id == rollout_id]
            for attempt in revocable_attempts(mine):
                self._end(attempt, Result.STOPPED)
        if any(change.kind in _HEARD for change in changes):
            self._wake()

    def add_rollout(self, live: ActiveRollout) -> None:
        """Add a rollout, newer than all others."""
        self.rollouts.insert(0, live)
        self._tick_at(self.now)
        self._wake()

    def vanish(self, beacon_id: str) -> None:
        """Let a beacon fall silent: it polls no more."""
        if self._seen.get(beacon_id) == _ALWAYS:
            self._seen[beacon_id] = self.now
        self._parked.discard(beacon_id)

    def join(self, beacon: Beacon) -> None:
        """Let a beacon appear, or come back as something else."""
        self.beacons[beacon.id] = beacon
        self._arrive(beacon.id)

    def count_outcomes(self, live: ActiveRollout) -> OutcomeCounts:
        """Count a rollout as it stands now."""
        return count_outcomes(
            live.rollout,
            live.state,
            self.beacons.values(),
            self.attempts,
            self._seen,
            self.now,
            release_state=live.release_state,
        )

    # ---- beacons ----

    def _arrive(self, beacon_id: str) -> None:
        self._seen[beacon_id] = _ALWAYS
        self._poll(beacon_id)

    def _poll_after(self, beacon_id: str, at: float, until: float | None = None) -> None:
        """Have a beacon poll at its own moment after ``at``; what it had in mind is forgotten.

        A moment that has passed counts as now: a decision may name one for as long as the engine
        has not looked, and a beacon that waits for it goes on polling meanwhile.
        """
        at = max(at, self.now)
        when = at + poll_delay(beacon_id, at, until=until, period_s=self._period_s)
        self._next[beacon_id] = when

        def poll() -> None:
            if self._next.get(beacon_id) == when:
                self._poll(beacon_id)

        self.schedule(when, poll)

    def _poll(self, beacon_id: str) -> None:
        self._next.pop(beacon_id, None)
        if self._seen.get(beacon_id) != _ALWAYS:
            return
        beacon = self.beacons[beacon_id]
        place = self._places.place_of(beacon.site)
        own = self._open.get(beacon_id)
        answer = self.last_decisions[beacon_id] = decide(
            self.rollouts,
            beacon,
            self.now,
            attempts=self.attempts.get(beacon_id, ()),
            place=place,
            busy=self._busy[place.building] - (own is not None),
        )
        if answer.offered:
            self._begin(beacon, answer)
            return
        self._parked.add(beacon_id)
        if answer.reason is Reason.BUSY:
            self._queues.setdefault(place.building, deque()).append(beacon_id)
            return
        if answer.again_at is not None:
            self._poll_after(beacon_id, answer.again_at, answer.again_at)
        self._let_in(place.building)

    def _let_in(self, building: str) -> None:
        """A place is free, and of the many who keep asking for it one is the first."""
        if queue := self._queues.get(building):
            beacon_id = queue.popleft()
            self.schedule(self.now + 1.0, lambda: self._poll(beacon_id))

    def _wake(self) -> None:
        """Something has changed: everybody who waits asks again at its own moment."""
        for beacon_id in sorted(self._parked):
            self._poll_after(beacon_id, self.now)
        self._parked.clear()

    def _begin(self, beacon: Beacon, answer: Decision) -> None:
        if beacon.id in self._open:  # asked again in between; the update is under way
            return
        self._parked.discard(beacon.id)
        assert answer.rollout_id is not None and answer.firmware_id is not None
        assert answer.wave is not None and answer.stage is not None
        self.offers.append(Offer(self.now, beacon.id, answer))
        attempt = Attempt(
            f"{next(self._serial):024x}",
            beacon.id,
            answer.rollout_id,
            answer.firmware_id,
            answer.wave,
            answer.stage,
            self.now,
            self.now,
        )
        self.attempts.setdefault(beacon.id, []).append(attempt)
        self._open[beacon.id] = attempt
        building = self._building[attempt.id] = self._places.place_of(beacon.site).building
        self._busy[building] += 1
        fate = self._behave(beacon, answer.number, self.now)
        if fate.result is not Result.FAILED:
            reboots = self.now + _REBOOT * fate.after_s
            self.schedule(reboots, lambda: self._reboot(attempt.id, beacon.id, fate))
        self.schedule(self.now + fate.after_s, lambda: self._report(attempt.id, beacon.id, fate))

    def _reboot(self, attempt_id: str, beacon_id: str, fate: AttemptOutcome) -> None:
        attempt = self._open.get(beacon_id)
        if attempt is None or attempt.id != attempt_id:
            return
        self._change(attempt, replace(attempt, rebooting_at=self.now))
        if fate.result is None:
            self.vanish(beacon_id)
            self._tick_at(attempt.offered_at + self._silence_s(attempt))

    def _report(self, attempt_id: str, beacon_id: str, fate: AttemptOutcome) -> None:
        attempt = self._open.get(beacon_id)
        if attempt is None or attempt.id != attempt_id or fate.result is None:
            return
        if fate.result is Result.SUCCESS:
            release = self._live(attempt.rollout_id).rollout.plan.release
            self.beacons[beacon_id] = replace(
                self.beacons[beacon_id],
                version=release.version,
                image=release.checksum,
                version_at=self.now,
            )
        self._end(attempt, fate.result, fate.failed_in)
        self._tick_at(self.now)

    def _end(self, attempt: Attempt, result: Result, failed_in: str | None = None) -> None:
        self._change(
            attempt, replace(attempt, ended_at=self.now, result=result, failed_in=failed_in)
        )
        del self._open[attempt.beacon_id]
        building = self._building.pop(attempt.id)
        self._busy[building] -= 1
        self._let_in(building)
        if self._seen.get(attempt.beacon_id) == _ALWAYS:
            self._poll_after(attempt.beacon_id, self.now)

    def _change(self, old: Attempt, new: Attempt) -> None:
        mine = self.attempts[old.beacon_id]
        mine[mine.index(old)] = new
        self._open[old.beacon_id] = new

    # ---- rollouts ----

    def _silence_s(self, attempt: Attempt) -> float:
        return self._live(attempt.rollout_id).rollout.gates[attempt.wave].report_timeout_s

    def _live(self, rollout_id: str) -> ActiveRollout:
        return next(live for live in self.rollouts if live.rollout.plan.rollout_id == rollout_id)

    def _tick_at(self, when: float) -> None:
        when = -(-when // self._tick_s) * self._tick_s
        if when not in self._ticks:
            self._ticks.add(when)
            self.schedule(when, self._tick)

    def _tick(self) -> None:
        self._ticks.discard(self.now)
        for live in tuple(self.rollouts):
            for attempt in lost_attempts(live.rollout, self._open.values(), self.now):
                self._end(attempt, Result.LOST)
            if live.state.status in (Status.HALTED, Status.ABORTED):
                continue
            counts = self.count_outcomes(live)
            if changes := advance(live.rollout, live.state, counts, self.now):
                self._apply(live.rollout.plan.rollout_id, changes)
            state = self._live(live.rollout.plan.rollout_id).state
            at = next_due_at(live.rollout, state, counts, self.now)
            if at is not None:
                self._tick_at(at)


def simulate_rollout(
    rollout: Rollout,
    beacons: Iterable[Beacon],
    places: Places,
    start_at: float,
    *,
    release_state: str = "stable",
    horizon_s: float = HORIZON_S,
    stop: Callable[[], bool] = lambda: False,
) -> Timeline:
    """Say who would get a release when, if every update went well and everybody were there.

    Args:
        start_at: UTC seconds.
        horizon_s: how far ahead to look.
        stop: asked now and then; once it says so, the timeline ends where it is.

    Returns:
        The timeline; what comes later than the horizon has no time and keeps its reason.
    """
    beacons = list(beacons)
    live = ActiveRollout(rollout, initial_state(rollout, start_at), release_state)
    run = Simulation([live], beacons, places, start_at)
    run.run(
        start_at + horizon_s,
        stop=lambda: run.rollouts[0].state.status is Status.COMPLETED or stop(),
    )
    first = {}
    for offer in run.offers:
        first.setdefault(offer.beacon_id, offer)
    slots = []
    for beacon in beacons:
        offer = first.get(beacon.id)
        if offer is None:
            said = run.last_decisions.get(beacon.id, Decision(Reason.NO_RELEASE))
            slots.append(PreviewSlot(beacon.id, said.wave, said.stage, None, said.reason))
        else:
            slots.append(
                PreviewSlot(beacon.id, offer.decision.wave, offer.decision.stage, offer.at)
            )
    slots.sort(key=lambda slot: (slot.at is None, slot.at or 0.0, slot.beacon_id))
    changes = tuple(change for _, change in run.transitions)
    return Timeline(
        tuple(slots),
        changes,
        next((change.at for change in changes if change.kind is Kind.COMPLETED), None),
        Counter(slot.reason for slot in slots if slot.at is None),
    )
