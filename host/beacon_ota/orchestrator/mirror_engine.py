"""The engine of a mirror: it may halt a rollout for its own beacons, and moves none forward."""

import asyncio
import logging

from sqlalchemy import Connection

from beacon_ota.orchestrator.engine import Engine, dump_state
from beacon_ota.orchestrator.rollout.advance import advance, apply, due
from beacon_ota.orchestrator.rollout.types import Kind, Status, Transition
from beacon_ota.orchestrator.store import Fields, audit, events, outbox, rollouts
from beacon_ota.orchestrator.view import Entry

log = logging.getLogger("beacon_ota.orchestrator")

_FAILURES = ("failures_in_a_row", "failure_share")


class LocalEngine(Engine):
    """The engine of a mirror: settles the attempts of its own beacons, and may stop, not go on."""

    async def _step(self, entry: Entry) -> None:
        now = self.service.clock.now()
        self._mind_the_clock(now)
        if entry.open_ids:
            await self._settle(entry, now)
        if self._put_away(entry) or entry.state.status is Status.ABORTED:
            return
        counts = self.count(entry, now)
        for change in advance(entry.rollout, entry.state, counts, now):
            if change.kind is Kind.HALTED and change.reason in _FAILURES:
                await self._halt(entry, change)
                await self._settle(entry, now)
                break
        # What the primary would do is no reason to look: only what comes of silence.
        entry.due = due(entry.rollout, entry.state, counts, now)
        if entry.due is not None and entry.due <= now:
            entry.due = None

    async def _halt(self, entry: Entry, change: Transition) -> None:
        """Halt a rollout here; its revision stays the primary's (UsageError ``rollout_moved``)."""
        rollout_id = entry.rollout.plan.rollout_id
        revision, basis = entry.revision, self.service.view.basis(entry)
        state = apply(entry.state, change)
        why = f"{change.reason}: {change.detail}"
        told: list[Fields] = []

        def work(conn: Connection) -> bool:
            told.clear()
            if rollouts.basis(conn, rollout_id) != basis:
                return False
            values = {
                "status": state.status.value,
                "state": dump_state(state),
                "reason": state.reason,
            }
            outbox.halt(conn, rollout_id, why, values)
            audit.add(conn, change.at, "mirror", "mirror.halted", rollout_id, why)
            told.append(events.add(conn, change.at, "mirror.halted", rollout_id, {"reason": why}))
            return True

        def after(halted: bool) -> None:
            if halted:
                self._put(rollout_id, state, revision, same=True)
            for one in told:
                self.service.hub.publish(one)

        if not await asyncio.shield(self.service.db.write(work, then=after)):
            raise self._moved(entry)
        log.warning("rollout %s is halted here: %s", rollout_id, why)
