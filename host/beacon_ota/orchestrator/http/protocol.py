"""uvicorn's HTTP/1.1 protocol on httptools, with bounds on unfinished and pipelined input.

Received bytes are parsed in small pieces, and only up to the end of the request that is being
answered: pipelined requests stay bytes until their turn. So a connection costs a read buffer and
a few requests, whatever the client sends.
"""

import asyncio
import contextlib
import socket
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from beacon_ota.orchestrator.http.asgi import ABORT_EXTENSION, PROVE_EXTENSION
from beacon_ota.orchestrator.http.coalesce import CoalescingTransport
from beacon_ota.orchestrator.http.connections import ConnectionTable
from beacon_ota.orchestrator.limits import LIMITS

# Socket options, where the kernel has them: drop a peer that acknowledges nothing for this long,
# and buffer at most so many unsent bytes. Otherwise the kernel would buffer whole images for slow
# readers, and a reader that takes nothing would not be noticed.
_SOCKET_OPTIONS = tuple(
    (getattr(socket, name), value)
    for name, value in (
        ("TCP_USER_TIMEOUT", int(LIMITS.send_stall * 1000)),
        ("TCP_NOTSENT_LOWAT", LIMITS.chunk // 2),
    )
    if hasattr(socket, name)
)
_RESPONSE_431 = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)
_BODY_FACTOR = 8  # bytes on the wire per byte of a chunked body, at most


class _HoldingFlowControl(FlowControl):
    """Flow control that keeps reading paused while received bytes are unparsed."""

    has_unparsed = False

    def resume_reading(self) -> None:
        if not self.has_unparsed:
            super().resume_reading()


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds on input that is unfinished or sent ahead.

    A request head is bounded in bytes, fields and time. The kernel drops a client that takes no
    data, so that a download without a reader does not hold its image for ever.

    Args:
        table: the table of connections, which may drop this one.
        admitted: the connection is in the table already (TLS: since before the handshake).
    """

    flow: _HoldingFlowControl

    def __init__(self, *args: Any, table: ConnectionTable, admitted: bool = False, **named: Any):
        super().__init__(*args, **named)
        self.address = ""
        self._table = table
        self._admitted = admitted
        self._timer: asyncio.TimerHandle | None = None
        self._received = b""  # bytes that are not parsed yet
        self._ignoring = False  # input is discarded: the connection ends with the last answer
        self._in_head = True  # between two requests, or in a head
        self._head_bytes = 0  # of the present head, received so far
        self._body_bytes = 0  # of the present body, decoded
        self._body_wire_bytes = 0  # of the same body as it was sent, with chunk headers
        self._unread_bytes = 0  # of the same body, received after its answer
        self._too_large = False

    # ---- the connection ----

    def connection_made(self, transport: Any) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _HoldingFlowControl(transport)
        self.transport = CoalescingTransport(transport, self.loop)  # type: ignore[assignment]
        self.address = self.client[0] if self.client else ""
        if not self._admitted and not self._table.admit(self):
            return
        sock = transport.get_extra_info("socket")
        for option, value in _SOCKET_OPTIONS:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self._start_head_timer()
        if self._received:  # arrived with the end of the handshake
            self._parse_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._ignoring, self._received = True, b""
        self._table.remove(self)
        if self.transport is not None:
            super().connection_lost(exc)

    @property
    def idle(self) -> bool:
        """Whether no request waits for its answer."""
        return self._in_head and not self._awaits_answer and not self._received

    def drop(self) -> None:
        """Close at once, because the table needs the place."""
        self._ignoring = True
        if self.transport is not None and not self.transport.is_closing():
            self.transport.abort()

    def _mark_proven(self, kind: str) -> None:
        if not self._table.mark_proven(self, kind) and self.cycle is not None:
            self.cycle.keep_alive = False

    # ---- what comes in ----

    @property
    def _awaits_answer(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        if self._ignoring:
            return
        if self._received or len(data) > LIMITS.parsed_ahead or self.transport is None:
            self._received += data
        elif self._must_wait():
            self._received = data
        else:
            self._feed_parser(data)
            return
        if self.transport is not None:
            self._parse_received()

    def _parse_received(self) -> None:
        """Parse the received bytes, up to the end of the request that is to be answered next."""
        received, at = memoryview(self._received), 0
        while at < len(received) and not self._ignoring and not self._must_wait():
            piece = bytes(received[at : at + LIMITS.parsed_ahead])
            at += len(piece)
            self._feed_parser(piece)
        self._received = b"" if self._ignoring else bytes(received[at:])
        self.flow.has_unparsed = bool(self._received)
        if self.transport.is_closing():
            return
        if self.flow.has_unparsed:
            self.flow.pause_reading()
        elif not self.pipeline and not (self._awaits_answer and self.cycle.body):
            self.flow.resume_reading()  # otherwise the application resumes by reading the body

    def _must_wait(self) -> bool:
        """Tell whether parsing has to wait for an answer."""
        return bool(self.pipeline) or (self._in_head and self._awaits_answer)

    def _feed_parser(self, piece: bytes) -> None:
        if self._in_head and self._timer is None:
            self._start_head_timer()
        super().data_received(piece)
        if self.transport.is_closing():
            self._ignoring = True
        elif self._in_head:
            self._head_bytes += len(piece)
            if self._head_bytes > LIMITS.head:
                self._too_large = True
                self.send_400_response("")
        else:
            self._body_wire_bytes += len(piece)
            spare = self._body_wire_bytes - _BODY_FACTOR * self._body_bytes
            if self.cycle.response_complete:
                self._unread_bytes += len(piece)
            if spare > LIMITS.body_overhead or self._unread_bytes > LIMITS.body_unread:
                self._ignoring = True
                self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Refuse malformed input; answers that are under way are finished first."""
        self._ignoring = True
        cycle = self.cycle
        if self._awaits_answer and (self._in_head or self.pipeline):
            cycle.keep_alive = False
        elif self._awaits_answer and cycle.response_started:
            self.transport.abort()
        elif self._too_large:
            self.transport.write(_RESPONSE_431)
            self.transport.close()
        else:
            super().send_400_response(msg)

    def _unsupported_upgrade_warning(self) -> None:
        """Answer the request that asks for an upgrade, then close: more bytes may not be HTTP."""
        self._ignoring = True
        if self.cycle is not None:
            self.cycle.keep_alive = False

    # ---- the parser's callbacks ----

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self.scope["extensions"] = {  # type: ignore[typeddict-unknown-key]
            ABORT_EXTENSION: self.transport.abort,
            PROVE_EXTENSION: self._mark_proven,
        }

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer is ignored: only headers decide about a request
        if len(self.headers) >= LIMITS.head_fields:
            self._too_large = True
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = self._body_wire_bytes = self._body_bytes = self._unread_bytes = 0
        self._stop_head_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._ignoring:
            if not self.pipeline and not self.transport.is_closing():
                self.transport.close()
        elif self._received:
            self.loop.call_soon(self._parse_more)
        elif not self._in_head:
            self._start_head_timer()  # bounds the rest of a refused body

    def _parse_more(self) -> None:
        if self._received and not self.transport.is_closing():
            self._parse_received()

    # ---- the time for a head ----

    def _start_head_timer(self) -> None:
        self._stop_head_timer()
        self._timer = self.loop.call_later(LIMITS.head_time, self._on_head_timeout)

    def _stop_head_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_head_timeout(self) -> None:
        self._timer = None
        if self._awaits_answer:
            self._start_head_timer()
        elif not self.transport.is_closing():
            self.transport.abort()
