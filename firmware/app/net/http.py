# The part of HTTP/1.1 that a beacon needs: one request per connection, the answer read piece by
# piece into the caller's buffers. The head, every line and every wait are bounded, and the peer
# sizes no buffer. Headers that a beacon does not use are dropped as they arrive, however long, many
# or odd proxies make them. A read first takes the bytes that have already arrived and asks the
# poller only when there are none, which makes a download nearly as fast as a bare loop.

import asyncio
import errno
import socket
import time
from asyncio import core

from micropython import const

_LINE = const(512)  # bytes of a status or chunk-size line, and of a header that is read
_HEAD = const(16384)  # bytes of a whole head, interim answers included
_INTERIM = const(8)  # answers before the answer (1xx)
_BUFFER = const(256)
_CONNECT = const(10000)  # ms for a connection
_SPIN = const(3)  # ms for which a download looks again before it asks the poller

# Exceptions of sockets; a certificate that is refused is a ValueError.
_BROKEN = (OSError, ValueError)

_KEPT = const(
    (
        "content-length",
        "content-range",
        "retry-after",
        "transfer-encoding",
        "x-beacon-mac",
    )
)


# Why an exchange failed. `code` is one of stage "download": connect, http, stall, truncated,
# timeout. `refused`: the orchestrator answered and refused this beacon, so it is not away.
# `status` is the answer's, 0 without one; `retry` the seconds of its Retry-After header.
class HttpError(Exception):
    def __init__(self, code, detail, refused=False, status=0, retry=None):
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.refused = refused
        self.status = status
        self.retry = retry


# Waits until the socket can be read or written; asyncio offers this for streams only.
def _socket_ready(sock, write):
    if write:
        yield core._io_queue.queue_write(sock)
    else:
        yield core._io_queue.queue_read(sock)


class Connection:
    def __init__(self, sock, idle_timeout_ms):
        self._sock = sock
        self._idle_timeout = idle_timeout_ms
        self.deadline = None  # ticks at which every wait ends; None: no limit
        self._buf = bytearray(_BUFFER)
        self._at = self._end = 0
        self._left = 0  # of the body or of the current chunk; -1: until the peer closes
        self._chunked = False
        self._head_left = _HEAD  # bytes that the head may still have
        self.status = 0
        self.headers = {}

    def close(self):
        self._sock.close()

    async def _wait(self, write=False):
        patience = self._idle_timeout
        if self.deadline is not None:
            patience = min(patience, max(0, time.ticks_diff(self.deadline, time.ticks_ms())))
        try:
            await asyncio.wait_for_ms(_socket_ready(self._sock, write), patience)
        except asyncio.TimeoutError:
            if patience < self._idle_timeout:
                raise HttpError("timeout", "no time left")
            raise HttpError("stall", "nothing for %d ms" % self._idle_timeout)

    async def send(self, data):
        data = memoryview(data)
        while data:
            try:
                sent = self._sock.write(data)
            except _BROKEN as error:
                raise HttpError("connect", "sending: %s" % error)
            if sent:
                data = data[sent:]
            else:
                await self._wait(True)

    # Some bytes from the wire, 0 when the peer has closed.
    async def _receive(self, buf):
        while True:
            try:
                size = self._sock.readinto(buf)
            except _BROKEN as error:
                raise HttpError("truncated", "receiving: %s" % error)
            if size is not None:
                return size
            await self._wait()

    # -- lines

    # Reads a line with its end. A line of more than 512 bytes is an error or, with `drop`, cut.
    async def _read_line(self, drop=False):
        line = b""
        while True:
            if self._at == self._end:
                self._at = 0
                # There may always be more to read, and other tasks have to run.
                await asyncio.sleep_ms(0)
                self._end = await self._receive(self._buf)
                if not self._end:
                    raise HttpError("truncated", "closed within the headers")
            found = self._buf.find(b"\n", self._at, self._end)
            stop = self._end if found < 0 else found + 1
            self._head_left -= stop - self._at
            if self._head_left < 0:
                raise HttpError("http", "head too long")
            room = _LINE - len(line)
            if stop - self._at > room and not drop:
                raise HttpError("http", "line too long")
            line += self._buf[self._at : min(stop, self._at + room)]
            self._at = stop
            if found >= 0:
                return line

    async def read_head(self, bodyless=False):
        for _ in range(_INTERIM):
            line = await self._read_line()
            parts = line.split(None, 2)
            if not line.startswith(b"HTTP/1.") or len(parts) < 2:
                raise HttpError("http", "not HTTP: " + str(line[:40])[2:-1])
            self.status = _number(parts[1], 10, 599)
            await self._read_headers()
            if self.status >= 200:
                break
        else:
            raise HttpError("http", "no final status")
        if bodyless or self.status in (204, 304):
            self._left = 0
        elif "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._chunked = True
        elif "content-length" in self.headers:
            self._left = _number(self.headers["content-length"], 10, 0x3FFFFFFF)
        else:
            self._left = -1

    # Headers that are not used need not be text. A line that begins with a blank continues the
    # header before it, as some old proxies fold them, and is ignored.
    async def _read_headers(self):
        self.headers = {}
        while True:
            line = await self._read_line(True)
            if not line.strip():
                return
            name, _, value = line.partition(b":")
            try:
                name = name.decode().lower()
                if name in _KEPT:
                    if len(line) == _LINE:
                        raise UnicodeError
                    self.headers[name] = value.decode().strip()
            except UnicodeError:
                if name in _KEPT:
                    raise HttpError("http", "bad header " + name)

    # The length of the body when the peer says so, else None.
    def length(self):
        return None if self._chunked or self._left < 0 else self._left

    # Frees the memory that only the head needed, before a long body.
    def drop_header_buffer(self):
        self.headers = {}
        if not self._chunked and self._at == self._end:
            self._buf = bytearray()

    # -- body

    # Reads some bytes of the body into `buf`; returns 0 at its end, and only there.
    async def readinto(self, buf):
        if self._chunked and not self._left:
            await self._begin_chunk()
        if not self._left:
            return 0
        if 0 < self._left < len(buf):
            buf = memoryview(buf)[: self._left]
        size = self._end - self._at
        if size:
            size = min(size, len(buf))
            buf[:size] = memoryview(self._buf)[self._at : self._at + size]
            self._at += size
        else:
            size = await self._receive(buf)
            if not size:
                if self._left < 0:
                    self._left = 0
                    return 0
                raise HttpError("truncated", "%d bytes short" % self._left)
        if self._left > 0:
            self._left -= size
            if self._chunked and not self._left:
                await self._read_line()
        return size

    # Reads the bytes of the body that have already arrived, without waiting. Returns 0 when that
    # would take more than one socket call; read_exactly() handles those cases.
    def read_available(self, buf):
        if self._chunked or self._left < len(buf) or self._at != self._end:
            return 0
        try:
            read = self._sock.readinto(buf) or 0
        except _BROKEN as error:
            raise HttpError("truncated", "receiving: %s" % error)
        self._left -= read
        return read

    # Fills `buf`, or reads the rest of the body when that is shorter; returns the number of bytes.
    # A body of known length, as in a download, takes no more socket calls than necessary. Before it
    # waits for the poller, which sleeps up to 10 ms on the port, it tries again between the other
    # tasks' turns: the next segment mostly arrives before that.
    async def read_exactly(self, buf):
        size = len(buf)
        if self._chunked or self._left < size or self._at != self._end:
            return await self._read_pieces(buf)
        readinto = self._sock.readinto
        left = size
        since = None
        while True:
            try:
                read = readinto(buf)
            except _BROKEN as error:
                raise HttpError("truncated", "receiving: %s" % error)
            if read:
                self._left -= read
                left -= read
                if not left:
                    return size
                buf = memoryview(buf)[read:]
                since = None
            elif read is not None:
                raise HttpError("truncated", "%d bytes short" % self._left)
            elif since is None:
                since = time.ticks_ms()
                await asyncio.sleep_ms(0)
            elif time.ticks_diff(time.ticks_ms(), since) < _SPIN:
                await asyncio.sleep_ms(0)
            else:
                await self._wait()

    # Like read_exactly(), for a body in chunks or of unknown length.
    async def _read_pieces(self, buf):
        got = 0
        while got < len(buf):
            read = await self.readinto(memoryview(buf)[got:])
            if not read:
                break
            got += read
        return got

    async def _begin_chunk(self):
        self._head_left = _HEAD
        size = await self._read_line()
        self._left = _number(size.split(b";")[0].strip(), 16, 0x3FFFFFFF)
        if not self._left:
            self._chunked = False
            while (await self._read_line(True)).strip():
                pass  # trailers, bounded as a head is

    # Reads a whole small body. A body longer than `limit` is an error, and so is one for which
    # there is no memory: that counts as the peer's failure. The buffer of the head serves for the
    # pieces, except with chunks, whose lines need it.
    async def read(self, limit):
        body = bytearray()
        try:
            step = memoryview(bytearray(_BUFFER) if self._chunked else self._buf)
            while True:
                size = await self.readinto(step)
                if not size:
                    return body
                if len(body) + size > limit:
                    raise HttpError("http", "answer over %d bytes" % limit)
                body += step[:size]
        except MemoryError:
            raise HttpError("http", "no memory")


def _number(text, base, limit):
    try:
        value = int(text, base)
    except ValueError:
        value = -1
    if not 0 <= value <= limit:
        raise HttpError("http", "bad number: " + str(text[:20]))
    return value


# Connects to an address (as getaddrinfo returns it), sends a request and reads the head of the
# answer. Returns the Connection, which the caller has to close. `tls` is a net.https.Pinned, or
# None. `deadline` are the ticks by which the whole answer has to be there, None for no limit.
async def request(
    address, host, method, target, headers, body=b"", tls=None, idle_timeout_ms=15000, deadline=None
):
    sock = None  # socket() fails while other connections hold the last sockets
    try:
        try:
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect(address)
        except OSError as error:
            if error.errno != errno.EINPROGRESS:
                raise HttpError("connect", str(error))
        connection = Connection(sock, _CONNECT)
        connection.deadline = deadline
        try:
            await connection._wait(True)
        except HttpError:
            raise HttpError("connect", "no answer")
        if tls:
            try:
                sock = tls.wrap_socket(sock, host.split(":")[0])
            except _BROKEN as error:
                raise HttpError("connect", "tls: %s" % error)
            sock.setblocking(False)
            connection._sock = sock
        connection._idle_timeout = idle_timeout_ms
        lines = ["%s %s HTTP/1.1" % (method, target), "Host: " + host, "Connection: close"]
        if body:
            lines.append("Content-Type: application/json")
        if body or method == "POST":
            lines.append("Content-Length: %d" % len(body))
        lines += ["%s: %s" % pair for pair in headers]
        lines = "\r\n".join(lines + ["", ""]).encode() + body
        headers = body = None  # the answer may take long: the request is not kept in memory
        await connection.send(lines)
        lines = None
        try:
            await connection.read_head(method == "HEAD")
        except HttpError as error:
            if error.code == "truncated":  # closed before the headers were complete: no answer
                raise HttpError("connect", error.detail)
            raise
        return connection
    except BaseException:
        if sock:
            sock.close()
        raise
