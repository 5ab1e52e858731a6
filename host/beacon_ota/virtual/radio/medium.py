"""The air of a room: who hears whom, how loudly, and what gets lost on the way.

bumble's link hands every advertisement to every controller at once. Here an advertisement reaches
those who listen, a connection's data travels from one connection event to the next, and distance,
loss and latency apply to both. While nobody listens nothing is sent and nothing costs time: an
advertiser keeps its phase and goes on with its next event when somebody begins to.

Everything here runs in the room's event loop.
"""

import asyncio
import math
import random
from collections.abc import Iterable

from bumble import hci
from bumble.link import LocalLink

from beacon_ota.virtual.radio.capture import ADVERTISING_ACCESS_ADDRESS, Capture, Frame
from beacon_ota.virtual.radio.interfaces import Broadcast, Conditions, Radio, Timers
from beacon_ota.virtual.radio.link import Link

SENSITIVITY_DBM = -97
REFERENCE_DBM = -59  # at one metre, as iBeacon calibrates it


class Air(LocalLink):
    """The medium that all controllers of a room share."""

    def __init__(self, *, seed: int | None = None, timers: Timers | None = None) -> None:
        super().__init__()
        self.conditions = Conditions()
        self.capture: Capture | None = None
        self.links: set[Link] = set()
        self.random = random.Random(seed)
        self.timers: Timers = timers or asyncio.get_running_loop()
        self._born = self.timers.time()
        self._listeners: set[Radio] = set()

    # Who is there, who listens

    def remove_controller(self, controller: Radio) -> None:  # type: ignore[override]
        """Take a radio out of the room without a word: its peers time out."""
        self.controllers.discard(controller)
        self._listeners.discard(controller)
        controller.advertiser.stop()
        for link in tuple(self.links):
            if controller in link.ends:
                link.silence(controller)
        self._wake()

    def listen(self, controller: Radio, on: bool) -> None:
        """A controller begins or ends to listen on the advertising channels."""
        if on:
            self._listeners.add(controller)
        else:
            self._listeners.discard(controller)
        self._wake()

    def record(self, capture: Capture | None) -> None:
        """Begin or end a capture; a capture is a listener, too."""
        self.capture = capture
        self._born = self.timers.time()
        self._wake()

    @property
    def heard(self) -> bool:
        """Whether an advertisement sent now could make a difference to anybody."""
        return bool(self._listeners) or self.capture is not None

    def _wake(self) -> None:
        for controller in self.controllers:
            controller.advertiser.wake()  # type: ignore[attr-defined]

    # How well

    def rssi(self, sender: Radio, receiver: Radio) -> int:
        """dBm at which ``receiver`` hears ``sender``: log-distance path loss plus noise."""
        metres = sender.place.distance(receiver.place)
        level = REFERENCE_DBM + sender.place.tx_power
        level -= 10 * self.conditions.path_loss * math.log10(metres)
        if self.conditions.noise:
            level += self.random.gauss(0, self.conditions.noise)
        return max(-127, min(20, round(level)))

    def loss(self, one: Radio, other: Radio) -> float:
        """Probability that a packet between two radios is lost; 1 beyond their reach."""
        if self.rssi(one, other) < SENSITIVITY_DBM or self.rssi(other, one) < SENSITIVITY_DBM:
            return 1.0
        kept = (1 - self.conditions.loss) * (1 - one.place.loss) * (1 - other.place.loss)
        return 1 - kept

    def recheck(self) -> None:
        """Conditions or places changed: links out of reach begin to time out, others recover."""
        for link in tuple(self.links):
            link.check()

    # Advertising

    def advertise(self, advertiser: Broadcast) -> None:
        """One advertising event, on all three channels at once."""
        sender = advertiser.controller
        self.log(advertiser.kind, sender, advertiser.address, payload=advertiser.data)
        for listener in tuple(self._listeners):
            if listener is sender:
                continue
            rssi = self.rssi(sender, listener)
            if rssi >= SENSITIVITY_DBM and not self.lost(sender, listener):
                listener.hear(advertiser, rssi)

    def lost(self, sender: Radio, receiver: Radio) -> bool:
        """Toss the coin for one packet."""
        return self.random.random() < self.loss(sender, receiver)

    def connect(
        self,
        central: Radio,
        central_address: hci.Address,
        advertiser: Broadcast,
        interval: int,
        latency: int,
        timeout: int,
    ) -> None:
        """Join a central to the advertiser it heard (interval in 1.25 ms, timeout in 10 ms)."""
        link = Link(self, central, central_address, advertiser, interval, latency, timeout)
        self.links.add(link)
        data = link.access_address.to_bytes(4, "little") + link.crc_init.to_bytes(3, "little")
        data += b"\x02\x00\x00" + interval.to_bytes(2, "little") + latency.to_bytes(2, "little")
        data += timeout.to_bytes(2, "little") + b"\xff\xff\xff\xff\x1f" + b"\x27"
        self.log("CONNECT_IND", central, central_address, advertiser.address, payload=data)
        advertiser.stop()
        for end in link.ends.values():
            end.controller.on_link(link)

    # Capture

    def log(
        self,
        kind: str,
        sender: Radio,
        address: hci.Address,
        receiver: hci.Address | None = None,
        *,
        payload: bytes,
        access_address: int = ADVERTISING_ACCESS_ADDRESS,
        crc_init: int = 0x555555,
        channel: int = 37,
    ) -> None:
        """Add a frame to the capture, if there is one."""
        if self.capture is None:
            return
        self.capture.add(
            Frame(
                at=self.timers.time() - self._born,
                kind=kind,
                sender=address.to_string(False),
                receiver=receiver.to_string(False) if receiver else None,
                payload=payload,
                sender_random=not address.is_public,
                receiver_random=bool(receiver) and not receiver.is_public,
                access_address=access_address,
                channel=channel,
                crc_init=crc_init,
                rssi=REFERENCE_DBM + sender.place.tx_power,
            )
        )


def links_of(links: Iterable[Link], address: str) -> list[Link]:
    """The links that the radio with this address takes part in."""
    wanted = address.upper()
    return [
        link
        for link in links
        if any(end.address.to_string(False) == wanted for end in link.ends.values())
    ]
