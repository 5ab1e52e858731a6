"""Local stand-ins for what a beacon connects to: listeners, connections, datagrams.

A :class:`~beacon_ota.virtual.net.shaper.Shaper` paces their bytes; its faults are carried out here.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Coroutine
from typing import cast

from beacon_ota.virtual.net import dns
from beacon_ota.virtual.net.shaper import TrafficShaper

CHUNK = 16 * 1024
CONNECT_TIMEOUT = 3.0  # real seconds for a connection to the real destination
DNS_TIME = 0.005  # seconds that a name server thinks
HALF_OPEN = 30.0  # seconds a connection outlives the beacon that forgot it

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_running: set[asyncio.Task] = set()  # the loop itself keeps no reference to its tasks


def spawn_task(coroutine: Coroutine) -> asyncio.Task:
    """Start a task that runs to its end although nobody waits for it."""
    task = asyncio.get_running_loop().create_task(coroutine)
    _running.add(task)
    task.add_done_callback(_finish_task)
    return task


def _finish_task(task: asyncio.Task) -> None:
    """Forget a task. That a connection broke is what it was for; anything else is reported."""
    _running.discard(task)
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, OSError):
        context = {"message": "a virtual connection failed", "exception": error, "task": task}
        task.get_loop().call_exception_handler(context)


class StreamProxy:
    """A destination of stream connections: a listener that is closed while nobody answers."""

    def __init__(self, shaper: TrafficShaper, real: tuple[str, int]):
        self._shaper, self._real = shaper, real
        self._socket: socket.socket | None = None
        self._server: asyncio.Task | None = None
        self._spare: Streams | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._port = 0
        self._bind_socket()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    async def probe_destination(self) -> None:
        """Find out whether the destination answers; its connection serves the next client."""
        if self._shaper.faults.refuse:
            self.close()
        elif (self._spare and not self._spare[0].at_eof()) or await self._open_spare():
            self.open()
        else:
            self.close()

    def open(self) -> None:
        """Accept connections."""
        if self._server is None and self._socket is not None and not self._shaper.faults.refuse:
            self._socket.listen(8)
            self._server = spawn_task(self._accept_clients(self._socket))

    def close(self) -> None:
        """Refuse connections, at the same port."""
        if self._server is not None:
            self._server.cancel()
            self._server = None
            # The cancelled accept takes its reader away a moment later, by number: whatever has
            # got the number by then would lose its own.
            if self._socket is not None:
                asyncio.get_running_loop().remove_reader(self._socket)
            self._bind_socket()

    def release_port(self) -> None:
        """Give the port back."""
        self.close()
        self._drop_spare()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _bind_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setblocking(False)
        self._socket.bind(("127.0.0.1", self._port))
        self._port = self._socket.getsockname()[1]

    async def _accept_clients(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            spawn_task(self._serve_client(client))

    async def _serve_client(self, client: socket.socket) -> None:
        faults = self._shaper.faults
        self._shaper.connections += 1
        theirs = None
        if not faults.refuse:
            theirs = self._take_spare() or await self._connect_destination()
        if theirs is None:
            _reset_connection(client)
            self.close()
            return
        ours = await asyncio.open_connection(sock=client, limit=2 * CHUNK)
        await ProxiedConnection(self._shaper, ours, theirs).run()

    async def _connect_destination(self) -> Streams | None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                return await asyncio.open_connection(*self._real, limit=2 * CHUNK)
        except (OSError, TimeoutError):
            return None

    async def _open_spare(self) -> bool:
        """Open a spare connection; False when nobody answers."""
        self._spare = await self._connect_destination()
        if self._spare is None:
            return False
        loop = asyncio.get_running_loop()
        self._expiry = loop.call_later(CONNECT_TIMEOUT, self._drop_spare)
        return True

    def _take_spare(self) -> Streams | None:
        spare = self._spare
        if spare is not None and spare[0].at_eof():
            self._drop_spare()
            return None
        self._spare = None
        self._drop_spare()
        return spare

    def _drop_spare(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self._spare is not None:
            self._spare[1].close()
            self._spare = None


class ProxiedConnection:
    """One connection, both ways."""

    def __init__(self, shaper: TrafficShaper, ours: Streams, theirs: Streams):
        self._shaper = shaper
        self._ours, self._theirs = ours, theirs
        self._tasks: list[asyncio.Task] = []
        self._orphan = False

    async def run(self) -> None:
        shaper = self._shaper
        shaper.flows.add(self)
        self._tasks = [
            spawn_task(self._send_downstream(self._theirs[0], self._ours[1])),
            spawn_task(self._send_upstream(self._ours[0], self._theirs[1])),
        ]
        try:
            await asyncio.gather(*self._tasks)
        except (OSError, asyncio.CancelledError):
            for task in self._tasks:
                task.cancel()
        finally:
            shaper.flows.discard(self)
            self._ours[1].transport.abort()
            if not self._orphan:
                self._theirs[1].close()

    def abandon(self) -> None:
        """The beacon is gone without a word; the other side finds out by itself, or never."""
        self._orphan = True
        for task in self._tasks:
            task.cancel()
        transport = cast(asyncio.Transport, self._theirs[1].transport)
        if transport.is_reading():
            transport.pause_reading()
        loop = asyncio.get_running_loop()
        loop.call_later(self._shaper.clock.real_seconds(HALF_OPEN), transport.abort)

    async def _send_upstream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        shaper = self._shaper
        while data := await reader.read(CHUNK):
            await shaper.wait_for_turn(len(data))
            shaper.sent += len(data)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # MicroPython closes both ways at once

    async def _send_downstream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        shaper, brought = self._shaper, 0
        while True:
            due = shaper.faults.next_fault(brought)
            if due is not None and due[0] == 0 and await self._inject_fault(due[1]):
                return
            size = CHUNK if due is None or due[0] == 0 else min(CHUNK, due[0])
            data = await reader.read(size)
            if not data:
                break
            await shaper.wait_for_turn(len(data))
            brought += len(data)
            shaper.received += len(data)
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _inject_fault(self, name: str) -> bool:
        """Let a fault happen; True when the connection is over."""
        shaper = self._shaper
        if not shaper.faults.again:
            setattr(shaper.faults, name, None)
        if name == "drop_after":
            shaper.on_wifi_lost()
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


class DatagramProxy(asyncio.DatagramProtocol):
    """A destination of datagrams: each client gets an outer socket of its own."""

    def __init__(self, shaper: TrafficShaper, real: tuple[str, int]):
        self._shaper, self._real = shaper, real
        self._transport: asyncio.DatagramTransport | None = None
        self._outer: dict[tuple[str, int], asyncio.DatagramTransport] = {}

    @property
    def address(self) -> tuple[str, int]:
        assert self._transport is not None
        return self._transport.get_extra_info("sockname")[:2]

    def open(self) -> None:
        pass

    close = open

    def release_port(self) -> None:
        for transport in [self._transport, *self._outer.values()]:
            if transport is not None:
                transport.close()

    def connection_made(self, transport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr) -> None:
        if self._shaper.up.is_set() and random.random() >= self._shaper.faults.loss:
            spawn_task(self._forward_datagram(data, addr))

    def send_reply(self, data: bytes, addr) -> None:
        """Send a datagram back to the beacon."""
        if self._transport is not None and self._shaper.up.is_set():
            self._transport.sendto(data, addr)

    async def _forward_datagram(self, data: bytes, addr) -> None:
        if addr not in self._outer:
            loop = asyncio.get_running_loop()
            with contextlib.suppress(OSError):
                self._outer[addr], _ = await loop.create_datagram_endpoint(
                    lambda: _Outer(self, addr), remote_addr=self._real
                )
        if addr in self._outer:
            self._outer[addr].sendto(data)


class _Outer(asyncio.DatagramProtocol):
    def __init__(self, relay: DatagramProxy, client) -> None:
        self._relay, self._client = relay, client

    def datagram_received(self, data: bytes, addr) -> None:
        self._relay.send_reply(data, self._client)


class NameServer(DatagramProxy):
    """The name server, or whoever answers multicast questions (``silent``: only known ones)."""

    def __init__(self, shaper: TrafficShaper, silent: bool):
        super().__init__(shaper, ("", 0))
        self._silent = silent

    async def _forward_datagram(self, data: bytes, addr) -> None:
        shaper = self._shaper
        if not shaper.faults.names:
            return
        reply = dns.answer_query(data, shaper.network, silent=self._silent)
        if reply is not None:
            await asyncio.sleep(shaper.clock.real_seconds(DNS_TIME + shaper.faults.latency))
            self.send_reply(reply, addr)


_holes: list[socket.socket] = []


def black_hole_address() -> tuple[str, int]:
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


def _reset_connection(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
