"""The rollout engine: concludes attempts, counts outcomes, and moves rollouts by their gates.

Every move is decided by the pure functions of ``rollout`` and committed as one transaction with
its transitions, its audit entries and its events, from the revision that it was decided upon, so
that two processes never both make the same move. Conclusions about attempts work alike.

1. The decision and the state that it is based on are taken from the view, on the event loop.
2. The transaction compares that with what is committed, and does nothing when it has changed.
3. Then the rollout is read again (``rollout_moved``), and decided about anew.
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.clock import ClockJumpDetector
from beacon_ota.orchestrator.core.attempts import record_outcome_event
from beacon_ota.orchestrator.core.fleet_state import RolloutEntry, attempt_from_row, progress_of
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.core.stop_manager import DecideTransitions, StopManager, stop_unstored
from beacon_ota.orchestrator.db.database import StorageError
from beacon_ota.orchestrator.db.tables import (
    Fields,
    attempts,
    audit,
    events,
    firmwares,
    former_beacons,
    mirror_books,
    rollouts,
)
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.rollout import decide
from beacon_ota.orchestrator.rollout import roaming
from beacon_ota.orchestrator.rollout import stopping
from beacon_ota.orchestrator.rollout.advance import (
    advance,
    apply_transition,
    next_due_at,
    restart_soaks,
)
from beacon_ota.orchestrator.rollout.gates import count_outcomes, locate_beacons
from beacon_ota.orchestrator.rollout.plans import parse_plan
from beacon_ota.orchestrator.rollout.rules import Rollout, plan_covers
from beacon_ota.orchestrator.rollout.types import (
    Attempt,
    Kind,
    OutcomeCounts,
    Result,
    RolloutState,
    Status,
    Transition,
    WaveState,
)

T = TypeVar("T")
log = logging.getLogger("beacon_ota.orchestrator")

EVALUATION_INTERVAL_S = 30.0  # beacons come and go without anybody telling the engine
AGAIN_S = 1.0  # of the wall clock, until a change that the database refused is tried again
MIN_ROUND_PAUSE_S = 0.2  # minimum pause between two evaluation rounds, in real (unscaled) seconds
_CALLED_OFF = (Status.HALTED, Status.ABORTED)
_LAST = (Kind.ABORTED, Kind.RETIRED)
_BEGUN = (Status.SCHEDULED, Status.ACTIVE, Status.PAUSED)
_SERVING = (Status.SCHEDULED, Status.ACTIVE, Status.COMPLETED)
_REMOVED = "the beacon was removed"
_OTHER_BOARD = "its beacon is another board"


class Engine:
    """The background task over a service's rollouts."""

    def __init__(self, service: Service):
        self.service = service
        self._wake = asyncio.Event()
        self.clock_jumps = ClockJumpDetector()
        self._landed = 0.0  # UTC after the last leap ahead; soaks that are older begin anew
        self._failed = ""  # why the database last refused a move
        self.rollout_lock = asyncio.Lock()  # from looking at a rollout to committing what follows
        self.stop_manager = StopManager(self)
        self._even: Sequence[tuple[str, float]] = ()  # how far mirrors had told, as read last
        self._presumed: dict[str, set[str]] = {}  # attempts that a halt in memory took for lost

    def start(self) -> None:
        """Load the rollouts and begin to watch them."""
        self.service.db.read_now(self._load)
        self._even = self.service.db.read_now(mirror_books.read_sync_times)
        self.service.fleet.on_change = self._wake.set
        self.stop_manager.start()
        if self.service.restored:
            self._hold_restored()
        self.service.run_in_background(self._watch())

    def _hold_restored(self) -> None:
        """Pause what a database from a backup hands out: it does not know what was halted since.

        In memory at once, before anybody is answered; what is committed follows.
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

    def wake(self) -> None:
        """Look again soon: something has changed."""
        self._wake.set()

    # ---- the loop ----

    async def _watch(self) -> None:
        clock = self.service.clock
        while True:
            self._wake.clear()
            again_at = clock.now() + EVALUATION_INTERVAL_S
            self._mind_the_clock(clock.now())
            for entry in list(self.service.fleet.rollouts.values()):
                began = time.monotonic()
                if not (self.service.is_leader or self.service.cut_off):
                    self._put_away(entry)
                    continue
                try:
                    async with self.rollout_lock:
                        if self.service.is_leader:
                            await self.evaluate_rollout(entry)
                        else:
                            await self._stop_alone(entry)
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
                raise  # else another process has done it

    async def _evaluate_rollout(self, entry: RolloutEntry) -> None:
        now = self.service.clock.now()
        self._mind_the_clock(now)
        if self.stop_manager.is_pending(entry.rollout.plan.rollout_id):
            return  # nothing is built upon what is not committed; it is stored by itself
        try:
            if made := restart_soaks(entry.state, now, self._landed):
                await self.commit_transitions(entry, made)
            if entry.open_ids:
                await self._settle(entry, now)
        except StorageError:
            await self._stop_alone(entry)  # what would stop it does not wait for the database
            raise
        if self._put_away(entry) or entry.retired or entry.state.status is Status.ABORTED:
            return
        if self._is_superseded(entry):
            await self._retire(entry, now)
            return
        if self._is_withdrawn(entry):
            await self._halt_withdrawn(entry, now)
            return
        counts = self.count_outcomes(entry, now, self._unrecorded(entry))
        made = advance(entry.rollout, entry.state, counts, now)
        if any(change.kind is Kind.HALTED for change in made):
            await self.stop_manager.halt_automatically(entry, made)
        elif made:
            await self.commit_transitions(entry, made)
        if made and entry.state.status in _CALLED_OFF:
            await self._settle(entry, now)
        entry.due = next_due_at(entry.rollout, entry.state, counts, now)

    async def _stop_alone(self, entry: RolloutEntry) -> None:
        """Halt in memory what the gates would halt, by what is known here; nothing else moves.

        For the time when the database takes nothing: what beacons reported meanwhile counts, and
        who was silent for too long, although neither can be recorded.
        """
        rollout_id = entry.rollout.plan.rollout_id
        if self.stop_manager.is_pending(rollout_id) or entry.retired:
            return
        now = self.service.clock.now()
        silent = self._silent(entry, now)
        assumed = {**silent, **self._unrecorded(entry)}
        made = advance(entry.rollout, entry.state, self.count_outcomes(entry, now, assumed), now)
        if halts := [change for change in made if self._halts(change)]:
            self._presumed[rollout_id] = set(silent)
            self.stop_manager.stop_in_memory(rollout_id, halts)
            await self.stop_manager.await_stored(rollout_id)

    def _halts(self, change: Transition) -> bool:
        """Tell whether a change is a halt that is ours to make."""
        return change.kind is Kind.HALTED

    def _unrecorded(self, entry: RolloutEntry) -> dict[str, Attempt]:
        """Return what open attempts came to that the database has not taken, by attempt id."""
        now = self.service.clock.now()
        return {
            key: dataclasses.replace(attempt, result=result, ended_at=now)
            for key, result in self.service.attempts.unrecorded.items()
            if key in entry.open_ids
            and (attempt := self.service.fleet.open_attempts.get(key)) is not None
        }

    def _silent(self, entry: RolloutEntry, now: float) -> dict[str, Attempt]:
        """Return the attempts of beacons that were not heard at all for the gate's silence."""
        view, since = self.service.fleet, self.service.listening_since
        mine = [one for key in entry.open_ids if not (one := view.open_attempts[key]).is_remote]
        found = {}
        lost = decide.lost_attempts(entry.rollout, mine, now, listening_since=since)
        for attempt in self._unheard(entry, lost, now) if lost else ():
            node = view.beacons.get(attempt.beacon_id)
            silence = entry.rollout.gates[attempt.wave].report_timeout_s
            if node is not None and now - (node.last_seen or 0.0) >= silence:
                found[attempt.id] = dataclasses.replace(attempt, result=Result.LOST, ended_at=now)
        return found

    def _put_away(self, entry: RolloutEntry) -> bool:
        """Let go of a rollout that is over."""
        rollout_id = entry.rollout.plan.rollout_id
        if entry.open_ids or not (entry.retired or entry.stored.status is Status.ABORTED):
            return False
        if rollout_id in self.service.fleet.rollouts:
            self.service.fleet.drop_rollout(rollout_id)
        return True

    def _mind_the_clock(self, now: float) -> None:
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
            assumed: attempts as they are to be taken instead, by id.
        """
        return self._look(count_outcomes, entry, now, assumed)

    def locate_beacons(self, entry: RolloutEntry, now: float) -> dict[str, tuple[int, int, str]]:
        """Return who is behind the counts, by beacon id: wave, stage, count; from any thread."""
        return self._look(locate_beacons, entry, now)

    def _look(
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

    async def _settle(self, entry: RolloutEntry, now: float) -> None:
        """End the attempts that are called off, silent for too long, or never taken."""
        view = self.service.fleet
        mine = [one for key in entry.open_ids if not (one := view.open_attempts[key]).is_remote]
        release = view.releases[entry.rollout.plan.release.firmware_id]
        ends: dict[str, _End] = {}
        since = self.service.listening_since
        for attempt in decide.expired_attempts(entry.rollout, mine, now, listening_since=since):
            ends[attempt.id] = _End(Result.EXPIRED, progress_of(attempt))
        silent = decide.lost_attempts(entry.rollout, mine, now, listening_since=since)
        for attempt in self._unheard(entry, silent, now) if silent else ():
            node = view.beacons.get(attempt.beacon_id)
            others = () if node is None else node.attempts
            if roaming.moved_on(roaming.row_of(attempt), map(roaming.row_of, others), now):
                ends[attempt.id] = _End(
                    Result.STOPPED, progress_of(attempt), roaming.DETAIL_MOVED_ON
                )
                continue
            # The report got lost, the beacon did not: it has polled from the new image since.
            runs = (
                node is not None
                and not node.beacon.on_trial
                and node.beacon.image == release.row["checksum"]
                and node.beacon.version_at > (attempt.taken_at or now)
            )
            result, detail = (
                (Result.SUCCESS, roaming.DETAIL_RUNNING) if runs else (Result.LOST, None)
            )
            ends[attempt.id] = _End(result, progress_of(attempt), detail)
        called_off = entry.state.status in _CALLED_OFF
        # Attempts on which a halt in memory was based keep the result assumed then: a silent beacon
        # is lost, and one whose failure was not stored reports it again.
        rollout_id = entry.rollout.plan.rollout_id
        presumed = self._presumed.get(rollout_id)
        gone = presumed & self._silent(entry, now).keys() if presumed else ()
        for attempt in decide.revocable_attempts(mine):
            if attempt.id in self.service.attempts.unrecorded or (
                attempt.id in ends and attempt.id in gone
            ):
                continue
            node = view.beacons.get(attempt.beacon_id)
            if called_off or (node and decide.is_blocked_from(release.state, node.beacon)):
                ends[attempt.id] = _End(Result.STOPPED, progress_of(attempt))
        for attempt in mine:
            node = view.beacons.get(attempt.beacon_id)
            if node is None:  # nobody will hear from it
                ends[attempt.id] = _End(Result.STOPPED, progress_of(attempt), _REMOVED)
            elif attempt.rebooting_at is None and decide.is_other_board(
                node.beacon, release.row["device_type"]
            ):
                ends[attempt.id] = _End(Result.STOPPED, progress_of(attempt), _OTHER_BOARD)
        if ends:
            await self._end(entry, ends, now)
        if not self.stop_manager.is_pending(rollout_id):
            self._presumed.pop(rollout_id, None)

    def _unheard(self, entry: RolloutEntry, silent: list[Attempt], now: float) -> list[Attempt]:
        """Return the silent attempts about which no mirror can still have news that it has not sent.

        A beacon may have gone on at its site's mirror while that is cut off. It is waited for as
        long as a stage waits for anybody.
        """
        with contextlib.suppress(StorageError):  # nor can a mirror tell anything meanwhile
            self._even = self.service.db.read_now(mirror_books.read_sync_times)
        even = self._even
        found = []
        for attempt in silent:
            gate = entry.rollout.gates[attempt.wave]
            began = attempt.taken_at or now
            node = self.service.fleet.beacons.get(attempt.beacon_id)
            site = "" if node is None else node.beacon.site
            until = min(began + gate.report_timeout_s, now)
            if now >= began + gate.stage_timeout_s or all(
                even_at >= until
                for where, even_at in even
                if former_beacons.site_covers(where, site)
            ):
                found.append(attempt)
        return found

    async def _end(self, entry: RolloutEntry, ends: "dict[str, _End]", now: float) -> None:
        """Record what was concluded just now.

        Raises:
            UsageError: ``rollout_moved``.
        """
        rollout_id = entry.rollout.plan.rollout_id
        version = entry.rollout.plan.release.version
        basis = self.service.fleet.basis_of(entry)
        told: list[Fields] = []

        def work(conn: Connection) -> list[Fields] | None:
            told.clear()
            if rollouts.read_basis(conn, rollout_id) != basis:
                return None
            rows = []
            for attempt_id, (result, upon, detail) in ends.items():
                settled, row = attempts.conclude(
                    conn, attempt_id, now, str(result), progress=upon, detail=detail
                )
                if row is not None:
                    rows.append(row)
                    if settled and result is not Result.EXPIRED:
                        told.append(record_outcome_event(conn, now, row, version))
            return rows

        def after(rows: list[Fields] | None) -> None:
            for row in rows or ():
                self.service.attempts.apply_row(row)
            for one in told:
                self.service.hub.publish(one)

        if await self.service.db.write(work, then=after) is None:
            raise self._moved(entry)

    # ---- moves ----

    def commit_transitions(
        self, entry: RolloutEntry, made: Sequence[Transition]
    ) -> Awaitable[None]:
        """Record transitions and apply them; the caller holds ``rollout_lock``.

        Args:
            entry: the one on which ``made`` was decided; nothing was awaited since.

        Raises:
            UsageError: ``rollout_moved``: it was moved by somebody else meanwhile.
        """
        return self._commit_transitions(entry, entry.stored, entry.revision, made)

    async def _commit_transitions(
        self, entry: RolloutEntry, state: RolloutState, revision: int, made: Sequence[Transition]
    ) -> None:
        rollout_id = entry.rollout.plan.rollout_id
        for change in made:
            state = apply_transition(state, change)
        told: list[Fields] = []

        def work(conn: Connection) -> bool:
            told.clear()
            moved = rollouts.update_if_unmoved(
                conn,
                rollout_id,
                revision,
                {
                    "status": state.status.value,
                    "state": dump_state(state),
                    "reason": state.reason,
                    "ended_at": made[-1].at if made and made[-1].kind in _LAST else None,
                },
            )
            if not moved:
                return False
            rollouts.add_transitions(conn, [_row(rollout_id, change) for change in made])
            for change in made:
                told.append(_trace(conn, rollout_id, change))
            return True

        def after(moved: bool) -> None:
            if moved:
                self._put(rollout_id, state, revision + 1)
                if made and made[-1].kind is Kind.RETIRED:
                    self.service.fleet.retire_rollout(rollout_id)
                for one in told:
                    self.service.hub.publish(one)

        if not await asyncio.shield(self.service.db.write(work, then=after)):
            raise self._moved(entry)
        self.wake()

    async def move_rollout(
        self, rollout_id: str, decide: DecideTransitions, tries: int = 1
    ) -> None:
        """Decide about a rollout by hand, and commit it.

        Args:
            decide: returns the transitions for an entry at a time, or refuses.
            tries: how often to decide when others keep moving it. Only what stops a rollout is
                decided again: who resumes it, or opens a stage, has not seen what was done since.

        Raises:
            UsageError: ``rollout_moved``, ``rollout_not_active``; what ``decide`` raises.
            StorageError: ``stop_unstored``: it was stopped, and that is to be stored first.
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
                if self.stop_manager.is_pending(rollout_id):  # since we waited
                    raise stop_unstored()
                try:
                    await self.commit_transitions(entry, decide(entry, self.service.clock.now()))
                except UsageError as error:
                    if tries <= 0 or error.code != "rollout_moved":
                        raise
                else:
                    await self.evaluate_rollout(entry)
                    return

    def stop_writer(
        self, rollout_id: str, changes: Sequence[Transition]
    ) -> tuple[Callable[[Connection], Any], Callable[[Any], None]]:
        """Return what stores stops over whatever is committed, and what takes its result."""

        def work(conn: Connection) -> tuple[Fields | None, list[Fields]]:
            row = rollouts.get(conn, rollout_id)
            if row is None or row["ended_at"] is not None:
                return row, []
            state = load_state(row["state"])
            made = stopping.missing_stops(state, changes)
            if not made:
                return row, []
            state = stopping.apply_stops(state, changes)
            row |= {
                "status": state.status.value,
                "state": dump_state(state),
                "reason": state.reason,
                "ended_at": made[-1].at if made[-1].kind in _LAST else None,
            }
            names = ("status", "state", "reason", "ended_at")
            values = {name: row[name] for name in names}
            rollouts.update_if_unmoved(conn, rollout_id, row["revision"], values)
            rollouts.add_transitions(conn, [_row(rollout_id, change) for change in made])
            row["revision"] += 1
            return row, [_trace(conn, rollout_id, change) for change in made]

        return work, self._put_stopped

    def _put_stopped(self, done: tuple[Fields | None, list[Fields]]) -> None:
        row, told = done
        if row is not None:
            self._put(row["id"], load_state(row["state"]), row["revision"])
        for one in told:
            self.service.hub.publish(one)

    def _moved(self, entry: RolloutEntry) -> UsageError:
        """Read a rollout again that somebody else has moved; return what says so."""
        self.service.db.read_now(self._reload, entry)
        self.wake()
        return rollout_moved()

    async def create_rollout(
        self, row: Fields, rollout: Rollout, state: RolloutState, actor: str
    ) -> RolloutEntry:
        """Store a rollout and begin to watch it."""
        view = self.service.fleet
        before: list[Any] = []  # what came of this release in rollouts that are over
        if not view.has_rollout_of(row["firmware_id"]):
            before = await self.service.db.read(attempts.list_for_releases, [row["firmware_id"]])

        made: list[RolloutEntry] = []

        def put(stored: Fields) -> None:
            made.append(view.put_rollout(rollout, state, 0, stored["created_at"]))
            for attempt in before:
                view.put_attempt(attempt_from_row(attempt._mapping))

        await self.service.change_audited(
            actor,
            "rollout.created",
            row["id"],
            _add,
            row,
            then=put,
            detail={"firmware": row["firmware_id"], "name": row["name"]},
        )
        self.wake()
        return made[0]

    # ---- memory ----

    def apply_row(self, row: Fields) -> None:
        """Take a rollout's row as another process has left it."""
        view = self.service.fleet
        state = load_state(row["state"])
        entry = view.rollouts.get(row["id"])
        if entry is not None:
            self._put(row["id"], state, row["revision"])
            if row["ended_at"] is not None and row["revision"] >= entry.revision:
                view.retire_rollout(row["id"])
        elif state.status is not Status.ABORTED and row["ended_at"] is None:
            before: list[Any] = []
            if not view.has_rollout_of(row["firmware_id"]):
                before = self.service.db.read_now(attempts.list_for_releases, [row["firmware_id"]])
            rollout = Rollout(parse_plan(json.loads(row["plan"])))
            view.put_rollout(rollout, state, row["revision"], row["created_at"])
            for attempt in before:
                view.put_attempt(attempt_from_row(attempt._mapping))

    def reload_rollouts(self) -> None:
        """Read all rollouts and their attempts again."""
        unwritten = self.service.fleet.drop_rollouts()
        self.service.db.read_now(self._load)
        for attempt in unwritten:
            if attempt.id not in self.service.fleet.open_attempts:
                self.service.fleet.put_attempt(attempt)

    def _load(self, conn: Connection) -> None:
        view = self.service.fleet
        for row in rollouts.list_under_way(conn):
            rollout = Rollout(parse_plan(json.loads(row["plan"])))
            state = load_state(row["state"])
            entry = view.put_rollout(rollout, state, row["revision"], row["created_at"])
            entry.retired = row["ended_at"] is not None
        used = {entry.rollout.plan.release.firmware_id for entry in view.rollouts.values()}
        for attempt in attempts.list_for_releases(conn, list(used)):
            view.put_attempt(attempt_from_row(attempt._mapping))

    def _reload(self, conn: Connection, entry: RolloutEntry) -> None:
        row = rollouts.get(conn, entry.rollout.plan.rollout_id)
        assert row is not None
        state = load_state(row["state"])
        self._put(row["id"], state, row["revision"], same=True)
        firmware = firmwares.get(conn, row["firmware_id"])
        if firmware is not None:
            self.service.fleet.put_release(firmware)

    def _put(self, rollout_id: str, state: RolloutState, revision: int, same: bool = False) -> None:
        """Update a rollout in memory from the database, never to an older revision.

        Args:
            same: also to the revision that it has: a mirror's own halt leaves that as it is.
        """
        entry = self.service.fleet.rollouts.get(rollout_id)
        if entry is not None and revision + same > entry.revision:
            self.service.fleet.put_rollout(entry.rollout, state, revision, entry.created_at)

    def _is_superseded(self, entry: RolloutEntry) -> bool:
        """Tell whether a completed rollout has nobody left to serve.

        A completed rollout serves those who come late, and those for whom a newer one stands aside.
        Once several newer ones are complete, too, and are for everybody that it was for, it would
        stay for nothing. Whatever is scheduled, active, paused or halted stays.
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
        """Let go of a rollout that has nobody left to serve: recorded, so that it stays over."""
        detail = "newer rollouts serve everybody that it was for"
        await self.commit_transitions(
            entry, (Transition(now, Kind.RETIRED, None, None, "superseded", detail),)
        )


class _End(NamedTuple):
    """What is concluded of an attempt."""

    result: Result
    upon: attempts.Progress
    detail: str | None = None


def _add(conn: Connection, row: Fields) -> Fields:
    """Store a rollout, and return its row.

    Raises:
        UsageError: ``firmware_state``, and those of ``rollouts.add``.
    """
    firmware = firmwares.get(conn, row["firmware_id"])
    if firmware is None or firmwares.effective_state(firmware) == "deprecated":
        raise release_withdrawn(None if firmware is None else firmware["state"])
    return rollouts.add(conn, row)


def rollout_moved() -> UsageError:
    """Return the refusal to move a rollout that is not as it was when somebody decided so."""
    return UsageError(
        "rollout_moved", "the rollout has just been moved by somebody else; look again"
    )


def release_withdrawn(state: str | None) -> UsageError:
    """Return the refusal to roll out a release that was withdrawn."""
    return UsageError(
        "firmware_state",
        "a release that was withdrawn cannot be rolled out",
        found=state,
        expected=["testing", "stable"],
    )


def dump_state(state: RolloutState) -> str:
    """Return a state as JSON."""
    return json.dumps(dataclasses.asdict(state))


def load_state(text: str) -> RolloutState:
    """Return a state from JSON."""
    fields = json.loads(text)
    fields["waves"] = tuple(WaveState(**wave) for wave in fields["waves"])
    fields["status"] = Status(fields["status"])
    return RolloutState(**fields)


def _row(rollout_id: str, change: Transition) -> Fields:
    return {
        "rollout_id": rollout_id,
        "at": change.at,
        "kind": change.kind.value,
        "wave": change.wave,
        "stage": change.stage,
        "reason": change.reason,
        "detail": change.detail,
        "actor": change.by,
    }


def _trace(conn: Connection, rollout_id: str, change: Transition) -> Fields:
    """Record a transition in the audit log and among the events; return the event."""
    kind = f"rollout.{change.kind.value}"
    data = {
        name: value
        for name, value in (("wave", change.wave), ("stage", change.stage))
        if value is not None
    }
    reason = ": ".join(filter(None, (change.reason, change.detail)))
    audit.append(conn, change.at, change.by, kind, rollout_id, reason, data)
    told = {"by": change.by, "reason": change.reason, "detail": change.detail, **data}
    return events.add(conn, change.at, kind, rollout_id, told)
