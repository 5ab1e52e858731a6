"""The rollout engine: concludes attempts, counts outcomes, and moves rollouts by their gates.

The pure functions of ``rollout`` decide every move. ``rollout_store`` commits a move as one
transaction with its transitions, audit entries and events, from the revision that the decision
used, so that no two processes make the same move. ``conclusions`` ends attempts the same way.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.clock import ClockJumpDetector
from beacon_ota.orchestrator.core.conclusions import AttemptConclusions
from beacon_ota.orchestrator.core.fleet_records import RolloutEntry
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.core.stop_manager import DecideTransitions, stop_unstored
from beacon_ota.orchestrator.db.connection import StorageError
from beacon_ota.orchestrator.db.tables import (
    mirror_books,
)
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.rollout.advance import (
    advance,
    next_due_at,
    restart_soaks,
)
from beacon_ota.orchestrator.rollout.counting import count_outcomes, locate_beacons
from beacon_ota.orchestrator.rollout.rules import plan_covers
from beacon_ota.orchestrator.rollout.types import (
    Attempt,
    Kind,
    OutcomeCounts,
    Status,
    Transition,
)

T = TypeVar("T")
log = logging.getLogger("beacon_ota.orchestrator")

EVALUATION_INTERVAL_S = 30.0  # the engine is not notified of new and removed beacons
AGAIN_S = 1.0  # until a change that the database refused is tried again, in real (unscaled) seconds
MIN_ROUND_PAUSE_S = 0.2  # minimum pause between two evaluation rounds, in real (unscaled) seconds
_CALLED_OFF = (Status.HALTED, Status.ABORTED)
_BEGUN = (Status.SCHEDULED, Status.ACTIVE, Status.PAUSED)
_SERVING = (Status.SCHEDULED, Status.ACTIVE, Status.COMPLETED)


class Engine(AttemptConclusions):
    """The background task over a service's rollouts."""

    def __init__(self, service: Service):
        super().__init__(service)
        self.clock_jumps = ClockJumpDetector()
        self._landed = 0.0  # UTC after the last leap ahead; soaks that are older begin anew
        self._failed = ""  # why the database last refused a move
        self.rollout_lock = asyncio.Lock()  # held from a decision to its commit

    def start(self) -> None:
        """Load the rollouts and begin to watch them."""
        self.service.db.read_now(self._load)
        self._sync_times = self.service.db.read_now(mirror_books.read_sync_times)
        self.service.fleet.on_change = self._wake.set
        self.stop_manager.start()
        if self.service.restored:
            self._hold_restored()
        self.service.run_in_background(self._watch())

    def _hold_restored(self) -> None:
        """Pause the rollouts of a database from a backup, which lacks all halts made since then.

        The pause holds in memory at once, before any request is answered, and is committed later.
        """
        log.warning("the database is older than what was done with it; its rollouts are paused")
        why = "the database was restored; see what was done since its backup, and resume"
        change = Transition(self.service.clock.now(), Kind.PAUSED, None, None, "restored", why)
        view = self.service.fleet
        held = [key for key, one in view.rollouts.items() if one.state.status in _SERVING]
        self.stop_manager.stop_all_in_memory(held, change)
        self.service.run_in_background(self._pause(held))

    async def _pause(self, held: Sequence[str]) -> None:
        for key in held:
            await self.stop_manager.wait_until_stored(key)
        self.service.restored = False

    # ---- the loop ----

    async def _watch(self) -> None:
        clock = self.service.clock
        while True:
            self._wake.clear()
            again_at = clock.now() + EVALUATION_INTERVAL_S
            self._check_for_clock_jump(clock.now())
            for entry in list(self.service.fleet.rollouts.values()):
                began = time.monotonic()
                if not (self.service.is_leader or self.service.cut_off):
                    self._drop_if_over(entry)
                    continue
                try:
                    async with self.rollout_lock:
                        if self.service.is_leader:
                            await self.evaluate_rollout(entry)
                        else:
                            await self._halt_in_memory(entry)
                except StorageError as error:
                    if str(error) != self._failed:
                        log.error("rollouts cannot be moved: %s", error)
                    self._failed = str(error)
                except Exception:
                    log.exception("rollout %s could not be moved", entry.rollout.plan.rollout_id)
                if entry.due is not None:
                    again_at = min(again_at, entry.due)
                # Counting takes time in proportion to the fleet, for every rollout anew; it gets a
                # tenth of it at most, and the beacons' calls come in between.
                await asyncio.sleep(9 * (time.monotonic() - began))
            await asyncio.sleep(MIN_ROUND_PAUSE_S)
            try:
                async with asyncio.timeout(max(clock.real_seconds(again_at - clock.now()), 0.0)):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def evaluate_rollout(self, entry: RolloutEntry) -> None:
        """Do everything that is due for one rollout; the caller holds ``rollout_lock``."""
        try:
            await self._evaluate_rollout(entry)
        except UsageError as error:
            if error.code != "rollout_moved":
                raise  # "rollout_moved": another process has moved it

    async def _evaluate_rollout(self, entry: RolloutEntry) -> None:
        now = self.service.clock.now()
        self._check_for_clock_jump(now)
        if self.stop_manager.is_pending(entry.rollout.plan.rollout_id):
            return  # decide nothing on an uncommitted stop; it is stored separately
        try:
            if made := restart_soaks(entry.state, now, self._landed):
                await self.commit_transitions(entry, made)
            if entry.open_ids:
                await self._conclude_attempts(entry, now)
        except StorageError:
            await self._halt_in_memory(entry)  # a halt does not wait for the database
            raise
        if self._drop_if_over(entry) or entry.retired or entry.state.status is Status.ABORTED:
            return
        if self._is_superseded(entry):
            await self._retire(entry, now)
            return
        if self._is_withdrawn(entry):
            await self._halt_withdrawn(entry, now)
            return
        counts = self.count_outcomes(entry, now, self._unrecorded_ends(entry))
        made = advance(entry.rollout, entry.state, counts, now)
        if any(change.kind is Kind.HALTED for change in made):
            await self.stop_manager.halt_automatically(entry, made)
        elif made:
            await self.commit_transitions(entry, made)
        if made and entry.state.status in _CALLED_OFF:
            await self._conclude_attempts(entry, now)
        entry.due = next_due_at(entry.rollout, entry.state, counts, now)

    async def _halt_in_memory(self, entry: RolloutEntry) -> None:
        """Halt a rollout in memory if its gates would halt it; make no other move.

        Used while the database takes nothing: reports that arrive meanwhile count, and so do
        beacons that were silent for too long, although neither can be recorded.
        """
        rollout_id = entry.rollout.plan.rollout_id
        if self.stop_manager.is_pending(rollout_id) or entry.retired:
            return
        now = self.service.clock.now()
        silent = self._find_silent(entry, now)
        assumed = {**silent, **self._unrecorded_ends(entry)}
        made = advance(entry.rollout, entry.state, self.count_outcomes(entry, now, assumed), now)
        if halts := [change for change in made if self._is_own_halt(change)]:
            self._presumed_lost[rollout_id] = set(silent)
            self.stop_manager.stop_in_memory(rollout_id, halts)
            await self.stop_manager.await_stored(rollout_id)

    def _is_own_halt(self, change: Transition) -> bool:
        """Tell whether a change is a halt that this orchestrator may make."""
        return change.kind is Kind.HALTED

    def _drop_if_over(self, entry: RolloutEntry) -> bool:
        """Drop a rollout that is over from memory."""
        rollout_id = entry.rollout.plan.rollout_id
        if entry.open_ids or not (entry.retired or entry.stored.status is Status.ABORTED):
            return False
        if rollout_id in self.service.fleet.rollouts:
            self.service.fleet.drop_rollout(rollout_id)
        return True

    def _check_for_clock_jump(self, now: float) -> None:
        """After a jump of the clock, restart the counting of silence, and the soaks.

        Every process does, whether it leads or not: a process that becomes the leader later
        handles the rollouts that the previous leader had not come to. A scaled clock runs on the
        monotonic clock and cannot jump.
        """
        leap = self.clock_jumps.take_jump()
        if not leap or self.service.clock.scale != 1.0:
            return
        log.warning("the clock has jumped by %.0f s; silence and soaks count from now on", leap)
        self.service.listening_since = now
        self._landed = self.clock_jumps.landed_at if leap > 0 else 0.0

    def count_outcomes(
        self, entry: RolloutEntry, now: float, assumed: Mapping[str, Attempt] | None = None
    ) -> OutcomeCounts:
        """Count a rollout's beacons as they stand; from any thread.

        Args:
            assumed: by id, attempts to count in place of the recorded ones.
        """
        return self._with_fleet(count_outcomes, entry, now, assumed)

    def locate_beacons(self, entry: RolloutEntry, now: float) -> dict[str, tuple[int, int, str]]:
        """Return for each counted beacon, by id, its wave, stage and count; from any thread."""
        return self._with_fleet(locate_beacons, entry, now)

    def _with_fleet(
        self,
        how: Callable[..., T],
        entry: RolloutEntry,
        now: float,
        assumed: Mapping[str, Attempt] | None = None,
    ) -> T:
        view = self.service.fleet
        nodes = view.beacons.copy()  # at once, whatever the event loop does meanwhile
        tries: dict[str, Sequence[Attempt]] = {
            key: tuple(node.attempts) for key, node in nodes.items() if node.attempts
        }
        gone: dict[str, list[Attempt]] = {}  # no longer registered
        for attempt in entry.attempts.copy().values():
            if attempt.beacon_id not in nodes:
                gone.setdefault(attempt.beacon_id, []).append(attempt)
        tries |= gone
        if assumed:
            tries = {
                key: tuple(assumed.get(one.id, one) for one in those)
                for key, those in tries.items()
            }
        return how(
            entry.rollout,
            entry.state,
            [node.beacon for node in nodes.values()],
            tries,
            {key: node.last_seen for key, node in nodes.items() if node.last_seen},
            now,
            release_state=view.releases[entry.rollout.plan.release.firmware_id].state,
            listening_since=self.service.listening_since,
        )

    async def move_rollout(
        self, rollout_id: str, decide: DecideTransitions, tries: int = 1
    ) -> None:
        """Decide about a rollout by hand, and commit it.

        Args:
            decide: returns the transitions for an entry at a time, or refuses.
            tries: how often to decide again when other moves intervene. Only stops are decided
                again: an administrator who resumes a rollout, or opens a stage, has not seen the
                moves made since.

        Raises:
            UsageError: ``rollout_moved``, ``rollout_not_active``; what ``decide`` raises.
            StorageError: ``stop_unstored``: a stop of the rollout must be stored first.
        """
        if self.stop_manager.is_pending(rollout_id) and not await self.stop_manager.await_stored(
            rollout_id
        ):
            raise stop_unstored()
        while True:
            tries -= 1
            async with self.rollout_lock:
                entry = self.service.fleet.rollouts.get(rollout_id)
                if entry is None:
                    raise UsageError("rollout_not_active", "the rollout is over", expected="active")
                if self.stop_manager.is_pending(rollout_id):  # stopped while waiting
                    raise stop_unstored()
                try:
                    await self.commit_transitions(entry, decide(entry, self.service.clock.now()))
                except UsageError as error:
                    if tries <= 0 or error.code != "rollout_moved":
                        raise
                else:
                    await self.evaluate_rollout(entry)
                    return

    def _is_superseded(self, entry: RolloutEntry) -> bool:
        """Tell whether a completed rollout has no beacons left to serve.

        A completed rollout serves late beacons, and beacons to which a newer rollout offers
        nothing. It is superseded once several newer rollouts that select all its beacons are
        complete, too. A rollout that is scheduled, active, paused or halted is never superseded.
        """
        if entry.state.status is not Status.COMPLETED or entry.open_ids:
            return False
        view = self.service.fleet
        newer = 0
        for other in view.rollouts.values():
            if (
                other.created_at > entry.created_at
                and other.state.status is Status.COMPLETED
                and not other.retired
                and view.releases[other.rollout.plan.release.firmware_id].state == "stable"
                and plan_covers(other.rollout.plan, entry.rollout.plan)
            ):
                newer += 1
        return newer >= LIMITS.completed_rollouts

    def _is_withdrawn(self, entry: RolloutEntry) -> bool:
        """Tell whether a rollout waits for beacons that will never get its release."""
        release = self.service.fleet.releases[entry.rollout.plan.release.firmware_id]
        return entry.state.status in _BEGUN and release.row["state"] == "deprecated"

    async def _halt_withdrawn(self, entry: RolloutEntry, now: float) -> None:
        """Halt a rollout whose release was deprecated; it would stay active for nothing."""
        detail = "the release is deprecated"
        change = Transition(now, Kind.HALTED, None, None, "withdrawn", detail)
        await self.stop_manager.halt_automatically(entry, (change,))

    async def _retire(self, entry: RolloutEntry, now: float) -> None:
        """Retire a rollout that has no beacons left to serve; the record keeps it over for good."""
        detail = "newer rollouts serve everybody that it was for"
        await self.commit_transitions(
            entry, (Transition(now, Kind.RETIRED, None, None, "superseded", detail),)
        )
