"""Interfaces between medium, controller, advertiser and links; conditions and positions.

A controller has an advertiser and links, and all of them use the medium. Each is typed by the
members that the other modules need, so that no module imports one above it.
"""

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from bumble import hci

NEAREST_M = 0.1


@dataclass
class Conditions:
    """The conditions of the medium; :meth:`.space.RadioSpace.set_conditions` changes them.

    Args:
        loss: probability that a packet is lost, 0 to 1. A lost advertisement is gone, lost data is
            sent again at the next connection event.
        latency: seconds added to the travel time of every data packet.
        paced: data moves only at connection events of the negotiated interval, ``per_event``
            packets each, as on a real link. Otherwise as fast as the loop runs.
        per_event: packets of one direction in one connection event.
        path_loss: exponent of the log-distance model; 2 is free space, 2..4 is indoors.
        noise: standard deviation of the RSSI, in dB.
    """

    loss: float = 0.0
    latency: float = 0.0
    paced: bool = False
    per_event: int = 4
    path_loss: float = 2.2
    noise: float = 0.0


@dataclass
class Position:
    """The position of a radio in metres, its power in dB, its own loss (0 to 1)."""

    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    tx_power: int = 0
    loss: float = 0.0

    def distance_to(self, other: "Position") -> float:
        """Return the distance in metres, at least :data:`NEAREST_M`."""
        metres = math.dist((self.x, self.y, self.z), (other.x, other.y, other.z))
        return max(metres, NEAREST_M)


class Timers(Protocol):
    """The clock of the medium: an event loop, or a clock that a test advances."""

    def time(self) -> float: ...

    def call_soon(self, callback: Callable[..., object], *args: Any) -> asyncio.Handle: ...

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle: ...

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle: ...


class Broadcast(Protocol):
    """An advertiser, as the medium and its receivers see it."""

    address: hci.Address
    adv_type: int
    data: bytes
    response: bytes

    @property
    def controller(self) -> "MediumRadio": ...

    @property
    def kind(self) -> str: ...

    @property
    def connectable(self) -> bool: ...

    @property
    def scannable(self) -> bool: ...

    def stop(self) -> None: ...

    def update_timer(self) -> None: ...


class MediumRadio(Protocol):
    """A controller, as its advertiser, the medium and links see it.

    A ``link`` is a :class:`~beacon_ota.virtual.radio.link.Link`.
    """

    position: Position
    public_address: hci.Address

    @property
    def medium(self) -> "Medium": ...

    @property
    def advertiser(self) -> Broadcast: ...

    def free_handle(self) -> int: ...

    def receive_advertisement(self, advertiser: Broadcast, rssi: int) -> None: ...

    def on_link(self, link: Any) -> None: ...

    def on_unlinked(self, handle: int, reason: int) -> None: ...

    def on_parameters(self, handle: int, link: Any) -> None: ...

    def on_sent(self, handle: int, credits: int) -> None: ...

    def on_received(self, handle: int, pdu: bytes) -> None: ...

    def on_key_request(self, handle: int, random: bytes, diversifier: int) -> None: ...

    def on_encryption(self, handle: int, status: int) -> None: ...


class Medium(Protocol):
    """The medium, as advertisers and links see it."""

    conditions: Conditions
    timers: Timers
    random: random.Random
    links: Any  # those that are open

    @property
    def has_listeners(self) -> bool: ...

    def send_advertisement(self, advertiser: Broadcast) -> None: ...

    def draw_loss(self, sender: MediumRadio, receiver: MediumRadio) -> bool: ...

    def loss_probability(self, one: MediumRadio, other: MediumRadio) -> float: ...

    def log_frame(
        self,
        kind: str,
        sender: MediumRadio,
        address: hci.Address,
        receiver: hci.Address | None = None,
        *,
        payload: bytes,
        access_address: int = ...,
        crc_init: int = ...,
        channel: int = ...,
    ) -> None: ...
