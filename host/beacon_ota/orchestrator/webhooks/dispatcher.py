"""Dispatches events to webhooks: queues deliveries in the database, tries and repeats them.

The events in the database are the source, and the queue is in the database as well: nothing is
lost with the process. A receiver may get an event twice (with the same id); an event that never
arrives is shown as given up.
"""

import asyncio
import json
import logging
import random
from collections.abc import Callable

from sqlalchemy import Connection

from beacon_ota.orchestrator.clock import format_iso
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.tables import Fields, events, webhooks
from beacon_ota.orchestrator.webhooks.sender import DeliveryOutcome, send_webhook

log = logging.getLogger("beacon_ota.orchestrator")

# Default kinds of a webhook: events that may need a person, and the completion of a rollout.
ALERTS = (
    "rollout.halted",
    "rollout.completed",
    "attempt.lost",
    "attempt.undone",
    "beacon.quarantined",
    "beacon.withheld",
    "mirror.unhealthy",
    "beacon.questioned",
    "beacon.refused",
)
# Seconds after each failure; after the last pause, a day after the event, the delivery is given up.
PAUSES_S = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, 28800)
REST_S = 60.0  # at most, for the other deliveries of a webhook that fails
LEASE_S = 60.0  # seconds that a claimed delivery is not claimed again
_JITTER = 0.1  # share of a pause, added or subtracted at random
_MIN_PAUSE_S = 0.5  # real seconds between two rounds
_POLL_INTERVAL_S = 30.0  # real seconds, when nothing wakes the dispatcher
_BATCH = 500


class WebhookDispatcher:
    """The background task that finds new events and delivers them.

    Args:
        sender: makes one try (``sender.send_webhook``).
    """

    def __init__(self, service: Service, sender: Callable = send_webhook):
        self.service = service
        self._send = sender
        self._wake_event = asyncio.Event()
        self._hooks: list[Fields] = []
        self._seen = 0  # events up to this id are queued
        self._busy: set[str] = set()  # ids of webhooks with a try under way
        self._delivery_tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to dispatch."""
        self.service.hub.on_stored = self.wake
        self.reload(self.service.db.read_now(webhooks.list_all))
        self.service.run_in_background(self._run())

    def reload(self, hooks: list[Fields]) -> None:
        """Take over the webhooks as they are in the database now."""
        self._hooks = [hook for hook in hooks if hook["disabled_at"] is None]
        self._seen = min((hook["seen"] for hook in self._hooks), default=0)
        self._wake_event.set()

    def refresh(self) -> None:
        """Read the webhooks again, after another process has changed them or has led."""
        self.reload(self.service.db.read_now(webhooks.list_all))

    def wake(self) -> None:
        """Look for new events soon."""
        self._wake_event.set()

    async def _run(self) -> None:
        try:
            await self._dispatch_loop()
        finally:
            for task in self._delivery_tasks:
                task.cancel()

    async def _dispatch_loop(self) -> None:
        clock = self.service.clock
        while True:
            self._wake_event.clear()
            pause = _POLL_INTERVAL_S
            try:
                if self._hooks and self.service.is_leader:
                    await self._enqueue_new_events()
                    for webhook_id, due in await self.service.db.read(
                        webhooks.next_due, clock.now(), self._lease_times(), REST_S
                    ):
                        wait = clock.real_seconds(max(due - clock.now(), 0.0))
                        if wait > 0:
                            pause = min(pause, wait)
                        elif webhook_id not in self._busy:
                            self._start_delivery(webhook_id)
            except Exception:
                log.exception("webhooks could not be looked after")
            await asyncio.sleep(_MIN_PAUSE_S)
            try:
                async with asyncio.timeout(max(pause - _MIN_PAUSE_S, 0.0)):
                    await self._wake_event.wait()
            except TimeoutError:
                pass

    async def _enqueue_new_events(self) -> None:
        """Queue a delivery for each new event and each webhook that it matches."""
        while rows := await self.service.db.read(events.list_after, self._seen, _BATCH):
            found = {
                hook["id"]: [
                    (row["id"], row["kind"], render_event(row))
                    for row in rows
                    if row["id"] > hook["seen"] and matches_kind(hook["kinds"], row["kind"])
                ]
                for hook in self._hooks
            }
            last = rows[-1]["id"]
            if any(found.values()):
                now = self.service.clock.now()
                await self.service.db.write(webhooks.enqueue, now, found, last)
            self._seen = last

    def _lease_times(self) -> list[float]:
        """Return by number of tries for how long a delivery may wait, in seconds of the clock."""
        lease_s = LEASE_S * self.service.clock.scale
        return [lease_s, *(max(lease_s, pause * (1 + _JITTER)) for pause in PAUSES_S)]

    # ---- one delivery ----

    def _start_delivery(self, webhook_id: str) -> None:
        self._busy.add(webhook_id)
        task = asyncio.create_task(self._deliver_due(webhook_id))
        self._delivery_tasks.add(task)
        task.add_done_callback(self._delivery_tasks.discard)

    async def _deliver_due(self, webhook_id: str) -> None:
        """Try the due deliveries of one webhook in order, until none is left or a try fails."""
        try:
            while await self._try_next(webhook_id):
                pass
        except Exception:
            log.exception("a webhook could not be delivered: %s", webhook_id)
        finally:
            self._busy.discard(webhook_id)
            self._wake_event.set()

    async def _try_next(self, webhook_id: str) -> bool:
        service = self.service
        now = service.clock.now()
        waits = self._lease_times()
        lease_s = waits[0]

        def claim_delivery(conn: Connection) -> tuple[Fields, Fields] | None:
            hook = webhooks.get(conn, webhook_id)
            if hook is None or hook["disabled_at"] is not None:
                return None
            row = webhooks.claim_delivery(conn, webhook_id, now, lease_s, waits)
            return None if row is None else (hook, row)

        claimed = await service.db.write(claim_delivery)
        if claimed is None:
            return False
        hook, row = claimed
        outcome = await self._send(
            hook["url"],
            hook["secret"],
            row["id"],
            int(now),
            row["body"],
            local=service.settings.webhook_local,
        )
        await self._record_outcome(hook, row, outcome)
        return outcome.ok

    async def _record_outcome(self, hook: Fields, row: Fields, outcome: DeliveryOutcome) -> None:
        now = self.service.clock.now()
        tries = row["tries"] + 1
        pause = (
            None
            if tries > len(PAUSES_S)
            else PAUSES_S[tries - 1] * random.uniform(1 - _JITTER, 1 + _JITTER)
        )
        over = outcome.ok or outcome.gone or pause is None
        state = webhooks.DELIVERED if outcome.ok else webhooks.GIVEN_UP
        published: list[Fields] = []

        def write_outcome(conn: Connection) -> list[Fields]:
            published.clear()
            settled = webhooks.update_delivery(
                conn,
                row["id"],
                tries=tries,
                status=outcome.status,
                error=outcome.error,
                took_ms=outcome.took_ms,
                state=state if over else webhooks.PENDING,
                next_at=None if over else now + (pause or 0.0),
                ended_at=now if over else None,
            )
            if settled is None:
                return webhooks.list_all(conn)
            values: Fields = {"failing_since": None, "rests_until": None}
            current = webhooks.get(conn, hook["id"])
            if not outcome.ok:
                values = {
                    "failing_since": (current and current["failing_since"]) or now,
                    "rests_until": now + min(REST_S, pause or REST_S),
                }
            if outcome.gone:
                values["disabled_at"] = now
            webhooks.update_columns(conn, hook["id"], **values)
            for kind, true in (("given_up", over and not outcome.ok), ("disabled", outcome.gone)):
                if true:
                    data = {"kind": row["kind"], "reason": outcome.error, "tries": tries}
                    published.append(events.add(conn, now, f"webhook.{kind}", hook["name"], data))
            return webhooks.list_all(conn)

        def publish_outcome(hooks: list[Fields]) -> None:
            if outcome.gone:
                self.reload(hooks)
            for one in published:
                self.service.hub.publish(one)

        await self.service.db.write(write_outcome, then=publish_outcome)


def matches_kind(kinds: list[str], kind: str) -> bool:
    """Tell whether a webhook with these kinds gets events of a kind.

    A kind ending in ``.`` is a group, ``*`` all events. Events about webhooks match none: a failing
    delivery would create others.
    """
    return not kind.startswith("webhook.") and any(
        kind == one or one == "*" or (one.endswith(".") and kind.startswith(one)) for one in kinds
    )


def render_event(event: Fields) -> str:
    """Return the JSON body of a delivery."""
    data = {"id": event["id"], "subject": event["subject"], **event["data"]}
    document = {"type": event["kind"], "timestamp": format_iso(event["at"]), "data": data}
    return json.dumps(document, separators=(",", ":"))
