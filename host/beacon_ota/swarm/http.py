"""HTTP/1.1 as a beacon speaks it: one request per connection, every answer bounded.

Straight on the event loop's protocols: ten thousand beacons in one process leave no time for more.
A connection can be kept for further requests, which is how a load generator asks for its ceiling.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from beacon_ota.errors import UsageError

HEAD = 8 * 1024  # bytes of an answer's head
BODY = 10 * 1024  # bytes of an answer that is no download, as on the beacon
_SLOW_BUFFER = 8 * 1024  # of the kernel, for readers that take their time


class ExchangeError(Exception):
    """An exchange that came to nothing; the word is one of stage ``download``."""

    def __init__(self, code: str):
        super().__init__(code)
        self.code = code


class HttpAnswer(NamedTuple):
    """What came back; the body of a download went to its sink."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class ServerAddress(NamedTuple):
    """Where an orchestrator listens."""

    host: str
    port: int

    @classmethod
    def parse_url(cls, url: str) -> "ServerAddress":
        """Read an URL (UsageError ``swarm_url``); beacons on a LAN speak plain HTTP."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise UsageError("swarm_url", "the swarm speaks http", found=url, expected="http://…")
        return cls(parts.hostname, parts.port or 80)


class DownloadSink:
    """Takes the body of a download, at a rate.

    Args:
        take: is called with each piece.
        rate: bytes per second of the wall clock, None for as fast as it comes.
        stop_after: break off when so many bytes have come.
    """

    def __init__(
        self,
        take: Callable[[bytes], object],
        rate: float | None = None,
        stop_after: int | None = None,
    ):
        self.on_piece = take
        self.rate = rate
        self.stop_after = stop_after


class Connection(asyncio.Protocol):
    """A connection to the orchestrator; one exchange at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._waiter: asyncio.Future[HttpAnswer] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sink: DownloadSink | None = None

    @classmethod
    async def open(
        cls, place: ServerAddress, patience_s: float, slow: bool = False
    ) -> "Connection":
        """Connect.

        Raises:
            Broken: ``connect``.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience_s):
                _, made = await loop.create_connection(cls, place.host, place.port)
        except (OSError, TimeoutError):
            raise ExchangeError("connect") from None
        if slow:
            sock = made._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER)
        return made

    def send_request(
        self, request: bytes, patience_s: float, sink: DownloadSink | None = None
    ) -> "asyncio.Future[HttpAnswer]":
        """Send a request; the future gets the answer.

        Args:
            patience_s: wall-clock seconds in which nothing may come.
            sink: for the body of a 200 or 206; without one, at most :data:`BODY` bytes are taken.

        Raises:
            Broken: ``truncated``, ``stall``, ``http``.
        """
        self._waiter = self._loop.create_future()
        self._sink = sink
        self._patience = patience_s
        self._heard = self._loop.time()
        self._began = 0.0
        self._got = 0
        self._buffer = b""
        self._head: tuple[int, dict[bytes, bytes]] | None = None
        self._left = 0
        if self._timer is None:
            self._timer = self._loop.call_later(patience_s, self._check_timeout)
        if self._transport.is_closing():
            self._reject_answer("truncated")
        else:
            self._transport.write(request)
        return self._waiter

    def close(self) -> None:
        """Let go of the connection, whatever is under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport.abort()

    # ---- called by the loop

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._reject_answer("truncated")

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            return
        self._heard = self._loop.time()
        if self._head is None:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > HEAD:
                    self._reject_answer("http")
                return
            data, head = self._buffer[end + 4 :], self._buffer[:end]
            self._buffer = b""
            if not self._read_head(head):
                self._reject_answer("http")
                return
            self._began = self._heard
        self._left -= len(data)
        if self._sink is None:
            self._buffer += data
        elif data:
            self._feed_sink(data)
        if self._left <= 0:
            self._resolve_answer()

    def _read_head(self, head: bytes) -> bool:
        lines = head.split(b"\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        length = headers.get(b"content-length", b"0")
        if not lines[0][9:12].isdigit() or not length.isdigit() or len(length) > 9:
            return False
        status = int(lines[0][9:12])
        self._left = 0 if status in (204, 304) else int(length)
        if status not in (200, 206):
            self._sink = None
        if self._sink is None and self._left > BODY:
            return False
        self._head = (status, headers)
        return True

    def _feed_sink(self, data: bytes) -> None:
        sink = self._sink
        assert sink is not None
        stop = sink.stop_after
        if stop is not None and self._got + len(data) >= stop:
            sink.on_piece(data[: stop - self._got])
            self._reject_answer("truncated")
            self._transport.abort()
            return
        sink.on_piece(data)
        self._got += len(data)
        if sink.rate is not None:
            ahead = self._got / sink.rate - (self._heard - self._began)
            if ahead > 0.01 and self._left > 0:
                self._transport.pause_reading()
                self._heard += ahead  # it is we who wait
                self._loop.call_later(ahead, self._resume_reading)

    def _resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _resolve_answer(self) -> None:
        assert self._head is not None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(HttpAnswer(*self._head, self._buffer))

    def _reject_answer(self, code: str) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ExchangeError(code))

    def _check_timeout(self) -> None:
        """Has nothing come for too long? One timer per connection, however many pieces come."""
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        rest = self._heard + self._patience - self._loop.time()
        if rest > 0:
            self._timer = self._loop.call_later(rest, self._check_timeout)
        else:
            self._reject_answer("stall")
            self._transport.abort()
