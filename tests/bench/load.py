"""The load generator: the same one for every server, and cheap enough not to be what is measured.

Requests are made before the clock starts. Nothing is a coroutine per request: a connection's
protocol sends the next one as soon as the answer to the last is complete.
"""

import asyncio
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from beacon_ota.swarm.http import ServerAddress

_BUFFER = 1 << 20


class Tally:
    """What came of a load."""

    def __init__(self, end: float):
        self.end = end  # on the performance counter
        self.times: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.bytes = 0
        self.lost = 0  # connections that the server closed

    def result(self, took: float) -> dict[str, Any]:
        """Return rates and times."""
        times = sorted(self.times) or [0.0]
        return {
            "requests_per_s": round(len(self.times) / took),
            "requests": len(self.times),
            "mb_per_s": round(self.bytes / took / 1e6, 1),
            "p50_ms": round(statistics.median(times) * 1000, 2),
            "p99_ms": round(times[int(len(times) * 0.99)] * 1000, 2),
            "statuses": dict(self.statuses),
            "lost": self.lost,
            "seconds": round(took, 2),
        }


class Loader(asyncio.BufferedProtocol):
    """One connection: request after request out of a common stock."""

    def __init__(self, stock: Iterator[bytes], tally: Tally, done: asyncio.Future[None]):
        self._stock, self._tally, self._done = stock, tally, done
        self._buffer = memoryview(bytearray(_BUFFER))
        self._head = b""
        self._left = -1  # of the body; -1 while the head arrives
        self._status = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._next()

    def _next(self) -> None:
        now = time.perf_counter()
        request = next(self._stock, None) if now < self._tally.end else None
        if request is None:
            self._transport.close()
            self._finish()
            return
        self._began = now
        self._transport.write(request)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._tally.bytes += nbytes
        if self._left < 0:
            self._head += bytes(self._buffer[:nbytes])
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            nbytes = len(self._head) - end - 4
            self._status = int(self._head[9:12])
            self._left = length(self._head[: end + 2])
            self._head = b""
        self._left -= nbytes
        if self._left <= 0:
            self._left = -1
            self._tally.times.append(time.perf_counter() - self._began)
            self._tally.statuses[self._status] += 1
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._tally.lost += 1
            self._finish()

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)


def length(head: bytes) -> int:
    """Return what a head says of its body's length."""
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        at = head.lower().find(b"\r\ncontent-length:")
    return int(head[at + 17 : head.find(b"\r\n", at + 2)]) if at >= 0 else 0


async def hammer(
    url: str, requests: Iterable[bytes], connections: int, seconds: float
) -> dict[str, Any]:
    """Send requests over so many connections, each waiting for its answer; return the rates."""
    place = ServerAddress.parse_url(url)
    loop = asyncio.get_running_loop()
    stock = iter(requests)
    began = time.perf_counter()
    tally = Tally(began + seconds)
    ends = [loop.create_future() for _ in range(connections)]
    for end in ends:
        await loop.create_connection(
            lambda end=end: Loader(stock, tally, end), place.host, place.port
        )
    async with asyncio.timeout(seconds + 120):
        await asyncio.gather(*ends)
    return tally.result(time.perf_counter() - began)


async def slow_readers(
    url: str, requests: list[bytes], rate: int, seconds: int, look
) -> dict[str, Any]:
    """Readers with small buffers that take ``rate`` bytes a second each.

    Args:
        requests: one for each reader.
        look: returns a number that is watched for its peak.
    """
    place = ServerAddress.parse_url(url)
    loop = asyncio.get_running_loop()
    before = peak = look()
    socks = []
    for request in requests:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.setblocking(False)
        await loop.sock_connect(sock, (place.host, place.port))
        await loop.sock_sendall(sock, request)
        socks.append(sock)
    total = 0
    for _ in range(seconds * 4):
        await asyncio.sleep(0.25)
        for sock in socks:
            try:
                total += len(sock.recv(rate // 4))
            except BlockingIOError:
                pass
        peak = max(peak, look())
    for sock in socks:
        sock.close()
    return {
        "readers": len(socks),
        "kb_per_reader": round((peak - before) / 1024 / len(socks), 1),
        "read_mb": round(total / 1e6, 1),
        "expected_mb": round(rate * seconds * len(socks) / 1e6, 1),
    }
