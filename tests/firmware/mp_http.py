# The HTTP client against a server of asyncio streams that says exactly what a test wants.

import asyncio
import socket

from mp import chip as c
from net import http

OK = b"HTTP/1.1 200 OK\r\n"


# Runs `use(connection)` on the answer to a request; `answer` is bytes or a coroutine function of
# the server's stream. Returns what use() did, and the request as the server saw it.
def exchange(answer, use, stall=300, body=b"", method="GET"):
    seen = []

    async def serve(reader, writer):
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += await reader.readline()
        if body:
            request += await reader.readexactly(len(body))
        seen.append(request)
        try:
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(writer)
        except OSError:
            pass  # the client has had enough
        writer.close()
        await writer.wait_closed()

    async def main():
        sock, port = c.listen(socket.SOCK_STREAM)
        sock.close()
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        address = socket.getaddrinfo("127.0.0.1", port)[0][-1]
        try:
            connection = await http.request(
                address, "box:80", method, "/x?y=1", (("A", "b"),), body, None, stall
            )
            try:
                return await use(connection)
            finally:
                connection.close()
        finally:
            server.close()

    return asyncio.run(main()), seen[0] if seen else b""


# An answer too long to be held in one piece beside the client: (bytes, times) after each other.
def pieces(*parts):
    async def answer(writer):
        for data, times in parts:
            for _ in range(times):
                writer.write(data)
                await writer.drain()

    return answer


async def whole(connection):
    return connection.status, bytes(await connection.read(5000))


def fails(answer, use=whole, stall=100):
    try:
        exchange(answer, use, stall)
    except http.HttpError as error:
        assert error.detail
        return error.code
    raise AssertionError("accepted")


def test_the_request():
    found, seen = exchange(OK + b"Content-Length: 2\r\n\r\nhi", whole)
    assert found == (200, b"hi")
    assert seen == b"GET /x?y=1 HTTP/1.1\r\nHost: box:80\r\nConnection: close\r\nA: b\r\n\r\n"
    found, seen = exchange(OK + b"Content-Length: 0\r\n\r\n", whole, body=b"{}", method="POST")
    assert found == (200, b"")
    assert b"\r\nContent-Type: application/json\r\nContent-Length: 2\r\nA: b\r\n\r\n{}" in seen


def test_every_way_to_end_a_body():
    for answer in (
        OK + b"Content-Length: 11\r\n\r\nhello world",
        OK + b"content-length:11\r\n\r\nhello world",
        OK + b"\r\nhello world",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: Chunked\r\n\r\nB\r\nhello world\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 11\r\n\r\nhello world",
        b"HTTP/1.0 200\r\n\r\nhello world",
    ):
        assert exchange(answer, whole)[0] == (200, b"hello world"), answer


def test_no_body():
    for answer in (
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
    ):
        assert exchange(answer, whole)[0][1] == b""


def test_headers_that_matter():
    async def use(connection):
        return connection.headers, connection.length()

    answer = (
        OK + b'X-Beacon-Mac: abc \r\nETag: "x"\r\nServer: s\r\nRetry-After: 7\r\n'
        b"Content-Range: bytes 1-2/3\r\nContent-Length: 2\r\n\r\nhi"
    )
    headers, length = exchange(answer, use)[0]
    assert headers == {
        "x-beacon-mac": "abc",
        "retry-after": "7",
        "content-range": "bytes 1-2/3",
        "content-length": "2",
    }
    assert length == 2
    assert exchange(OK + b"\r\n", use)[0][1] is None


# One byte at a time, so that every wait and every boundary comes up.
def test_dribbled():
    for answer in (
        OK + b"Content-Length: 11\r\n\r\nhello world",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    ):

        async def dribble(writer, answer=answer):
            for i in range(len(answer)):
                writer.write(answer[i : i + 1])
                await writer.drain()
                await asyncio.sleep_ms(1)

        assert exchange(dribble, whole)[0] == (200, b"hello world")


def test_read_into_buffers_of_any_size():
    body = bytes(i & 0xFF for i in range(3000))

    for size in (1, 7, 512, 513, 4096):

        async def use(connection, size=size):
            got = b""
            buf = bytearray(size)
            while True:
                n = await connection.readinto(buf)
                if not n:
                    break
                got += buf[:n]
            assert not await connection.readinto(buf)
            return got

        async def fill(connection, size=size):
            got = b""
            buf = bytearray(size)
            while True:
                n = await connection.read_exactly(buf)
                got += buf[:n]
                if n < size:
                    return got

        for answer in (
            OK + b"Content-Length: 3000\r\n\r\n" + body + b"and more",
            OK + b"\r\n" + body,
            OK + b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n" + body[:1000] + b"\r\n"
            b"7d0\r\n" + body[1000:] + b"\r\n0\r\n\r\n",
        ):
            assert exchange(answer, use)[0] == body, size
            assert exchange(answer, fill)[0] == body, size


def test_closed_early():
    assert fails(b"") == "connect"
    assert fails(b"HTTP/1.1 2") == "connect"
    assert fails(OK + b"Content-Le") == "connect"
    assert fails(OK + b"Content-Length: 5\r\n\r\nhell") == "truncated"
    assert fails(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel") == "truncated"
    assert fails(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n") == "truncated"


def test_nobody_there():
    sock, port = c.listen(socket.SOCK_STREAM)
    sock.close()
    address = socket.getaddrinfo("127.0.0.1", port)[0][-1]
    try:
        asyncio.run(http.request(address, "x", "GET", "/", ()))
    except http.HttpError as error:
        assert error.code == "connect"
        return
    raise AssertionError("connected")


# lwIP has sixteen connections: those whose end nobody acknowledges count for minutes.
def test_no_socket_is_left():
    class Full:
        def socket(self):
            raise OSError(23)

    http.socket = Full()
    try:
        assert fails(OK) == "connect"
    finally:
        http.socket = socket


def test_stalls():
    async def silent(writer):
        await asyncio.sleep_ms(1000)

    async def half(writer):
        writer.write(OK + b"Content-Length: 50\r\n\r\nhello")
        await writer.drain()
        await asyncio.sleep_ms(1000)

    assert fails(silent) == "stall"
    assert fails(half) == "stall"


def test_what_is_not_http():
    for answer in (
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 999\r\n\r\n",
        b"HTTP/1.1 -5 x\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
        OK + b"Content-Length: x\r\n\r\n",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: 99999999999\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 600 + b"5\r\nhello\r\n0\r\n\r\n",
        b"x" * 5000,
        OK + b"Content-Range: " + b"y" * 600 + b"\r\n\r\n",
        OK + b"X-Beacon-Mac: \xfc\r\n\r\n",
        pieces((OK + b"X: ", 1), (b"y" * 500, 40), (b"\r\n\r\n", 1)),
        pieces((OK, 1), (b"A: b\r\n", 3000), (b"\r\n", 1)),
    ):
        assert fails(answer) == "http", answer


# Whoever never stops talking is interrupted, though there is always something to read.
def test_heads_and_trailers_without_end():
    early = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert fails(early * 50 + OK + b"Content-Length: 0\r\n\r\n") == "http"
    chunked = OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
    assert fails(pieces((chunked, 1), (b"X-More: and more\r\n", 1000), (b"\r\n", 1))) == "http"

    async def both(connection):
        return await connection.read(99), connection.headers

    few = b"Retry-After: 9\r\n\r\n"
    early = b"\r\nRetry-After: 1\r\n\r\n"
    found, _ = exchange(chunked.replace(b"\r\n\r\n", early, 1) + few, both)
    assert found == (b"hello", {"transfer-encoding": "chunked", "retry-after": "1"})


# What proxies, portals and frameworks put beside an answer is nothing to a beacon: longer than its
# buffers, in another encoding, folded, or many.
def test_headers_that_nobody_needs():
    csp = b"default-src 'none'; " + b"https://cdn.example.org " * 40
    for more in (
        b"Content-Security-Policy: " + csp + b"\r\n",
        b"Set-Cookie: lb=" + b"A" * 1000 + b"; Path=/\r\n",
        "Via: 1.1 proxy-b\u00fcro\r\n".encode(),
        b"Via: 1.1 proxy-b\xfcro\r\n",
        b"\xff\xfe\x80: x\r\n",
        b"X-Note: first\r\n  content-length: 7\r\n",
        b"no colon at all\r\n",
        b": no name\r\n",
    ):
        for answer in (
            OK + more + b"Content-Length: 5\r\n\r\nhello",
            OK + b"Content-Length: 5\r\n" + more + b"\r\nhello",
            OK + more + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n" + more + b"\r\n",
        ):
            assert exchange(answer, whole)[0] == (200, b"hello"), more[:60]
    end = (b"Content-Length: 5\r\n\r\nhello", 1)
    for many in ((b"X-H-1: v\r\n", 300), (b"X: " + b"y" * 700 + b"\r\n", 20)):
        assert exchange(pieces((OK, 1), many, end), whole)[0] == (200, b"hello")
    long = pieces((OK + b"X: ", 1), (b"y" * 500, 30), (b"\r\n", 1), end)
    assert exchange(long, whole)[0] == (200, b"hello")


def test_a_small_answer_is_small():
    assert fails(OK + b"Content-Length: 5001\r\n\r\n" + bytes(5001)) == "http"
    assert fails(OK + b"\r\n" + bytes(6000)) == "http"
    assert len(exchange(OK + b"\r\n" + bytes(5000), whole)[0][1]) == 5000


# The heap is full, or in pieces: that is no error of ours to die of.
def test_an_answer_that_there_is_no_memory_for():
    async def use(connection):
        async def readinto(buf):
            return len(bytearray(1 << 30))

        connection.readinto = readinto
        await connection.read(5000)

    assert fails(OK + b"Content-Length: 2\r\n\r\nhi", use) == "http"


def test_a_large_body_costs_no_heap():
    import gc

    async def flood(writer):
        writer.write(OK + b"Content-Length: 2000000\r\n\r\n")
        piece = bytes(4000)
        for _ in range(500):
            writer.write(piece)
            await writer.drain()

    async def use(connection):
        buf = bytearray(4096)
        total = 0
        gc.collect()
        before = gc.mem_alloc()
        while True:
            n = await connection.readinto(buf)
            if not n:
                gc.collect()
                return total, gc.mem_alloc() - before
            total += n

    total, grown = exchange(flood, use, 3000)[0]
    assert total == 2000000 and grown < 1000, grown
