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

from beacon_ota.virtual.radio.capture import ADVERTISING_ACCESS_ADDRESS, AirFrame, Capture
from beacon_ota.virtual.radio.interfaces import Broadcast, Conditions, MediumRadio, Timers
from beacon_ota.virtual.radio.link import RadioLink

SENSITIVITY_DBM = -97
REFERENCE_DBM = -59  # at one metre, as iBeacon calibrates it


class RadioMedium(LocalLink):
    """The medium that all controllers of a room share."""

    def __init__(self, *, seed: int | None = None, timers: Timers | None = None) -> None:
        super().__init__()
        self.conditions = Conditions()
        self.capture: Capture | None = None
        self.links: set[RadioLink] = set()
        self.random = random.Random(seed)
        self.timers: Timers = timers or asyncio.get_running_loop()
        self._capture_start = self.timers.time()
        self._listeners: set[MediumRadio] = set()

    # Who is there, who listens

    def remove_controller(self, controller: MediumRadio) -> None:  # type: ignore[override]
        """Take a radio out of the room without a word: its peers time out."""
        self.controllers.discard(controller)
        self._listeners.discard(controller)
        controller.advertiser.stop()
        for link in tuple(self.links):
            if controller in link.ends:
                link.silence_end(controller)
        self._wake_advertisers()

    def set_listening(self, controller: MediumRadio, on: bool) -> None:
        """A controller begins or ends to listen on the advertising channels."""
        if on:
            self._listeners.add(controller)
        else:
            self._listeners.discard(controller)
        self._wake_advertisers()

    def set_capture(self, capture: Capture | None) -> None:
        """Begin or end a capture; a capture is a listener, too."""
        self.capture = capture
        self._capture_start = self.timers.time()
        self._wake_advertisers()

    @property
    def has_listeners(self) -> bool:
        """Whether an advertisement sent now could make a difference to anybody."""
        return bool(self._listeners) or self.capture is not None

    def _wake_advertisers(self) -> None:
        for controller in self.controllers:
            controller.advertiser.wake()  # type: ignore[attr-defined]

    # How well

    def rssi(self, sender: MediumRadio, receiver: MediumRadio) -> int:
        """dBm at which ``receiver`` hears ``sender``: log-distance path loss plus noise."""
        metres = sender.position.distance_to(receiver.position)
        level = REFERENCE_DBM + sender.position.tx_power
        level -= 10 * self.conditions.path_loss * math.log10(metres)
        if self.conditions.noise:
            level += self.random.gauss(0, self.conditions.noise)
        return max(-127, min(20, round(level)))

    def loss_probability(self, one: MediumRadio, other: MediumRadio) -> float:
        """Probability that a packet between two radios is lost; 1 beyond their reach."""
        if self.rssi(one, other) < SENSITIVITY_DBM or self.rssi(other, one) < SENSITIVITY_DBM:
            return 1.0
        kept = (1 - self.conditions.loss) * (1 - one.position.loss) * (1 - other.position.loss)
        return 1 - kept

    def recheck_links(self) -> None:
        """Conditions or places changed: links out of reach begin to time out, others recover."""
        for link in tuple(self.links):
            link.check_supervision()

    # Advertising

    def send_advertisement(self, advertiser: Broadcast) -> None:
        """One advertising event, on all three channels at once."""
        sender = advertiser.controller
        self.log_frame(advertiser.kind, sender, advertiser.address, payload=advertiser.data)
        for listener in tuple(self._listeners):
            if listener is sender:
                continue
            rssi = self.rssi(sender, listener)
            if rssi >= SENSITIVITY_DBM and not self.draw_loss(sender, listener):
                listener.receive_advertisement(advertiser, rssi)

    def draw_loss(self, sender: MediumRadio, receiver: MediumRadio) -> bool:
        """Toss the coin for one packet."""
        return self.random.random() < self.loss_probability(sender, receiver)

    def open_link(
        self,
        central: MediumRadio,
        central_address: hci.Address,
        advertiser: Broadcast,
        interval: int,
        latency: int,
        timeout: int,
    ) -> None:
        """Join a central to the advertiser it heard (interval in 1.25 ms, timeout in 10 ms)."""
        link = RadioLink(self, central, central_address, advertiser, interval, latency, timeout)
        self.links.add(link)
        data = link.access_address.to_bytes(4, "little") + link.crc_init.to_bytes(3, "little")
        data += b"\x02\x00\x00" + interval.to_bytes(2, "little") + latency.to_bytes(2, "little")
        data += timeout.to_bytes(2, "little") + b"\xff\xff\xff\xff\x1f" + b"\x27"
        self.log_frame("CONNECT_IND", central, central_address, advertiser.address, payload=data)
        advertiser.stop()
        for end in link.ends.values():
            end.controller.on_link(link)

    # Capture

    def log_frame(
        self,
        kind: str,
        sender: MediumRadio,
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
        self.capture.add_frame(
            AirFrame(
                at=self.timers.time() - self._capture_start,
                kind=kind,
                sender=address.to_string(False),
                receiver=receiver.to_string(False) if receiver else None,
                payload=payload,
                sender_random=not address.is_public,
                receiver_random=bool(receiver) and not receiver.is_public,
                access_address=access_address,
                channel=channel,
                crc_init=crc_init,
                rssi=REFERENCE_DBM + sender.position.tx_power,
            )
        )


def find_links(links: Iterable[RadioLink], address: str) -> list[RadioLink]:
    """The links that the radio with this address takes part in."""
    wanted = address.upper()
    return [
        link
        for link in links
        if any(end.address.to_string(False) == wanted for end in link.ends.values())
    ]
