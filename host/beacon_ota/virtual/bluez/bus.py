"""A system bus with one service, ``org.bluez``: the wire protocol of D-Bus over a local socket.

Programs find it by ``DBUS_SYSTEM_BUS_ADDRESS``. It authenticates nobody, hands every signal to each
program that has asked for any, and knows the few calls of the bus itself that programs make.
"""

import asyncio
import io
import struct
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Protocol

from dbus_fast import Message, MessageType
from dbus_fast._private.unmarshaller import Unmarshaller

BUS = "org.freedesktop.DBus"
BLUEZ = "org.bluez"
OWNER = ":1.0"  # the unique name of the service
MAX_MESSAGE = 1 << 20
_GUID = b"0123456789abcdef0123456789abcdef"
_SERVICE_UNKNOWN = "org.freedesktop.DBus.Error.ServiceUnknown"
_MISSING = "The name org.bluez was not provided by any .service files"


class CallError(Exception):
    """A D-Bus error as the answer to a call: its name and its text."""

    def __init__(self, name: str, text: str):
        super().__init__(text)
        self.name, self.text = name, text


# What answers a call: the signature and the body of the answer.
Answer = tuple[str, list[Any]]


class Service(Protocol):
    """What stands behind ``org.bluez``."""

    async def answer(self, sender: str, call: Message) -> Answer:
        """Answer a call.

        Raises:
            CallError: the answer is an error.
        """
        ...

    def on_peer_gone(self, sender: str) -> None:
        """A program has left the bus, or was killed."""


class SystemBus:
    """The bus; use it in the event loop of the space.

    Args:
        path: of its socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._peers: set[BusPeer] = set()
        self._names = 0
        self.service: Service | None = None

    async def open(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: BusPeer(self), str(self._path))

    def close(self) -> None:
        """Stop listening, and drop every program: what a bus that is killed does."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for peer in tuple(self._peers):
            peer.drop()
        self._path.unlink(missing_ok=True)

    def set_service(self, service: Service | None) -> None:
        """Have a service own the name, or none, and say so to everybody."""
        before = OWNER if self.service else ""
        self.service = service
        owner = OWNER if service else ""
        self.emit(
            Message.new_signal(
                "/org/freedesktop/DBus", BUS, "NameOwnerChanged", "sss", [BLUEZ, before, owner]
            ),
            sender=BUS,
        )

    def emit(self, signal: Message, sender: str = OWNER) -> None:
        """Hand a signal to each program that listens."""
        signal.sender = sender
        for peer in tuple(self._peers):
            if peer.listens:
                peer.send(signal)

    def new_name(self, peer: "BusPeer") -> str:
        """Return the unique name of a program that has said hello."""
        self._names += 1
        self._peers.add(peer)
        return f":1.{self._names}"

    def on_gone(self, peer: "BusPeer") -> None:
        self._peers.discard(peer)
        if self.service is not None and peer.name:
            self.service.on_peer_gone(peer.name)


class BusPeer(asyncio.Protocol):
    """One program on the bus."""

    def __init__(self, bus: SystemBus) -> None:
        self._bus = bus
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._begun = False
        self._serial = 0
        self._calls: set[asyncio.Task[None]] = set()
        self.name = ""
        self.listens = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._bus.on_gone(self)

    def drop(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()

    def send(self, message: Message) -> None:
        """Send a message; its sender is set."""
        if self._transport is None or self._transport.is_closing():
            return
        self._serial += 1
        message.serial = self._serial
        self._transport.write(message._marshall(False))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while not self._begun and b"\r\n" in self._buffer:
            line, self._buffer = self._buffer.split(b"\r\n", 1)
            self._authenticate(line.lstrip(b"\0"))
        while self._begun and (size := self._message_size()) and len(self._buffer) >= size:
            raw, self._buffer = self._buffer[:size], self._buffer[size:]
            message = Unmarshaller(io.BytesIO(raw), negotiate_unix_fd=False).unmarshall()  # type: ignore[arg-type]
            if message is not None and message.message_type is MessageType.METHOD_CALL:
                self._take_call(message)

    def _authenticate(self, line: bytes) -> None:
        assert self._transport is not None
        if line.startswith(b"AUTH EXTERNAL"):
            self._transport.write(b"OK " + _GUID + b"\r\n")
        elif line == b"NEGOTIATE_UNIX_FD":
            self._transport.write(b"AGREE_UNIX_FD\r\n")
        elif line == b"BEGIN":
            self._begun = True
        else:
            self._transport.write(b"REJECTED EXTERNAL\r\n")

    def _message_size(self) -> int:
        """Return the size of the message at the start of the buffer, 0 while that is unknown."""
        if len(self._buffer) < 16:
            return 0
        order = "<" if self._buffer[:1] == b"l" else ">"
        body, _, fields = struct.unpack_from(order + "III", self._buffer, 4)
        size = 16 + (fields + 7) // 8 * 8 + body
        if size > MAX_MESSAGE:
            self.drop()
            return 0
        return size

    def _take_call(self, call: Message) -> None:
        if call.destination == BUS:
            self._reply(call, *self._answer_bus_call(call))
            return
        if self._bus.service is None or call.destination != BLUEZ:
            self._refuse(call, CallError(_SERVICE_UNKNOWN, _MISSING))
            return
        task = asyncio.get_running_loop().create_task(
            self._serve(call, self._bus.service.answer(self.name, call))
        )
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _serve(self, call: Message, answer: Awaitable[Answer]) -> None:
        service = self._bus.service
        try:
            signature, body = await answer
        except CallError as error:
            self._refuse(call, error)
            return
        if self._bus.service is service:  # a service that was killed answers nobody
            self._reply(call, signature, body)
        else:
            no_reply = "Message recipient disconnected from message bus without replying"
            self._refuse(call, CallError("org.freedesktop.DBus.Error.NoReply", no_reply))

    def _reply(self, call: Message, signature: str = "", body: list[Any] | None = None) -> None:
        answer = Message.new_method_return(call, signature, body or [])
        answer.sender, answer.destination = call.destination or BUS, self.name
        self.send(answer)

    def _refuse(self, call: Message, error: CallError) -> None:
        answer = Message.new_error(call, error.name, error.text)
        answer.sender, answer.destination = call.destination or BUS, self.name
        self.send(answer)

    def _answer_bus_call(self, call: Message) -> Answer:
        if call.member == "Hello":
            self.name = self._bus.new_name(self)
            return "s", [self.name]
        if call.member == "AddMatch":
            self.listens = True
        elif call.member == "NameHasOwner":
            return "b", [call.body[0] == BLUEZ and self._bus.service is not None]
        return "", []
