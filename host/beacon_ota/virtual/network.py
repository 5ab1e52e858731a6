"""The air and the wires around virtual beacons: access points, names, and a network that fails.

A :class:`Network` is shared by the beacons of a site. Each beacon has a :class:`Link` to it, and
its sockets lead through the link: ``getaddrinfo`` returns the address of a local proxy, one per
destination, which shapes the traffic and injects the link's :class:`Faults`.
"""

import asyncio
import contextlib
import ipaddress
import random
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from beacon_ota.virtual import dns
from beacon_ota.virtual.channel import Value
from beacon_ota.virtual.clock import Clock

GATEWAY = "10.77.0.1"  # gateway and name server
HOSTS = ipaddress.IPv4Address("10.77.2.1")  # the first address given to a name
STATIONS = ipaddress.IPv4Address("10.77.16.2")  # the first address given to a beacon
MDNS = ("224.0.0.251", 5353)
DNS_PORT = 53

THROTTLE = 800_000  # bytes per second that a C3 takes from the air
CHUNK = 16 * 1024
SEGMENT = 1460
RETRANSMIT = 0.25  # seconds that a lost segment costs
NAME_TIMEOUT = 7.0  # seconds that lwIP tries to resolve a name
CONNECT_TIMEOUT = 3.0  # real seconds for a connection to the real destination
EAI_FAIL = -202
STREAM, DATAGRAM = 1, 2


@dataclass
class AccessPoint:
    """An access point. ``password`` empty means open; ``visible`` False hides it for good."""

    ssid: bytes
    password: bytes = b""
    bssid: bytes = b""
    channel: int = 6
    rssi: int = -55
    visible: bool = True

    def __post_init__(self) -> None:
        if not self.bssid:
            self.bssid = b"\x02" + (self.ssid + b"\0" * 5)[:5]

    @property
    def security(self) -> int:
        """``WLAN.SEC_…``: open, or WPA2."""
        return 3 if self.password else 0

    def accepts(self, key: bytes) -> bool:
        """Tell whether a station with this key may join."""
        return not self.password or key == self.password


@dataclass
class Faults:
    """What goes wrong on a link. Sizes in bytes, times in the beacon's seconds.

    The four ``…_after`` count the bytes that one connection brought to the beacon, act once
    and are then cleared, unless ``again`` is set.

    Args:
        throttle: bytes per second, all connections together; None for no limit.
        latency: seconds each way.
        loss: share of segments that are lost and come late.
        names: False: name servers do not answer.
        refuse: connections are refused.
        black_hole: connections are neither accepted nor refused.
        stall_after: the connection goes silent.
        reset_after: it is reset.
        close_after: it is closed early, as if that were all.
        drop_after: WiFi is lost.
        again: the ``…_after`` act on every connection.
    """

    throttle: float | None = THROTTLE
    latency: float = 0.0
    loss: float = 0.0
    names: bool = True
    refuse: bool = False
    black_hole: bool = False
    stall_after: int | None = None
    reset_after: int | None = None
    close_after: int | None = None
    drop_after: int | None = None
    again: bool = False

    def next(self, brought: int) -> tuple[int, str] | None:
        """Return the next of the ``…_after`` and how many bytes are left until then."""
        due = [
            (limit - brought, name)
            for name in ("stall_after", "reset_after", "close_after", "drop_after")
            if (limit := getattr(self, name)) is not None and limit >= brought
        ]
        return min(due, default=None)


@dataclass
class Network:
    """What is in range of the beacons, and where names lead.

    Args:
        points: access points.
        hosts: name → real (host, port); port None keeps the one asked for.
        services: mDNS service type, e.g. ``_beacon-ota._tcp`` → (host name, port).
        outside: also resolve names that are not in ``hosts``, with this machine's resolver.
        join_time: seconds from connect to an address, or to the failure.
        scan_time: seconds of a scan.
    """

    points: list[AccessPoint] = field(default_factory=list)
    hosts: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    services: dict[str, tuple[str, int]] = field(default_factory=dict)
    outside: bool = False
    join_time: float = 1.2
    scan_time: float = 2.0
    _addresses: dict[str, str] = field(default_factory=dict)
    _stations: int = 0

    def add(self, ssid: str | bytes, password: str | bytes = b"", **more) -> AccessPoint:
        """Put up an access point."""
        raw = ssid.encode() if isinstance(ssid, str) else ssid
        key = password.encode() if isinstance(password, str) else password
        point = AccessPoint(raw, key, **more)
        self.points.append(point)
        return point

    @property
    def visible(self) -> list[AccessPoint]:
        """Access points that answer, strongest first."""
        return sorted((p for p in self.points if p.visible), key=lambda p: -p.rssi)

    def find(self, ssid: bytes, bssid: bytes | None = None) -> AccessPoint | None:
        """Return the strongest access point of this name."""
        for point in self.visible:
            if point.ssid == ssid and bssid in (None, point.bssid):
                return point
        return None

    def host(self, name: str, address: str, port: int | None = None) -> None:
        """Let ``name`` lead to a real address."""
        self.hosts[name.lower()] = (address, port)

    def station(self) -> str:
        """Return an address for another beacon."""
        self._stations += 1
        return str(STATIONS + self._stations - 1)

    def lookup(self, name: str) -> str | None:
        """Return the address, on the beacons' side, of a known name."""
        name = name.lower().rstrip(".")
        if name not in self.hosts:
            return None
        if name not in self._addresses:
            self._addresses[name] = str(HOSTS + len(self._addresses))
        return self._addresses[name]

    def real(self, address: str, port: int) -> tuple[str, int]:
        """Return where an address on the beacons' side really leads."""
        for name, given in self._addresses.items():
            if given == address and name in self.hosts:
                host, fixed = self.hosts[name]
                return host, port if fixed is None else fixed
        return address, port


class Link:
    """One beacon's way into the network, up while its WiFi is connected."""

    def __init__(self, network: Network, clock: Clock, changed) -> None:
        self.network = network
        self.clock = clock
        self.faults = Faults()
        self.address = network.station()
        self.received = 0  # bytes brought to the beacon
        self.sent = 0
        self.connections = 0
        self.up = asyncio.Event()
        self.dropped = lambda: None  # called when a fault takes WiFi away
        self._changed = changed
        self._targets: dict[tuple[str, int, int], _Target | _Relay] = {}
        self._flows: set[_Flow] = set()
        self._ready = 0.0  # when the shaper lets the next byte pass, in the loop's time

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

    def cut(self) -> None:
        """The chip was reset: its connections are forgotten, and the others are not told."""
        for flow in list(self._flows):
            flow.orphan()
        for target in self._targets.values():
            target.end()
        self._targets.clear()
        self.set_up(False)

    async def resolve(self, host: str, port: int, kind: int) -> Value:
        """``getaddrinfo``: return (address, port) on this machine.

        Raises:
            OSError: -202 when there is no answer, -2 when the name is unknown.
        """
        address = await self._address(host)
        if kind == DATAGRAM:
            return await self._datagrams(address, port)
        if self.faults.black_hole:
            return _black_hole()
        target = self._targets.get((address, port, kind))
        if not isinstance(target, _Target):
            target = _Target(self, self.network.real(address, port))
            self._targets[address, port, kind] = target
        await target.prepare()
        return target.address

    async def shape(self, size: int) -> None:
        """Wait until ``size`` bytes may pass."""
        faults, loop = self.faults, asyncio.get_running_loop()
        delay = faults.latency
        if faults.loss:
            segments = -(-size // SEGMENT)
            lost = sum(_random() < faults.loss for _ in range(segments))
            delay += lost * RETRANSMIT
        now = loop.time()
        if faults.throttle:
            self._ready = max(self._ready, now) + self.clock.real(size / faults.throttle)
        pause = max(self._ready - now, 0) + self.clock.real(delay)
        if pause > 0.001:
            await asyncio.sleep(pause)
        await self.up.wait()

    async def _address(self, host: str) -> str:
        if not self.up.is_set():
            raise OSError(EAI_FAIL)
        with contextlib.suppress(ValueError):
            return str(ipaddress.IPv4Address(host))
        if not self.faults.names:
            await asyncio.sleep(self.clock.real(NAME_TIMEOUT))
            raise OSError(EAI_FAIL)
        found = self.network.lookup(host)
        if found is None and self.network.outside:
            found = await _outside(host)
        if found is None:
            await asyncio.sleep(self.clock.real(NAME_TIMEOUT if host.endswith(".local") else 0.05))
            raise OSError(EAI_FAIL)
        return found

    async def _datagrams(self, address: str, port: int) -> Value:
        key = (address, port, DATAGRAM)
        relay = self._targets.get(key)
        if not isinstance(relay, _Relay):
            loop = asyncio.get_running_loop()
            answers = (address, port) == MDNS or (address, port) == (GATEWAY, DNS_PORT)
            make = _Resolver if answers else _Relay
            real = self.network.real(address, port)
            _, relay = await loop.create_datagram_endpoint(
                lambda: make(self, real), local_addr=("127.0.0.1", 0)
            )
            self._targets[key] = relay
        return relay.address


class _Target:
    """A destination of stream connections: a listener that is closed while nobody answers."""

    def __init__(self, link: Link, real: tuple[str, int]):
        self._link, self._real = link, real
        self._socket: socket.socket | None = None
        self._server: asyncio.Task | None = None
        self._spare: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._port = 0
        self._bind()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    async def prepare(self) -> None:
        """Find out whether the destination answers; its connection serves the next client."""
        if self._link.faults.refuse:
            self.close()
        elif self._spare is not None or await self._reach():
            self.open()
        else:
            self.close()

    def open(self) -> None:
        """Accept connections."""
        if self._server is None and self._socket is not None and not self._link.faults.refuse:
            self._socket.listen(8)
            self._server = asyncio.get_running_loop().create_task(self._accept(self._socket))

    def close(self) -> None:
        """Refuse connections, at the same port."""
        if self._server is not None:
            self._server.cancel()
            self._server = None
            self._bind()

    def end(self) -> None:
        """Give the port back."""
        self.close()
        self._drop_spare()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _bind(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setblocking(False)
        self._socket.bind(("127.0.0.1", self._port))
        self._port = self._socket.getsockname()[1]

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            loop.create_task(self._serve(client))

    async def _serve(self, client: socket.socket) -> None:
        self._link.connections += 1
        if self._spare is None and not await self._reach():
            _reset(client)
            self.close()
            return
        assert self._spare is not None
        theirs, self._spare = self._spare, None
        self._drop_spare()
        ours = await asyncio.open_connection(sock=client, limit=2 * CHUNK)
        await _Flow(self._link, ours, theirs).run()

    async def _reach(self) -> bool:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                self._spare = await asyncio.open_connection(*self._real, limit=2 * CHUNK)
        except (OSError, TimeoutError):
            return False
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_later(CONNECT_TIMEOUT, self._drop_spare)
        return True

    def _drop_spare(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self._spare is not None:
            self._spare[1].close()
            self._spare = None


class _Flow:
    """One connection, both ways."""

    def __init__(self, link: Link, ours, theirs) -> None:
        self._link = link
        self._ours, self._theirs = ours, theirs
        self._tasks: list[asyncio.Task] = []
        self._orphan = False

    async def run(self) -> None:
        link = self._link
        link._flows.add(self)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._down(self._theirs[0], self._ours[1])),
            loop.create_task(self._up(self._ours[0], self._theirs[1])),
        ]
        try:
            await asyncio.gather(*self._tasks)
        except (OSError, asyncio.CancelledError):
            for task in self._tasks:
                task.cancel()
        finally:
            link._flows.discard(self)
            self._ours[1].transport.abort()
            if not self._orphan:
                self._theirs[1].close()

    def orphan(self) -> None:
        """The beacon is gone without a word; the other side finds out by itself, or never."""
        self._orphan = True
        for task in self._tasks:
            task.cancel()
        transport = self._theirs[1].transport
        transport.pause_reading() if transport.is_reading() else None
        loop = asyncio.get_running_loop()
        loop.call_later(self._link.clock.real(30), transport.abort)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = self._link
        while data := await reader.read(CHUNK):
            await link.shape(len(data))
            link.sent += len(data)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # MicroPython closes both ways at once

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link, brought = self._link, 0
        while True:
            due = link.faults.next(brought)
            if due is not None and due[0] == 0 and await self._fail(due[1]):
                return
            size = CHUNK if due is None or due[0] == 0 else min(CHUNK, due[0])
            data = await reader.read(size)
            if not data:
                break
            await link.shape(len(data))
            brought += len(data)
            link.received += len(data)
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _fail(self, name: str) -> bool:
        """Let a fault happen; True when the connection is over."""
        link = self._link
        if not link.faults.again:
            setattr(link.faults, name, None)
        if name == "drop_after":
            link.dropped()
            return False
        if name == "stall_after":
            await asyncio.get_running_loop().create_future()
        if name == "close_after":
            with contextlib.suppress(OSError):
                self._ours[1].write_eof()
        else:
            raw = self._ours[1].get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._ours[1].transport.abort()
        raise ConnectionResetError


class _Relay(asyncio.DatagramProtocol):
    """A destination of datagrams: each client gets an outer socket of its own."""

    def __init__(self, link: Link, real: tuple[str, int]):
        self._link, self._real = link, real
        self._transport: asyncio.DatagramTransport | None = None
        self._outer: dict[tuple[str, int], asyncio.DatagramTransport] = {}

    @property
    def address(self) -> tuple[str, int]:
        assert self._transport is not None
        return self._transport.get_extra_info("sockname")[:2]

    def open(self) -> None:
        pass

    close = open

    def end(self) -> None:
        for transport in [self._transport, *self._outer.values()]:
            if transport is not None:
                transport.close()

    def connection_made(self, transport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr) -> None:
        if self._link.up.is_set() and _random() >= self._link.faults.loss:
            asyncio.get_running_loop().create_task(self._forward(data, addr))

    def answer(self, data: bytes, addr) -> None:
        """Send a datagram back to the beacon."""
        if self._transport is not None and self._link.up.is_set():
            self._transport.sendto(data, addr)

    async def _forward(self, data: bytes, addr) -> None:
        if addr not in self._outer:
            loop = asyncio.get_running_loop()
            with contextlib.suppress(OSError):
                self._outer[addr], _ = await loop.create_datagram_endpoint(
                    lambda: _Outer(self, addr), remote_addr=self._real
                )
        if addr in self._outer:
            self._outer[addr].sendto(data)


class _Outer(asyncio.DatagramProtocol):
    def __init__(self, relay: _Relay, client) -> None:
        self._relay, self._client = relay, client

    def datagram_received(self, data: bytes, addr) -> None:
        self._relay.answer(data, self._client)


class _Resolver(_Relay):
    """The name server, and whoever answers multicast questions."""

    async def _forward(self, data: bytes, addr) -> None:
        link = self._link
        if not link.faults.names:
            return
        reply = dns.answer(data, link.network, silent=self._real == MDNS)
        if reply is not None:
            await asyncio.sleep(link.clock.real(0.005 + link.faults.latency))
            self.answer(reply, addr)


_holes: list[socket.socket] = []


def _black_hole() -> tuple[str, int]:
    """Return an address that neither accepts nor refuses: a listener whose queue is full."""
    if not _holes:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        _holes.append(listener)
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            _holes.append(filler)
    return _holes[0].getsockname()


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


async def _outside(host: str) -> str | None:
    loop = asyncio.get_running_loop()
    try:
        found: Iterable = await loop.getaddrinfo(host, None, family=socket.AF_INET)
    except OSError:
        return None
    return next((str(item[4][0]) for item in found), None)


def _random() -> float:
    return random.random()
