"""Measures the orchestrator as docs/orchestrator.md tells: ``python -m tests.orchestrator.bench``.

One server process on SQLite, beacon authentication on, 1000 registered beacons, a release of
1,638,400 bytes. The load comes from one process beside it, so both share the machine. Requests
are signed before the clock starts. Numbers, no verdicts: a benchmark passes and fails nothing.
"""

import argparse
import asyncio
import hashlib
import hmac
import json
import secrets
import socket
import statistics
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from beacon_ota.wire import auth
from tests.orchestrator.world import Server, TestBeacon, image

SIZE = 1_638_400
EMPTY = hashlib.sha256(b"").hexdigest()


def signed(
    beacon: TestBeacon, method: str, target: str, body: bytes = b"", ts: int | None = None
) -> bytes:
    """Return a whole request, ready to be sent."""
    now = int(time.time()) if ts is None else ts
    nonce = secrets.token_hex(8)
    digest = hashlib.sha256(body).hexdigest() if body else EMPTY
    text = auth.request_text(method, target, beacon.id, now, nonce, digest)
    value = auth.header(beacon.id, now, nonce, hmac.digest(beacon.key, text, "sha256").hex())
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    head = f"{method} {target} HTTP/1.1\r\nHost: o\r\n{length}Authorization: {value}\r\n\r\n"
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One keep-alive connection: sends a request, hands back (status, body) or counts bytes."""

    def __init__(self, keep: bool = True):
        self._keep = keep
        self._done: asyncio.Future | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, request: bytes) -> "asyncio.Future[tuple[int, bytes]]":
        self._done = asyncio.get_running_loop().create_future()
        self._buffer = b""
        self._left = -1
        self.transport.write(request)
        return self._done

    def data_received(self, data: bytes) -> None:
        if self._left < 0:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            self.status = int(head[9:12])
            at = head.find(b"content-length: ")
            self._left = int(head[at + 16 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            data = self._buffer[end + 4 :]
            self._buffer = b""
        self._left -= len(data)
        if self._keep:
            self._buffer += data
        if self._left <= 0 and self._done is not None:
            done, self._done = self._done, None
            done.set_result((self.status, self._buffer))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionResetError("the server closed the connection"))


async def connect(url: str, keep: bool = True) -> Connection:
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_connection(
        lambda: Connection(keep), parts.hostname or "", parts.port or 80
    )
    return protocol


async def hammer(url: str, requests: list[bytes], connections: int, seconds: float) -> dict:
    """Send requests over so many connections, each waiting for its answer; return the rates."""
    stock = iter(requests)
    times: list[float] = []
    wrong: list[int] = []
    end = time.perf_counter() + seconds

    async def worker(connection: Connection) -> None:
        for request in stock:
            began = time.perf_counter()
            if began > end:
                return
            status, _ = await connection.ask(request)
            times.append(time.perf_counter() - began)
            if status not in (200, 204):
                wrong.append(status)

    peers = [await connect(url) for _ in range(connections)]
    began = time.perf_counter()
    await asyncio.gather(*(worker(peer) for peer in peers))
    took = time.perf_counter() - began
    times.sort()
    return {
        "requests_per_s": round(len(times) / took),
        "requests": len(times),
        "p50_ms": round(statistics.median(times) * 1000, 2),
        "p99_ms": round(times[int(len(times) * 0.99)] * 1000, 2),
        "wrong": len(wrong),
        "seconds": round(took, 1),
    }


async def polls(server: Server, fleet: list[TestBeacon], connections: int, seconds: float) -> dict:
    """Polls with an update due, over the fleet in turn."""
    count = int(seconds * 16_000)
    start = int(time.time())
    requests = []
    for number, beacon in zip(range(count), cycle(fleet), strict=False):
        target = f"/firmwares/latest/esp32c3?version=1.0.0&image={beacon.image}&state=valid"
        # Signed ahead of time, as from clocks that run on while the benchmark does.
        requests.append(signed(beacon, "GET", target, ts=start + number // 16_000))
    return await hammer(server.url, requests, connections, seconds)


async def offers(server: Server, fleet: list[TestBeacon], at_once: int) -> list[dict]:
    """Have every beacon ask once; return the offers."""
    found: list[dict] = []
    todo = iter(fleet)

    async def worker(connection: Connection) -> None:
        for beacon in todo:
            target = f"/firmwares/latest/esp32c3?version=1.0.0&image={beacon.image}&state=valid"
            status, body = await connection.ask(signed(beacon, "GET", target))
            assert status == 200, (status, body)
            found.append({**json.loads(body), "beacon": beacon})

    await asyncio.gather(*[worker(await connect(server.url)) for _ in range(at_once)])
    return found


async def downloads(server: Server, given: list[dict], readers: int, seconds: float) -> dict:
    """Whole images, one after another on each connection."""
    before = rss(server)
    stock = cycle(given)
    count = 0
    end = time.perf_counter() + seconds

    async def worker(connection: Connection) -> None:
        nonlocal count
        while time.perf_counter() < end:
            offer = next(stock)
            status, _ = await connection.ask(signed(offer["beacon"], "GET", offer["download_url"]))
            assert status == 200, status
            count += 1

    peers = [await connect(server.url, keep=False) for _ in range(readers)]
    began = time.perf_counter()
    await asyncio.gather(*(worker(peer) for peer in peers))
    took = time.perf_counter() - began
    return {
        "images_per_s": round(count / took),
        "mb_per_s": round(count * SIZE / took / 1e6),
        "rss_before_mb": before,
        "rss_after_mb": rss(server),
    }


async def slow_readers(server: Server, given: list[dict], readers: int, rate: int) -> dict:
    """Readers that take ``rate`` bytes a second each, with small socket buffers."""
    parts = urlsplit(server.url)
    loop = asyncio.get_running_loop()
    before = rss(server, exact=True)
    socks = []
    for _, offer in zip(range(readers), cycle(given), strict=False):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.setblocking(False)
        await loop.sock_connect(sock, (parts.hostname, parts.port))
        await loop.sock_sendall(sock, signed(offer["beacon"], "GET", offer["download_url"]))
        socks.append(sock)
    total = 0
    peak = before
    for _ in range(5):
        await asyncio.sleep(1)
        for sock in socks:
            try:
                total += len(sock.recv(rate))
            except BlockingIOError:
                pass
        peak = max(peak, rss(server, exact=True))
    for sock in socks:
        sock.close()
    return {
        "readers": readers,
        "rss_before_kb": before,
        "rss_peak_kb": peak,
        "kb_per_reader": round((peak - before) / readers, 1),
        "bytes_read": total,
    }


async def cycles(
    server: Server, fleet: list[TestBeacon], at_once: int, download: bool, twice: bool
) -> dict:
    """Poll, report, report; the server's count must be exact."""
    todo = iter(fleet)

    async def go(connection: Connection, other: Connection, beacon: TestBeacon) -> None:
        target = f"/firmwares/latest/esp32c3?version={beacon.version}&image={beacon.image}"
        status, body = await connection.ask(signed(beacon, "GET", target + "&state=valid"))
        assert status == 200, (status, body)
        offer = json.loads(body)
        if download:
            status, body = await connection.ask(signed(beacon, "GET", offer["download_url"]))
            assert status == 200 and hashlib.sha256(body).hexdigest() == offer["checksum"]
        for word in ("rebooting", "success"):
            doc = {
                "firmware_version": offer["version"],
                "update_status": word,
                "updated_at": int(time.time()),
                "previous_version": beacon.version,
                "attempt_id": offer["attempt_id"],
                "firmware_id": offer["firmware_id"],
                "image_sha256": offer["checksum"] if word == "success" else beacon.image,
            }
            raw = json.dumps(doc).encode()
            path = f"/api/beacons/{beacon.id}/ota_status"
            asks = [connection.ask(signed(beacon, "POST", path, raw))]
            if twice:
                asks.append(other.ask(signed(beacon, "POST", path, raw)))
            for status, body in await asyncio.gather(*asks):
                # The repeated `rebooting` may come after `success`: then it is over.
                assert status == 200 or (twice and status == 409), (status, body)

    async def worker() -> None:
        connection, other = await connect(server.url), await connect(server.url)
        for beacon in todo:
            await go(connection, other, beacon)

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    took = time.perf_counter() - began
    return {"updates_per_s": round(len(fleet) / took), "beacons": len(fleet)}


def rss(server: Server, exact: bool = False) -> int:
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    kib = int(text.split("VmRSS:")[1].split()[0])
    return kib if exact else round(kib / 1024)


def cpu(server: Server) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def release(server: Server, tmp: Path, version: str) -> tuple[str, str]:
    """Upload a release of the full size and roll it out to everybody; return both ids."""
    admin = server.admin()
    file = tmp / f"{version}.bin"
    file.write_bytes(image(version, size=SIZE - 4096, seed=version))
    fields = {"device_type": "esp32c3", "version": version, "channel": "stable"}
    firmware = admin.upload(file, **fields)
    assert firmware["size"] == SIZE, firmware["size"]
    plan = {"preset": "all-at-once", "window": "00:00-24:00"}
    return firmware["firmware_id"], admin.create_rollout(firmware["firmware_id"], plan)[
        "rollout_id"
    ]


def register(server: Server, count: int) -> list[TestBeacon]:
    admin = server.admin()
    fleet = []
    for number in range(count):
        key = secrets.token_bytes(32)
        admin.create_beacon(f"b{number:05}", "esp32c3", key=key.hex())
        fleet.append(TestBeacon(server.url, f"b{number:05}", key))
    return fleet


async def measure(server: Server, tmp: Path, seconds: float, said: dict) -> None:
    def say(name: str, value: object) -> None:
        said[name] = value
        print(f"{name:34} {value}", file=sys.stderr, flush=True)

    said["rss_start_mb"] = rss(server)
    say("floor: bare route, 16 connections", await floor(seconds))
    began = time.perf_counter()
    fleet = register(server, 1000)
    say("register 1000", {"seconds": round(time.perf_counter() - began, 1)})
    _, _ = release(server, tmp, "1.1.0")
    say("first poll of 1000, 64 at once", await timed(offers(server, fleet, 64)))
    for connections in (1, 16, 64):
        used = cpu(server)
        found = await polls(server, fleet, connections, seconds)
        found["server_cpu_us"] = round((cpu(server) - used) / found["requests"] * 1e6)
        say(f"poll, update due, {connections} connections", found)
    given = await offers(server, fleet, 16)
    say("download, 8 connections", await downloads(server, given, 8, seconds))
    say("download, 32 connections", await downloads(server, given, 32, seconds))
    say("256 readers at 20 kB/s", await slow_readers(server, given, 256, 20_000))
    admin = server.admin()
    times = []
    for _ in range(10):
        began = time.perf_counter()
        admin.call("GET", "/api/beacons", params={"limit": 1000})
        times.append(time.perf_counter() - began)
    say("page of 1000 beacons", {"ms": round(statistics.median(times) * 1000, 1)})
    for name, version, count, at_once, download, twice in (
        ("cycle, 500 beacons, 32 at once", "1.2.0", 500, 32, False, False),
        ("the same, every report twice at once", "1.3.0", 500, 32, False, True),
        ("cycle with download, 200, 16 at once", "1.4.0", 200, 16, True, False),
    ):
        _, rollout = release(server, tmp, version)
        used = cpu(server)
        found = await cycles(server, fleet[:count], at_once, download, twice)
        found["server_cpu_us"] = round((cpu(server) - used) / count * 1e6)
        found["counted"] = admin.rollout(rollout)["results"].get("success", 0)
        say(name, found)
    say("rss_end_mb", rss(server))


FLOOR = """
import asyncio, sys, uvicorn
async def app(scope, receive, send):
    head = [(b"content-length", b"27"), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": b'{"what": "a bare response"}'})
uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", lifespan="off",
            access_log=False, log_level="error")
"""


async def floor(seconds: float) -> dict:
    """The same load on a route that does nothing: what the server and this load generator allow."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", FLOOR, str(port))
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(200):
            await asyncio.sleep(0.05)
            try:
                (await connect(url)).transport.close()
                break
            except OSError:
                continue
        beacon = TestBeacon(url, "b00000", bytes(32))
        target = f"/firmwares/latest/esp32c3?version=1.0.0&image={beacon.image}&state=valid"
        requests = [signed(beacon, "GET", target)] * int(seconds * 40_000)
        return await hammer(url, requests, 16, seconds)
    finally:
        process.terminate()
        await process.wait()


async def timed(work) -> dict:
    began = time.perf_counter()
    await work
    return {"seconds": round(time.perf_counter() - began, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="measures whose name contains this")
    options = parser.parse_args()
    said: dict = {}
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "data") as server:
        uvloop.run(measure(server, Path(folder), options.seconds, said))
        print(server.log(), file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(said, indent=2) + "\n")


if __name__ == "__main__":
    main()
