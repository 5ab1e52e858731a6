"""``serve --upstream URL``: a mirror, the orchestrator on a site's LAN.

A mirror has a database of its own, and serves the beacons of its site by the same code as the
primary, within the stages that the primary has opened. A mirror opens no stages, but it can halt a
rollout: when failures among its own beacons trip a gate, it withholds the release at once, and the
primary halts the rollout everywhere as soon as it receives the halt. The mirror sends each change
to the primary once and in order. While the uplink is down, the changes wait in the database, also
through restarts.
"""

import asyncio
import json
import logging
from typing import Any

from sqlalchemy import Connection

from beacon_ota import __version__
from beacon_ota.client import Client
from beacon_ota.errors import BeaconOtaError, DeniedError, InputError, ReachError, UsageError
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.connection import StorageError
from beacon_ota.orchestrator.db.tables import (
    Fields,
    changes,
    outbox,
)
from beacon_ota.orchestrator.db.tables.mirror_watch import SKEW_S
from beacon_ota.orchestrator.lease import Lease
from beacon_ota.orchestrator.mirror import state as mirror_state
from beacon_ota.orchestrator.mirror.engine import MirrorEngine
from beacon_ota.orchestrator.mirror.given import GivenState
from beacon_ota.orchestrator.mirror.images import Images

log = logging.getLogger("beacon_ota.orchestrator")

SYNC_S = 2.0  # between two exchanges with the primary, in real (unscaled) seconds
_TIMEOUT_S = (5.0, 30.0)
_ITEMS = 500
_BYTES = 128 * 1024  # limit of an exchange's changes; the primary takes twice that
_LEASE = "mirror.lease"  # the setting that stores the lease
_NEVER = ("token_wrong", "not_a_mirror")  # the primary does not know this mirror any more
_VAIN = ("unreachable", "mirror_protocol")  # errors that do not depend on the changes sent


class Mirror:
    """The exchange with the primary, in the background.

    Attributes:
        error: code of the exchange's failure, None while it works; ``why`` is the message.
        skew_s: this clock's lead over the primary's; 0 while it is less than the uplink's delay.
    """

    def __init__(self, service: Service, engine: MirrorEngine):
        self.service, self.engine = service, engine
        self.address = ""  # where this mirror listens
        given = service.settings
        upstream = (given.upstream, given.upstream_token, given.upstream_ca, _TIMEOUT_S)
        self._client = Client(*upstream)
        self.images = Images(service, Client(*upstream))
        self.images.on_fetched = self.wake
        self.lease: Lease = service.lease or Lease(given.lease_s, service.clock)
        self._epoch = ""
        self._have = ""
        self._news = True  # send a mark even without changes: a primary restored later lacks it
        self.given = GivenState(service, engine, self.images)
        self._wake = asyncio.Event()
        self.error: str | None = None
        self.why = ""
        self.failing_since: float | None = None
        self.skew_s: float | None = None
        self._over = False  # whether the log says that the lease is over
        self.contact: float | None = None  # time of the last exchange that worked
        self.told_at: float | None = None  # when no change was left to send
        self.backlog = 0

    def start(self) -> None:
        """Begin; the service runs."""
        self.service.db.read_now(self._load)
        if self.contact is not None:
            self._say_the_lease()
        self.images.start()
        self.service.run_in_background(self._going())

    def _load(self, conn: Connection) -> None:
        self.lease.restore(changes.get_setting(conn, _LEASE))
        self.given.moves = outbox.get_moves(conn)
        self.contact = self.lease.contact

    def wake(self) -> None:
        """Begin the next exchange at once."""
        self._wake.set()

    @property
    def hands_out(self) -> bool:
        """Whether new attempts are offered."""
        return not self.lease.is_over()

    def lag_s(self) -> float | None:
        """Return for how long changes have waited to be sent; None before all were sent once."""
        if self.told_at is None:
            return None
        return self.service.clock.now() - self.told_at if self.backlog else 0.0

    def trouble(self) -> tuple[str, str] | None:
        """Return the present problem as a code and a sentence; None when there is none."""
        if self.error is not None:
            return self.error, self.why
        return self._lasting()

    def _lasting(self) -> tuple[str, str] | None:
        """Return a problem other than a failure of the exchange; None when there is none."""
        if self.given.fault:
            return "state_unread", self.given.fault
        for firmware_id, error in list(self.images.faults.items()):
            return error.code, f"release {firmware_id} is not here: {error}"
        if self.skew_s is not None and abs(self.skew_s) >= SKEW_S:
            return "clock_skew", f"this clock is {self.skew_s:+.0f} s off the primary's"
        return None

    def status(self) -> Fields:
        """Return the mirror's status; at most 16 fields, as older primaries refuse more."""
        lag = self.lag_s()
        # A primary that receives this status is not out of reach.
        trouble = self._lasting() if self.error == "unreachable" else self.trouble()
        releases = list(self.service.fleet.releases.values())
        releases.sort(key=lambda one: one.row["uploaded_at"])  # all device types, newest last
        return {
            "backlog": self.backlog,
            "lag_s": None if lag is None else round(lag, 1),
            "releases": sorted(
                f"{one.row['device_type']}/{one.row['version']}" for one in releases[-32:]
            ),
            "version": __version__,
            "url": self.address,
            "moves": self.given.moves,
            "lease_s": self.lease.span_s,
            "skew_s": None if self.skew_s is None else round(self.skew_s, 1),
            "error": None if trouble is None else {"code": trouble[0], "detail": trouble[1][:300]},
        }

    def health(self) -> Fields:
        """Return the mirror's health for a probe without a token: nothing in it is secret."""
        trouble = self.trouble()
        return {
            "in_step": self.error is None and not self.given.fault and self.contact is not None,
            "error": None if trouble is None else trouble[0],
            "silent_s": None
            if self.contact is None
            else round(max(self.service.clock.now() - self.contact, 0.0), 1),
            "hands_out": self.hands_out,
            "lease_left_s": round(self.lease.left_s(), 1),
            "skew_s": None if self.skew_s is None else round(self.skew_s, 1),
        }

    async def _going(self) -> None:
        self._epoch = await self.service.db.write(outbox.install_triggers)
        pause = 0.0
        while True:
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            pause = SYNC_S
            try:
                await self.exchange()
                if self.error is not None:
                    log.warning("the primary answers again")
                self.error, self.why, self.failing_since = None, "", None
            except BeaconOtaError as error:
                if self._fails(error.code, str(error)):
                    away = error.code == "unreachable"
                    what = "is out of reach" if away else "and this mirror are not in step"
                    log.warning("the primary %s: %s (%s)", what, error, error.code)
                if error.code in _NEVER:
                    self.lease.revoke(error.code)
                if isinstance(error, DeniedError | UsageError | InputError):
                    pause = 10 * SYNC_S  # an early retry would fail the same way
            except Exception as error:
                if self._fails("internal", f"the exchange failed: {error!r}"):
                    log.exception("the exchange with the primary failed")
            await self._mind_the_lease()

    def _fails(self, code: str, why: str) -> bool:
        """Note a failure of the exchange; tell whether it differs from the last one."""
        news = (self.error, self.why) != (code, why)
        if self.failing_since is None:
            self.failing_since = self.service.clock.now()
        self.error, self.why = code, why
        return news

    def _say_the_lease(self) -> None:
        """Log when the lease has ended, or been renewed, since the last call."""
        over = self.lease.is_over()
        if over and not self._over:
            log.warning(
                "nothing new is handed out: the primary's last word is older than the lease of"
                " %.0f s, or it has given this mirror up",
                self.lease.span_s,
            )
        elif self._over and not over:
            log.warning("releases are handed out again")
        self._over = over

    async def _mind_the_lease(self) -> None:
        self._say_the_lease()
        kept = self.lease.dump_if_due()
        if kept is not None:
            try:
                await self.service.db.write(changes.set_setting, _LEASE, kept)
            except Exception:
                log.exception("the lease could not be written down")

    async def exchange(self) -> None:
        """Send new changes and take the primary's, until neither side has any left.

        Raises:
            BeaconOtaError: the primary refused, or cannot be reached.
            StorageError: the database here takes nothing; the primary was informed.
        """
        try:
            await self._exchange()
        except StorageError as error:
            await self._complain(error)
            raise

    async def _exchange(self) -> None:
        db = self.service.db
        if self.given.waiting is not None and self.images.fetched:
            await self._take(self.given.waiting)
        await self.service.flush_last_seen()
        begun = confirmed = False
        more = True
        while more:
            doubted = await db.read(outbox.halts_to_review)  # before the changes are read
            self.backlog = await db.read(outbox.backlog_size)
            items, more = _fitting(await db.read(outbox.read_batch, _ITEMS))
            telling = bool(items) or self._news
            after, mark = await (db.write if telling else db.read)(outbox.next_exchange, telling)
            if any(item.what == "halts" for item in items):
                self._have = ""  # ask for the full state, to learn the outcome of the halts
            moves = self.given.moves
            began = self.service.clock.now()
            reply, refused = await self._tell(items, after, mark)
            given = await asyncio.to_thread(mirror_state.read_answer, reply)
            if given.again:  # first of all, as such an answer contains no state
                if refused is not None and not isinstance(refused, InputError):
                    raise refused  # perhaps it was taken all the same: send it again by its mark
                if begun:
                    raise ReachError("mirror_parted", "the primary takes nothing of what is told")
                log.warning("the primary has not taken what it should have; all is told again")
                self._epoch = await db.write(outbox.restart_book)
                self._have, begun, more = "", True, True
                continue
            self._measure(began, given)
            if mark and refused is None:
                seq = min(given.seq, items[-1].seq) if items else 0
                await db.write(outbox.acknowledge, seq, mark)
                self._news = False
            if given.state is not None:
                self.given.note_sound(given.state["firmwares"])
                await self._take(given)
                if not self.given.owes_attempts(given):
                    self._have = given.etag
            elif self.given.waiting is None and self.given.is_damaged_here():
                self._have = ""  # ask for everything, to fetch the image again
            if given.moves and given.moves != self.given.moves and given.state is None:
                await db.write(outbox.set_moves, given.moves)  # moves at other sites
                self.given.moves = given.moves
            # The exchange sent at `began` was answered, and the answer is in force here.
            self.contact = self.service.clock.now()
            self.lease.renew(began)
            self.images.wake()
            if refused is not None:
                raise refused
            more = more or await self._review(doubted)
            more = more or moves != self.given.moves  # confirm the move at once
            if self._news and not confirmed:
                more = confirmed = True
        self.backlog = await db.read(outbox.backlog_size)
        if not self.backlog:
            self.told_at = self.service.clock.now()

    async def _complain(self, error: StorageError) -> None:
        """Report that the database here takes nothing; then try once more to apply the answer.

        No changes are sent. The backlog is reported as one more than the changes that wait, so
        that the primary does not take it for empty.
        """
        self._fails(error.code, str(error))
        self.backlog = await self.service.db.read(outbox.backlog_size) + 1
        # The primary may have taken an exchange that is not acknowledged here: name it again.
        after, mark = await self.service.db.read(outbox.next_exchange, False)
        given = await asyncio.to_thread(mirror_state.read_answer, await self._call([], after, mark))
        if not given.again and given.state is not None:
            await self._take(given)

    async def _review(self, doubted: dict[str, outbox.HaltReview]) -> bool:
        """Reconsider halts that were not sent yet; return True to exchange again at once."""
        for rollout_id, doubt in doubted.items():
            await self.engine.review_halt(rollout_id, doubt)
        if doubted:
            self._have = ""
        return bool(doubted) or await self.service.db.read(outbox.has_queued_halts)

    async def _tell(
        self, items: list[outbox.Item], after: str, mark: str
    ) -> tuple[Any, BeaconOtaError | None]:
        """Send changes; return the answer, and the refusal if the changes were refused.

        After a refusal, a second call sends the status without changes: the primary must learn of
        the failure, and its state, above all a halt, must still arrive here.
        """
        try:
            return await self._call(items, after, mark), None
        except BeaconOtaError as error:
            if not items or isinstance(error, DeniedError) or error.code in _VAIN:
                raise
            self._fails(error.code, str(error))
            return await self._call([], after, ""), error

    async def _call(self, items: list[outbox.Item], after: str, mark: str) -> Any:
        body = {
            "epoch": self._epoch,
            "after": after,
            "mark": mark,
            "have": self._have,
            "protocol": mirror_state.PROTOCOL,
            "status": self.status(),
            "changes": [item._asdict() for item in items],
        }
        return await asyncio.to_thread(self._client.call, "POST", "/api/mirror/sync", json=body)

    def _measure(self, began: float, given: mirror_state.PrimaryAnswer) -> None:
        """Compare the clocks: the answer was dated between the request and its arrival."""
        clock = self.service.clock
        if given.server_time is None or clock.scale != 1.0:
            return  # scaled clocks begin at any time
        now = clock.now()
        off, unsure = (began + now) / 2 - given.server_time, abs(now - began) / 2
        skew = off if abs(off) > unsure else 0.0
        was = abs(self.skew_s or 0.0) >= SKEW_S
        if abs(skew) >= SKEW_S and not was:
            log.warning("this clock is %+.0f s off the primary's", skew)
        elif was and abs(skew) < SKEW_S:
            log.warning("this clock agrees with the primary's again")
        self.skew_s = skew

    async def _take(self, given: mirror_state.PrimaryAnswer) -> None:
        """Store and apply the primary's state; missing images are fetched later."""
        self._have = ""  # until the state is stored
        await self.given.apply(given)
        self._news |= not self.given.lacking
        self.engine.wake()


def _fitting(items: list[outbox.Item]) -> tuple[list[outbox.Item], bool]:
    """Return as many changes as fit into one exchange, and whether more remain."""
    size = 0
    for index, item in enumerate(items):
        size += len(json.dumps(item.row)) + 64
        if size > _BYTES and index:
            return items[:index], True
    return items, len(items) == _ITEMS
