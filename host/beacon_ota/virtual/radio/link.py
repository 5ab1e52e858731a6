"""A connection on the radio medium: two ends, and the packets on their way between them."""

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field

from bumble import hci

from beacon_ota.virtual.radio.interfaces import Broadcast, Medium, MediumRadio

RETRY_S = 0.0075  # the shortest connection interval: the pause before a lost packet goes again
MAX_QUEUED = 256  # packets a host may queue beyond its credits before its link breaks

EVENTS_TO_ESTABLISH = 6  # connection events within which the first packet has to arrive

SUPERVISION_TIMEOUT = hci.HCI_ErrorCode.CONNECTION_TIMEOUT_ERROR
NOT_ESTABLISHED = hci.HCI_ErrorCode.CONNECTION_FAILED_TO_BE_ESTABLISHED_ERROR
WRONG_KEY = hci.HCI_ErrorCode.CONNECTION_TERMINATED_DUE_TO_MIC_FAILURE_ERROR
NO_KEY = hci.HCI_ErrorCode.PIN_OR_KEY_MISSING_ERROR
ENCRYPTED = hci.HCI_ErrorCode.SUCCESS
ENDED_LOCALLY = hci.HCI_ErrorCode.CONNECTION_TERMINATED_BY_LOCAL_HOST_ERROR


@dataclass
class _Packet:
    payload: bytes  # an L2CAP PDU; for a termination the reason
    credits: int  # HCI packets to report as completed
    ready: float  # loop time of its arrival
    ends_link: bool = False


@dataclass(eq=False)
class LinkEnd:
    """One end of a link: its address, its handle, the packets that it has not sent yet."""

    controller: MediumRadio
    address: hci.Address
    handle: int
    role: hci.Role
    queue: deque[_Packet] = field(default_factory=deque)
    timer: asyncio.Handle | None = None
    waiting_since: float = 0.0
    silent: bool = False


class RadioLink:
    """A connection: two ends, and the packets on their way between them.

    One that is not ``established`` carries no packet, and ends after six connection events.
    """

    def __init__(
        self,
        medium: Medium,
        central: MediumRadio,
        central_address: hci.Address,
        advertiser: Broadcast,
        interval: int,
        latency: int,
        timeout: int,
        established: bool = True,
    ) -> None:
        peripheral = advertiser.controller
        self.medium = medium
        self.interval = interval
        self.latency = latency
        self.timeout = timeout
        self.access_address = medium.random.getrandbits(32)
        self.crc_init = medium.random.getrandbits(24)
        self.packets_until_break: int | None = None
        self.ends = {
            central: LinkEnd(central, central_address, central.free_handle(), hci.Role.CENTRAL),
            peripheral: LinkEnd(
                peripheral, advertiser.address, peripheral.free_handle(), hci.Role.PERIPHERAL
            ),
        }
        self._timers = medium.timers
        self._anchor = self._timers.time()
        self._supervision: asyncio.TimerHandle | None = None
        self._key = b""  # with which the central encrypts
        self._failure: asyncio.TimerHandle | None = None
        if not established:
            self._failure = self._timers.call_later(
                EVENTS_TO_ESTABLISH * self.interval_s, self.break_link, NOT_ESTABLISHED
            )

    def peer_of(self, controller: MediumRadio) -> LinkEnd:
        """Return the other end than that of ``controller``."""
        return next(end for key, end in self.ends.items() if key is not controller)

    @property
    def interval_s(self) -> float:
        return self.interval * 0.00125

    @property
    def timeout_s(self) -> float:
        return self.timeout * 0.01

    # Sending

    def send_pdu(self, sender: MediumRadio, payload: bytes, credits: int) -> None:
        """Queue an L2CAP PDU that took ``credits`` HCI packets."""
        self._enqueue(sender, _Packet(payload, credits, self._arrival_time()))

    def terminate(self, sender: MediumRadio, reason: int) -> None:
        """Queue the end of the link behind the packets of the sender."""
        self._enqueue(sender, _Packet(bytes([reason]), 0, self._arrival_time(), ends_link=True))

    def _arrival_time(self) -> float:
        return self._timers.time() + self.medium.conditions.latency

    def _enqueue(self, sender: MediumRadio, packet: _Packet) -> None:
        end = self.ends[sender]
        if not end.queue:
            end.waiting_since = self._timers.time()
        end.queue.append(packet)
        if len(end.queue) > MAX_QUEUED:
            self.break_link(SUPERVISION_TIMEOUT)
        elif end.timer is None:
            self._schedule(end)

    def _schedule(self, end: LinkEnd, not_before: float = 0.0) -> None:
        now = self._timers.time()
        when = max(not_before, end.queue[0].ready, now)
        if self.medium.conditions.paced:
            passed = math.ceil((when - self._anchor) / self.interval_s)
            when = self._anchor + max(passed, 1) * self.interval_s
        if when <= now:
            end.timer = self._timers.call_soon(self._run_event, end)
        else:
            end.timer = self._timers.call_at(when, self._run_event, end)

    def _run_event(self, end: LinkEnd) -> None:
        """Run a connection event of one direction."""
        end.timer = None
        if self._failure is not None:
            return
        peer = self.peer_of(end.controller)
        conditions = self.medium.conditions
        budget = conditions.per_event if conditions.paced else MAX_QUEUED
        now = self._timers.time()
        while end.queue and budget > 0:
            packet = end.queue[0]
            if packet.ready > now:
                break
            if end.silent or peer.silent or self.medium.draw_loss(end.controller, peer.controller):
                if now - end.waiting_since > self.timeout_s:
                    self.break_link(SUPERVISION_TIMEOUT)
                    return
                self._schedule(end, now + (self.interval_s / 2 if conditions.paced else RETRY_S))
                return
            end.queue.popleft()
            end.waiting_since = now
            budget -= max(packet.credits, 1)
            self._deliver(end, peer, packet)
            if self not in self.medium.links:
                return
        if end.queue:
            self._schedule(end, now + self.interval_s / 2 if conditions.paced else 0.0)

    def _deliver(self, end: LinkEnd, peer: LinkEnd, packet: _Packet) -> None:
        self.medium.log_frame(
            "LL_TERMINATE_IND" if packet.ends_link else "DATA",
            end.controller,
            end.address,
            peer.address,
            payload=packet.payload,
            access_address=self.access_address,
            crc_init=self.crc_init,
            channel=self.access_address % 37,
        )
        if packet.ends_link:
            self._close({end: ENDED_LOCALLY, peer: packet.payload[0]})
            return
        end.controller.on_sent(end.handle, packet.credits)
        peer.controller.on_received(peer.handle, packet.payload)
        if self.packets_until_break is not None:
            self.packets_until_break -= 1
            if self.packets_until_break <= 0:
                self.break_link(SUPERVISION_TIMEOUT)

    def update_parameters(self, interval: int, latency: int, timeout: int) -> None:
        """Set the connection parameters, as the central asked; both hosts get an event."""
        self.interval, self.latency, self.timeout = interval, latency, timeout
        for end in self.ends.values():
            end.controller.on_parameters(end.handle, self)

    # Encryption

    def request_key(
        self, central: MediumRadio, random: bytes, diversifier: int, key: bytes
    ) -> None:
        """Begin to encrypt: the peripheral's host has to know the same key."""
        self._key = key
        peer = self.peer_of(central)
        peer.controller.on_key_request(peer.handle, random, diversifier)

    def answer_key(self, key: bytes | None) -> None:
        """Go on with the key of the peripheral's host, None when it has none."""
        if self not in self.medium.links:
            return
        if key is not None and key != self._key:
            self.break_link(WRONG_KEY)
            return
        for end in self.ends.values():
            if key is not None:
                end.controller.on_encryption(end.handle, ENCRYPTED)
            elif end.role == hci.Role.CENTRAL:
                end.controller.on_encryption(end.handle, NO_KEY)

    # Ending

    def check_supervision(self) -> None:
        """Start the supervision timer while the ends are out of range, stop it otherwise."""
        one, other = self.ends.values()
        dead = (
            one.silent
            or other.silent
            or self.medium.loss_probability(one.controller, other.controller) >= 1
        )
        if dead and self._supervision is None:
            self._supervision = self._timers.call_later(
                self.timeout_s, self.break_link, SUPERVISION_TIMEOUT
            )
        elif not dead and self._supervision is not None:
            self._supervision.cancel()
            self._supervision = None

    def silence_end(self, controller: MediumRadio) -> None:
        """Silence one end (power cut, crash): the other end times out."""
        self.ends[controller].silent = True
        if all(end.silent for end in self.ends.values()):
            self._close({})
        else:
            self.check_supervision()

    def break_link(self, reason: int) -> None:
        """Break the link now, for both ends."""
        self._close(dict.fromkeys(self.ends.values(), reason))

    def _close(self, reasons: "dict[LinkEnd, int]") -> None:
        if self not in self.medium.links:
            return
        self.medium.links.discard(self)
        for timer in (self._supervision, self._failure):
            if timer is not None:
                timer.cancel()
        for end in self.ends.values():
            if end.timer is not None:
                end.timer.cancel()
            end.queue.clear()
        for end, reason in reasons.items():
            if not end.silent:
                end.controller.on_unlinked(end.handle, reason)
