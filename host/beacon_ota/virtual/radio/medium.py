"""The radio medium: reception, signal strength and loss between the radios of a space.

The link of bumble hands every advertisement to every controller at once. Here an advertisement
reaches the controllers that listen, data travels from one connection event to the next, and
distance, loss and latency apply to both. While no controller listens, advertisers send nothing and
cost no time: an advertiser keeps its phase, and goes on with its next event when one listens again.

All methods run in the event loop of the space.
"""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Iterable

from bumble import hci
from bumble.link import LocalLink

from beacon_ota.virtual.radio.capture import ADVERTISING_ACCESS_ADDRESS, AirFrame, Capture
from beacon_ota.virtual.radio.interfaces import Broadcast, Conditions, MediumRadio, Timers
from beacon_ota.virtual.radio.link import RadioLink

SENSITIVITY_DBM = -97
REFERENCE_DBM = -59  # at one metre, as iBeacon calibrates it


class RadioMedium(LocalLink):
    """The medium that all controllers of a radio space share."""

    def __init__(self, *, seed: int | None = None, timers: Timers | None = None) -> None:
        super().__init__()
        self.conditions = Conditions()
        self.capture: Capture | None = None
        self.links: set[RadioLink] = set()
        self.failing: Counter[hci.Address] = Counter()  # connections that shall fail, by advertiser
        self.random = random.Random(seed)
        self.timers: Timers = timers or asyncio.get_running_loop()
        self._capture_start = self.timers.time()
        self._listeners: set[MediumRadio] = set()

    # Radios and listeners

    def remove_controller(self, controller: MediumRadio) -> None:  # type: ignore[override]
        """Remove a radio without ending its links: they time out."""
        self.controllers.discard(controller)
        self._listeners.discard(controller)
        controller.advertiser.stop()
        for link in tuple(self.links):
            if controller in link.ends:
                link.silence_end(controller)
        self._wake_advertisers()

    def set_listening(self, controller: MediumRadio, on: bool) -> None:
        """Note that a controller begins or ends to listen on the advertising channels."""
        if on:
            self._listeners.add(controller)
        else:
            self._listeners.discard(controller)
        self._wake_advertisers()

    def set_capture(self, capture: Capture | None) -> None:
        """Begin or end a capture; a capture counts as a listener."""
        self.capture = capture
        self._capture_start = self.timers.time()
        self._wake_advertisers()

    @property
    def has_listeners(self) -> bool:
        """Whether a controller or a capture would receive an advertisement sent now."""
        return bool(self._listeners) or self.capture is not None

    def _wake_advertisers(self) -> None:
        for controller in self.controllers:
            controller.advertiser.update_timer()  # type: ignore[attr-defined]

    # Signal

    def rssi(self, sender: MediumRadio, receiver: MediumRadio) -> int:
        """dBm at which ``receiver`` hears ``sender``: log-distance path loss plus noise."""
        metres = sender.position.distance_to(receiver.position)
        level = REFERENCE_DBM + sender.position.tx_power
        level -= 10 * self.conditions.path_loss * math.log10(metres)
        if self.conditions.noise:
            level += self.random.gauss(0, self.conditions.noise)
        return max(-127, min(20, round(level)))

    def loss_probability(self, one: MediumRadio, other: MediumRadio) -> float:
        """Return the probability, 0 to 1, that a packet is lost; 1 out of range."""
        if self.rssi(one, other) < SENSITIVITY_DBM or self.rssi(other, one) < SENSITIVITY_DBM:
            return 1.0
        kept = (1 - self.conditions.loss) * (1 - one.position.loss) * (1 - other.position.loss)
        return 1 - kept

    def recheck_links(self) -> None:
        """Apply changed conditions or positions: links out of range begin to time out."""
        for link in tuple(self.links):
            link.check_supervision()

    # Advertising

    def send_advertisement(self, advertiser: Broadcast) -> None:
        """Send one advertisement on all three channels at once."""
        sender = advertiser.controller
        self.log_frame(advertiser.kind, sender, advertiser.address, payload=advertiser.data)
        for listener in tuple(self._listeners):
            if listener is sender:
                continue
            rssi = self.rssi(sender, listener)
            if rssi >= SENSITIVITY_DBM and not self.draw_loss(sender, listener):
                listener.receive_advertisement(advertiser, rssi)

    def draw_loss(self, sender: MediumRadio, receiver: MediumRadio) -> bool:
        """Return whether one packet is lost, by chance."""
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
        """Connect a central to an advertiser (interval in units of 1.25 ms, timeout of 10 ms)."""
        established = not self.failing[advertiser.address]
        self.failing[advertiser.address] -= not established
        link = RadioLink(
            self, central, central_address, advertiser, interval, latency, timeout, established
        )
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
        """Add a frame to the capture, if one runs."""
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
    """Return the links of the radio with this address."""
    upper = address.upper()
    return [
        link
        for link in links
        if any(end.address.to_string(False) == upper for end in link.ends.values())
    ]
