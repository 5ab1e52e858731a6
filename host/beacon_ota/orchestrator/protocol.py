"""uvicorn's HTTP/1.1 on httptools, with bounds of our own."""

import asyncio
import contextlib
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from beacon_ota.orchestrator.asgi import ABORT
from beacon_ota.orchestrator.joined import Joined
from beacon_ota.orchestrator.limits import LIMITS

_HEAD_BYTES = 32 * 1024  # of a request line and its headers
_HEAD_S = 20.0  # until they are complete; also for a connection that says nothing

# What the kernel does for each connection, where it can: give up on a peer that acknowledges
# nothing any more, and hold no more than this of what was not sent yet (it would take whole images
# for slow readers, and we would not see that they stand still).
_TCP = tuple(
    (getattr(socket, name), value)
    for name, value in (
        ("TCP_USER_TIMEOUT", int(LIMITS.send_stall * 1000)),
        ("TCP_NOTSENT_LOWAT", LIMITS.chunk // 2),
    )
    if hasattr(socket, name)
)


class Protocol(HttpToolsProtocol):
    """uvicorn's, with bounds on what a peer may leave unfinished.

    A request head is bounded in bytes and time; a peer that takes nothing of what was sent is
    dropped by the kernel, so that a reader that went away does not hold its image for ever.
    """

    _timer: asyncio.TimerHandle | None = None
    _head = 0
    _heading = True

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.transport = Joined(transport, self.loop)  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        for option, value in _TCP:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._heading:
            self._head += len(data)
            if self._head > _HEAD_BYTES + LIMITS.chunk:
                self.transport.abort()
                return
            if self._timer is None:
                self._arm()
        super().data_received(data)
        if self._heading and self._head > _HEAD_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore

    def on_headers_complete(self) -> None:
        self._heading = False
        self._head = 0
        self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._heading = True
        super().on_message_complete()

    def _arm(self) -> None:
        self._timer = self.loop.call_later(_HEAD_S, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()
