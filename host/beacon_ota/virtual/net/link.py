"""One beacon's way into the network: its sockets lead through here.

``getaddrinfo`` returns the address of a local proxy, one per destination
(:mod:`beacon_ota.virtual.net.proxy`), which shapes the traffic and injects the link's faults.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterable

from beacon_ota.virtual.clock import VirtualClock
from beacon_ota.virtual.net import proxy
from beacon_ota.virtual.net.network import GATEWAY, Network
from beacon_ota.virtual.net.shaper import TrafficShaper
from beacon_ota.virtual.process.channel import Value

MDNS = ("224.0.0.251", 5353)
DNS = (GATEWAY, 53)
NAME_TIMEOUT = 7.0  # seconds that lwIP tries to resolve a name
EAI_FAIL = -202
DATAGRAM = 2  # SOCK_DGRAM


class NetworkLink(TrafficShaper):
    """One beacon's way into the network, up while its WiFi is connected.

    Attributes:
        address: the beacon's, while it is connected.
    """

    def __init__(self, network: Network, clock: VirtualClock):
        super().__init__(network, clock)
        self.address = network.next_station()
        self._targets: dict[tuple[str, int, int], proxy.StreamProxy | proxy.DatagramProxy] = {}

    def set_up(self, up: bool) -> None:
        """WiFi came or went: without it nothing flows, and nobody is reachable."""
        if up == self.up.is_set():
            return
        if up:
            self.up.set()
        else:
            self.up.clear()
        for target in self._targets.values():
            target.open() if up else target.close()

    def drop_connections(self) -> None:
        """The chip was reset: its connections are forgotten, and the others are not told."""
        for flow in list(self.flows):
            flow.abandon()
        for target in self._targets.values():
            target.release_port()
        self._targets.clear()
        self.set_up(False)

    async def resolve_host(self, host: str, port: int, kind: int) -> Value:
        """``getaddrinfo``: return (address, port) on this machine.

        Raises:
            OSError: -202, as lwIP's getaddrinfo, when there is no address.
        """
        address = await self._lookup_address(host)
        if kind == DATAGRAM:
            return await self._open_relay(address, port)
        if self.faults.black_hole:
            return proxy.black_hole_address()
        target = self._targets.get((address, port, kind))
        if not isinstance(target, proxy.StreamProxy):
            target = proxy.StreamProxy(self, self.network.real_address(address, port))
            self._targets[address, port, kind] = target
        await target.probe_destination()
        return target.address

    async def _lookup_address(self, host: str) -> str:
        if not self.up.is_set():
            raise OSError(EAI_FAIL)
        with contextlib.suppress(ValueError):
            return str(ipaddress.IPv4Address(host))
        if not self.faults.names:
            await asyncio.sleep(self.clock.real_seconds(NAME_TIMEOUT))
            raise OSError(EAI_FAIL)
        found = self.network.lookup_name(host)
        if found is None and self.network.outside:
            found = await _resolve_outside(host)
        if found is None:
            await asyncio.sleep(
                self.clock.real_seconds(NAME_TIMEOUT if host.endswith(".local") else 0.05)
            )
            raise OSError(EAI_FAIL)
        return found

    async def _open_relay(self, address: str, port: int) -> Value:
        key = (address, port, DATAGRAM)
        relay = self._targets.get(key)
        if not isinstance(relay, proxy.DatagramProxy):
            loop = asyncio.get_running_loop()
            answers = (address, port) in (MDNS, DNS)
            real = self.network.real_address(address, port)
            silent = (address, port) == MDNS

            def make() -> proxy.DatagramProxy:
                return (
                    proxy.NameServer(self, silent) if answers else proxy.DatagramProxy(self, real)
                )

            _, relay = await loop.create_datagram_endpoint(make, local_addr=("127.0.0.1", 0))
            self._targets[key] = relay
        return relay.address


async def _resolve_outside(host: str) -> str | None:
    loop = asyncio.get_running_loop()
    try:
        found: Iterable = await loop.getaddrinfo(host, None, family=socket.AF_INET)
    except OSError:
        return None
    return next((str(item[4][0]) for item in found), None)
