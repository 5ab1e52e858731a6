"""HTTP on the wire: what may be sent ahead, what is refused, and where requests begin."""

import http.client
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.orchestrator.raw import Raw
from tests.orchestrator.world import Server, beacons, upload

H = b"Host: orchestrator\r\n"
HEALTH = b"GET /health HTTP/1.1\r\n" + H + b"\r\n"
LAST = b"GET /health HTTP/1.1\r\n" + H + b"Connection: close\r\n\r\n"
POST = b"POST /api/sites HTTP/1.1\r\n" + H
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def memory(pid: int) -> float:
    """Return the RSS of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def pour(raws: list[Raw], data: bytes) -> int:
    """Send to connections in turn until none takes any more; return the bytes that were taken."""
    left = {raw: memoryview(data) for raw in raws}
    for raw in raws:
        raw.sock.setblocking(False)
    sent, quiet = 0, 0
    while left and quiet < 20:
        before = sent
        for raw in list(left):
            try:
                count = raw.sock.send(left[raw][:65536])
                left[raw] = left[raw][count:]
                sent += count
            except BlockingIOError:
                continue
            except OSError:
                count = 0
            if not left[raw] or not count:
                del left[raw]
        quiet = quiet + 1 if sent == before else 0
        time.sleep(0.05 if sent == before else 0.0)
    for raw in raws:
        raw.sock.setblocking(True)
    return sent


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
@pytest.mark.parametrize(
    "count, size, path", [(1, 8_000_000, "/health"), (20, 250_000, "/login"), (20, 250_000, "/x")]
)
def test_pipelined_requests_cost_no_memory_and_hold_up_nobody(tmp_path, count, size, path):
    request = f"GET {path} HTTP/1.1\r\n\r\n".encode()
    with Server(tmp_path / "data") as server:
        requests.get(server.url + path, timeout=60)  # what is imported once is no cost of theirs
        before = memory(server.process.pid)
        raws = [Raw(server, receive_buffer=4096) for _ in range(count)]
        try:
            pour(raws, request * (size // len(request)))
            for _ in range(5):  # others are answered meanwhile
                assert requests.get(server.url + "/health", timeout=60).status_code == 200
            # 1 MB each; and what the allocator keeps of the whole.
            assert memory(server.process.pid) - before < count * 1.0 + 8
        finally:
            for raw in raws:
                raw.close()


def test_pipelined_requests_are_answered_in_order(server):
    paths = [f"/nowhere/{n}" for n in range(300)]
    with Raw(server) as raw:
        raw.send(b"".join(f"GET {path} HTTP/1.1\r\n\r\n".encode() for path in paths) + LAST)
        assert raw.read_to_end() == [404] * 300 + [200]


def test_a_pipeline_after_a_body(server):
    wrong = b"Authorization: Bearer \r\n"
    body = b"x" * 5000
    one = POST + wrong + b"Content-Length: 5000\r\n\r\n" + body
    with Raw(server) as raw:
        raw.send((one + HEALTH) * 3 + LAST)
        assert raw.read_to_end() == [401, 200] * 3 + [200]


def test_requests_in_single_bytes(server):
    with Raw(server) as raw:
        for byte in HEALTH + LAST:
            raw.send(bytes([byte]))
        assert raw.read_to_end() == [200, 200]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_head_is_bounded(server, at_once):
    def answer(size: int) -> list[int]:
        head = b"GET /health HTTP/1.1\r\n" + H + b"Connection: close\r\nX: " + b"a" * size
        with Raw(server) as raw:
            pieces = [head] if at_once else [head[n : n + 1000] for n in range(0, len(head), 1000)]
            for piece in pieces:
                raw.send(piece)
            raw.send(b"\r\n\r\n")
            return raw.read_to_end()

    assert answer(30_000) == [200]
    for size in (33_500, 70_000, 250_000):
        assert answer(size) in ([431], [])


def test_the_number_of_headers_is_bounded(server):
    def answer(count: int) -> list[int]:
        fields = b"".join(b"a%d: b\r\n" % n for n in range(count))
        with Raw(server) as raw:
            return raw.send(LAST[:-2] + fields + b"\r\n").read_to_end()

    assert answer(100) == [200]
    assert answer(1000) in ([431], [])


def test_trailers_are_no_headers(server, tmp_path):
    """Neither do they authenticate, nor do they change what the head said."""
    trailer = f"Authorization: Bearer {server.token}\r\n".encode()
    with Raw(server) as raw:
        raw.send(CHUNKED + b"2\r\n{}\r\n0\r\n" + trailer + b"\r\n" + LAST)
        assert raw.read_to_end() == [401, 200]
    (beacon,) = beacons(server, 1, prefix="trailed")
    target = f"/api/beacons/{beacon.id}/ota_status"
    body = b'{"update_status":"idle","firmware_version":"1.0.0","updated_at":1}'
    with Raw(server) as raw:
        signed = f"Authorization: {beacon.sign('POST', target, body)}\r\n".encode()
        raw.send(f"POST {target} HTTP/1.1\r\n".encode() + H + b"Transfer-Encoding: chunked\r\n\r\n")
        raw.send(b"%x\r\n" % len(body) + body + b"\r\n0\r\n" + signed + b"\r\n" + LAST)
        assert raw.read_to_end() == [401, 200]


@pytest.mark.parametrize("what", ["extension", "trailer", "trailers", "blank"])
def test_what_surrounds_a_body_is_bounded(server, what):
    """Chunk extensions, trailers and empty lines without end: dropped, at some point."""
    begin, more = {
        "extension": (CHUNKED + b"2;a=", b"b" * 10_000),
        "trailer": (CHUNKED + b"2\r\n{}\r\n0\r\nX: ", b"b" * 10_000),
        "trailers": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: b\r\n" * 1000),
        "blank": (b"", b"\r\n" * 5000),
    }[what]
    with Raw(server) as raw:
        raw.send(begin)
        for _ in range(100):
            raw.send(more)
        raw.read_to_end()
        assert raw.closed


# What is said, what is answered, whether the connection is closed then; and what completes a
# request that was answered before its body had come.
CASES: dict[str, tuple[bytes, list[int], bool] | tuple[bytes, list[int], bool, bytes]] = {
    "length and chunked": (
        POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HEALTH,
        [400],
        True,
    ),
    "chunked and length": (
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + HEALTH,
        [400],
        True,
    ),
    "two equal lengths": (
        POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}" + HEALTH,
        [400],
        True,
    ),
    "two lengths": (
        POST + b"Content-Length: 2\r\nContent-Length: 40\r\n\r\n{}" + HEALTH,
        [400],
        True,
    ),
    "length with a sign": (POST + b"Content-Length: +2\r\n\r\n{}", [400], True),
    "length with an underscore": (POST + b"Content-Length: 2_0\r\n\r\n{}", [400], True),
    "a list of lengths": (POST + b"Content-Length: 2, 2\r\n\r\n{}", [400], True),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n{}", [400], True),
    "a length of 20 digits": (POST + b"Content-Length: " + b"9" * 20 + b"\r\n\r\n{}", [400], True),
    "a length of 5,000 digits": (
        POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
        [400],
        True,
    ),
    "a length in other digits": (
        POST + "Content-Length: ²\r\n\r\n{}".encode(),
        [400],
        True,
    ),
    "an unknown coding": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", [400], True),
    "identity": (POST + b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}", [400], True),
    "chunked, identity": (
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HEALTH,
        [400],
        True,
    ),
    "gzip, chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", [401], False),
    "coding twice": (
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        [400],
        True,
    ),
    "a space before the colon": (
        POST + b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + HEALTH,
        [400],
        True,
    ),
    "a folded line": (b"GET /health HTTP/1.1\r\n" + H + b"X-A: a\r\n b\r\n\r\n", [400], True),
    "a folded coding": (
        POST + b"Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        [400],
        True,
    ),
    "bare line feeds": (b"GET /health HTTP/1.1\nHost: x\n\n", [400], True),
    "a bare line feed": (
        b"GET /health HTTP/1.1\r\n" + H + b"X: a\nContent-Length: 30\r\n\r\n" + HEALTH,
        [400],
        True,
    ),
    "a bare return": (
        b"GET /health HTTP/1.1\r\n" + H + b"X: a\rContent-Length: 30\r\n\r\n",
        [400],
        True,
    ),
    "a chunk's extension": (CHUNKED + b"2;a=b\r\n{}\r\n0\r\n\r\n", [401], False),
    "a negative chunk": (CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n", [400], True),
    "a chunk's 0x": (CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n", [400], True),
    "a huge chunk": (CHUNKED + b"ffffffffffffffff0\r\n{}\r\n0\r\n\r\n", [400], True),
    "chunks with bare line feeds": (CHUNKED + b"2\n{}\n0\n\n", [400], True),
    "an absolute target": (b"GET http://evil/health HTTP/1.1\r\n" + H + b"\r\n", [200], False),
    "an absolute target of beacons": (
        b"GET http://evil/firmwares/latest/esp32c3 HTTP/1.1\r\n" + H + b"\r\n",
        [401],
        False,
    ),
    "CONNECT": (b"CONNECT x:1 HTTP/1.1\r\n" + H + b"\r\n" + HEALTH, [400], True),
    "an asterisk": (b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n", [404], False),
    "a method in small letters": (b"get /health HTTP/1.1\r\n" + H + b"\r\n", [400], True),
    "TRACE": (b"TRACE /health HTTP/1.1\r\n" + H + b"\r\n", [405], False),
    "HTTP/2 with prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400], True),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", [200], False),
    "HTTP/1.0": (b"GET /health HTTP/1.0\r\n" + H + b"\r\n", [200], True),
    "HTTP/0.9": (b"GET /health\r\n\r\n", [200], True),
    "HTTP/1.2": (b"GET /health HTTP/1.2\r\n" + H + b"\r\n", [400], True),
    "NUL in the path": (b"GET /hea\x00lth HTTP/1.1\r\n" + H + b"\r\n", [400], True),
    "%00 in the path": (b"GET /firmwares/latest/a%00b HTTP/1.1\r\n" + H + b"\r\n", [401], False),
    "a surrogate in the path": (
        b"GET /api/beacons/%ed%a0%80 HTTP/1.1\r\n" + H + b"\r\n",
        [401],
        False,
    ),
    "bytes in the path": (b"GET /h\xff\xfe HTTP/1.1\r\n" + H + b"\r\n", [400], True),
    "bytes in a header": (
        b"GET /health HTTP/1.1\r\n" + H + b"Authorization: Bearer \xff\xfe\r\n\r\n",
        [200],
        False,
    ),
    "bytes as a token": (
        b"GET /api/beacons HTTP/1.1\r\n" + H + b"Authorization: Bearer \xff\xfe\r\n\r\n",
        [401],
        False,
    ),
    "bytes as a cookie": (
        b"GET /api/beacons HTTP/1.1\r\n" + H + b"Cookie: beacon_ota=\xff\xfe\r\n\r\n",
        [401],
        False,
    ),
    "bytes as a beacon": (
        b"GET /firmwares/latest/a HTTP/1.1\r\n"
        + H
        + b"Authorization: Beacon id=\xff, ts=1, nonce=0, mac=0\r\n\r\n",
        [401],
        False,
    ),
    "a beacon's time of 5,000 digits": (
        b"GET /firmwares/latest/a HTTP/1.1\r\n"
        + H
        + b"Authorization: Beacon id=a, ts="
        + b"9" * 5000
        + b", nonce="
        + b"0" * 16
        + b", mac="
        + b"0" * 64
        + b"\r\n\r\n",
        [401],
        False,
    ),
    "two authorizations": (
        b"GET /firmwares/latest/a HTTP/1.1\r\n"
        + H
        + b"Authorization: Bearer x\r\nAuthorization: Beacon id=a\r\n\r\n",
        [401],
        False,
    ),
    "two slashes": (b"GET //health HTTP/1.1\r\n" + H + b"\r\n", [404], False),
    "another host's path": (b"GET //evil/ HTTP/1.1\r\n" + H + b"\r\n", [404], False),
    "a dot": (b"GET /./health HTTP/1.1\r\n" + H + b"\r\n", [404], False),
    "dots": (b"GET /static/../../../../etc/passwd HTTP/1.1\r\n" + H + b"\r\n", [404], False),
    "escaped dots": (b"GET /static/..%2f..%2fframe.py HTTP/1.1\r\n" + H + b"\r\n", [404], False),
    "a slash at the end": (
        b"GET /beacons/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        [404],
        False,
    ),
    "a slash at the API's end": (
        b"GET /api/beacons/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        [404],
        False,
    ),
    "a long query": (b"GET /health?" + b"a" * 30000 + b" HTTP/1.1\r\n" + H + b"\r\n", [200], False),
    "HEAD": (b"HEAD /health HTTP/1.1\r\n" + H + b"\r\n" + HEALTH, [200, 200], False),
    "HEAD of a stream": (b"HEAD /live HTTP/1.1\r\n" + H + b"\r\n" + HEALTH, [401, 200], False),
    "a body with GET": (
        b"GET /firmwares/latest/x HTTP/1.1\r\n"
        + H
        + b"Content-Length: 41\r\n\r\nGET /health HTTP/1.1\r\nHost: smuggled\r\n\r\n",
        [401],
        False,
        b"!",
    ),
    "a long body with GET": (
        b"GET /firmwares/latest/x HTTP/1.1\r\n"
        + H
        + b"Content-Length: 300000\r\n\r\n"
        + b"A" * 300000
        + HEALTH,
        [401, 200],
        False,
    ),
    "a body that is refused early": (
        b"POST /api/beacons/x/ota_status HTTP/1.1\r\n"
        + H
        + b"Content-Length: 9000\r\n\r\n"
        + b"A" * 9000
        + HEALTH,
        [413, 200],
        False,
    ),
    "a request in a body that is refused early": (
        b"POST /api/beacons/x/ota_status HTTP/1.1\r\n"
        + H
        + b"Content-Length: 9000\r\n\r\n"
        + HEALTH,
        [413],
        False,
        b"A" * (9000 - len(HEALTH)),
    ),
    "an upgrade": (
        b"GET /health HTTP/1.1\r\n"
        + H
        + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n"
        + b"Sec-WebSocket-Version: 13\r\n\r\n"
        + HEALTH,
        [200],
        True,
    ),
    "an upgrade to HTTP/2": (
        b"GET /health HTTP/1.1\r\n"
        + H
        + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n"
        + HEALTH,
        [200],
        True,
    ),
    "something else after a good one": (HEALTH + b"\x16\x03\x01\x00", [200], True),
}


@pytest.mark.parametrize("name", CASES)
def test_raw_cases(server, name):
    said, answers, closed, *rest = CASES[name]
    with Raw(server) as raw:
        raw.send(said)
        if closed:
            assert raw.read_to_end()[: len(answers)] == answers
            # What follows a bad request may be refused, too; nothing of it is ever taken.
            assert set(raw.statuses[len(answers) :]) <= {400}
            return
        assert raw.read(len(answers)) == answers
        raw.send(b"".join(rest) + LAST)  # still of one mind about where a request begins
        assert raw.read_to_end() == [*answers, 200]


def test_a_reader_that_goes_away_and_one_that_sends_ahead_get_their_bytes(server, tmp_path):
    """A download with requests sent ahead is whole, and they are answered after it."""
    firmware = upload(server.admin(), "9.9.9", tmp_path)
    path = f"/firmwares/{firmware['firmware_id']}/download"
    token = f"Authorization: Bearer {server.token}\r\n".encode()
    with Raw(server, receive_buffer=4096) as raw:
        raw.send(f"GET {path} HTTP/1.1\r\n".encode() + H + token + b"\r\n" + HEALTH * 50 + LAST)
        assert raw.read_to_end() == [200] * 52
        assert (tmp_path / "esp32c3-9.9.9.bin").read_bytes() in raw.heard


def test_a_kept_connection_is_kept(server):
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    ports = set()
    for _ in range(20):
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        ports.add(connection.sock.getsockname())
    assert len(ports) == 1
    connection.close()
