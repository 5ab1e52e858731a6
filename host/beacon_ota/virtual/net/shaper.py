"""Shapes one beacon's traffic: pace, losses, counters, and the faults for its proxies."""

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from beacon_ota.virtual.clock import VirtualClock
from beacon_ota.virtual.net.network import LinkFaults, Network

SEGMENT = 1460
RETRANSMIT = 0.25  # seconds that a lost segment costs


class OpenConnection(Protocol):
    """An open connection."""

    def abandon(self) -> None:
        """The beacon is gone without a word."""
        ...


class TrafficShaper:
    """What all connections of one beacon pass.

    Attributes:
        faults: what goes wrong.
        received, sent: bytes brought to the beacon and taken from it.
        connections: accepted so far.
        dropped: called when a fault takes WiFi away.
        up: set while WiFi is connected; nothing flows otherwise.
        flows: the open connections.
    """

    def __init__(self, network: Network, clock: VirtualClock):
        self.network = network
        self.clock = clock
        self.faults = LinkFaults()
        self.received = 0
        self.sent = 0
        self.connections = 0
        self.up = asyncio.Event()
        self.on_wifi_lost: Callable[[], None] = lambda: None
        self.flows: set[OpenConnection] = set()
        self._ready = 0.0  # when the next byte may pass, in the loop's time

    async def wait_for_turn(self, size: int) -> None:
        """Wait until ``size`` bytes may pass."""
        faults, loop = self.faults, asyncio.get_running_loop()
        delay = faults.latency
        if faults.loss:
            segments = -(-size // SEGMENT)
            lost = sum(random.random() < faults.loss for _ in range(segments))
            delay += lost * RETRANSMIT
        now = loop.time()
        if faults.throttle:
            self._ready = max(self._ready, now) + self.clock.real_seconds(size / faults.throttle)
        pause = max(self._ready - now, 0) + self.clock.real_seconds(delay)
        if pause > 0.001:
            await asyncio.sleep(pause)
        await self.up.wait()
