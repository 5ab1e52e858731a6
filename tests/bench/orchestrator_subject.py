"""Load on the orchestrator: every beacon is authenticated, every answer is signed."""

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from beacon_ota.client import Client
from beacon_ota.swarm import enrol, release
from beacon_ota.swarm.http import Connection, DownloadSink, HttpAnswer, ServerAddress
from beacon_ota.swarm.signing import sign_request
from tests.bench.load import hammer, slow_readers
from tests.bench.subject import MeasuredProcess, ServerSubject

SIZE = 1_638_400
TYPE = "esp32c3"
TAG = "bench"
PATIENCE = 60.0
_RATE = 20_000  # requests per second that are made ready at most


class BenchBeacon(NamedTuple):
    """A beacon of the bench."""

    id: str
    key: bytes


def start_orchestrator(folder: Path) -> ServerSubject:
    """Start an orchestrator on SQLite, as it comes."""
    command = [sys.executable, "-m", "beacon_ota", "serve", "--insecure", "--json", "--port=0"]
    command += [f"--data={folder / 'data'}", "--window=00:00-24:00"]
    return ServerSubject("ours", command, None, folder / "ours.log")


class OrchestratorSubject:
    """What is measured on it.

    Args:
        fleet: beacons that are registered already: ``id``, ``key``, ``version``, ``image``.
    """

    def __init__(self, server: MeasuredProcess, token: str, fleet: Iterable[Any] = ()):
        self.server, self.token = server, token
        self.place = ServerAddress.parse_url(server.url)
        self.client = Client(server.url, token)
        self.fleet = [BenchBeacon(one.id, one.key) for one in fleet]
        self.running = {one.id: (one.version, one.image) for one in fleet}
        self._ahead_s: dict[str, int] = {}  # of clocks that follow the server's, by beacon

    async def register(self, count: int) -> None:
        names = [(f"b{number:05}", 0, "bench") for number in range(count)]
        self.client.create_site("bench")
        made = await enrol.enrol_beacons(self.place, self.token, names, TYPE, TAG)
        self.fleet = [BenchBeacon(one.id, one.key) for one in made]
        self.running = {one.id: ("1.0.0", release.initial_checksum("1.0.0")) for one in made}

    def roll_out(self, version: str) -> str:
        """Upload a release of the full size and offer it to everybody; return the rollout's id."""
        import io

        content = release.build_image(version, TYPE, SIZE)
        assert len(content) == SIZE, len(content)
        firmware = self.client.upload_firmware(
            io.BytesIO(content), device_type=TYPE, version=version, channel="stable"
        )
        plan = {"preset": "all-at-once", "window": "00:00-24:00"}
        return self.client.create_rollout(firmware["firmware_id"], plan)["rollout_id"]

    def poll(self, beacon: BenchBeacon, ts: int | None = None) -> bytes:
        version, image = self.running[beacon.id]
        target = f"/firmwares/latest/{TYPE}?version={version}&image={image}&state=valid"
        return self.request(beacon, "GET", target, ts=ts)

    def request(
        self,
        beacon: BenchBeacon,
        method: str,
        target: str,
        body: bytes = b"",
        ts: int | None = None,
    ) -> bytes:
        now = int(time.time()) + self._ahead_s.get(beacon.id, 0) if ts is None else ts
        return sign_request(beacon.id, beacon.key, method, target, now, body=body, keep=True)[0]

    async def ask(self, connection: Connection, beacon: BenchBeacon) -> HttpAnswer:
        """Poll once, as a beacon does: when its clock is said to be off, it takes the server's.

        A fast machine makes more polls in a few seconds than the replay guard remembers of one
        beacon; what was signed in those seconds is then refused.
        """
        answer = await connection.send_request(self.poll(beacon), PATIENCE)
        if answer.status == 401:
            said = json.loads(answer.body)
            assert said["code"] == "clock_skew", answer
            self._ahead_s[beacon.id] = said["server_time"] - int(time.time())
            answer = await connection.send_request(self.poll(beacon), PATIENCE)
        assert answer.status == 200, answer
        return answer

    async def polls(self, connections: int, seconds: float) -> dict[str, Any]:
        """Polls with an update due, over the fleet in turn."""
        start_at = int(time.time())
        # Signed ahead of time, as from clocks that run on while the load does.
        made = [
            self.poll(beacon, start_at + number // _RATE)
            for number, beacon in zip(range(int(seconds * _RATE)), cycle(self.fleet), strict=False)
        ]
        used = self.server.cpu_s
        found = await hammer(self.server.url, made, connections, seconds)
        found["server_cpu_us"] = _mean_seconds(self.server.cpu_s - used, found["requests"])
        found["exhausted"] = found["requests"] == len(made)
        return found

    async def fresh_polls(self, at_once: int, seconds: float) -> dict[str, Any]:
        """Polls as beacons make them: each on a connection of its own."""
        todo, count = cycle(self.fleet), 0
        used, own, began = self.server.cpu_s, time.process_time(), time.perf_counter()

        async def worker() -> None:
            nonlocal count
            while time.perf_counter() < began + seconds:
                connection = await Connection.open(self.place, PATIENCE)
                await self.ask(connection, next(todo))
                connection.close()
                count += 1

        await asyncio.gather(*(worker() for _ in range(at_once)))
        return {
            "requests_per_s": round(count / (time.perf_counter() - began)),
            "requests": count,
            "server_cpu_us": _mean_seconds(self.server.cpu_s - used, count),
            "generator_cpu_us": _mean_seconds(time.process_time() - own, count),
        }

    async def offers(
        self, count: int, at_once: int = 16
    ) -> list[tuple[BenchBeacon, dict[str, Any]]]:
        """Have beacons ask; return their offers."""
        found: list[tuple[BenchBeacon, dict[str, Any]]] = []
        todo = iter(self.fleet[:count])

        async def worker() -> None:
            connection = await Connection.open(self.place, PATIENCE)
            for beacon in todo:
                answer = await self.ask(connection, beacon)
                found.append((beacon, json.loads(answer.body)))
            connection.close()

        await asyncio.gather(*(worker() for _ in range(at_once)))
        return found

    async def downloads(self, readers: int, seconds: float) -> dict[str, Any]:
        """Whole images, one after another on each connection."""
        given = await self.offers(64)
        before = self.server.rss

        def stock() -> Iterator[bytes]:
            for beacon, offer in cycle(given):
                yield self.request(beacon, "GET", offer["download_url"])

        found = await hammer(self.server.url, stock(), readers, seconds)
        found["rss_growth_mb"] = round((self.server.rss - before) / 1e6, 1)
        return found

    async def slow(self, readers: int, rate: int, seconds: int) -> dict[str, Any]:
        given = cycle(await self.offers(64))
        requests = [
            self.request(beacon, "GET", offer["download_url"])
            for _, (beacon, offer) in zip(range(readers), given, strict=False)
        ]
        return await slow_readers(self.server.url, requests, rate, seconds, lambda: self.server.rss)

    async def cycles(
        self, version: str, count: int, at_once: int, *, twice: bool = False, download: bool = False
    ) -> dict[str, Any]:
        """Poll, report, report, for whole beacons; the count of the rollout must be exact."""
        rollout = self.roll_out(version)
        used, began = self.server.cpu_s, time.perf_counter()
        await update_fleet(self, self.fleet[:count], at_once, twice=twice, download=download)
        took = time.perf_counter() - began
        counted = self.client.get_rollout(rollout)["results"].get("success", 0)
        return {
            "updates_per_s": round(count / took, 1),
            "beacons": count,
            "counted": counted,
            "server_cpu_us": _mean_seconds(self.server.cpu_s - used, count),
        }

    def page(self, rounds: int) -> dict[str, Any]:
        """The first page of a listing of 1,000 beacons, whole, as a client gets it."""
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            rows = self.client.call("GET", "/api/beacons", params={"limit": 1000})["beacons"]
            times.append(time.perf_counter() - began)
        times.sort()
        return {
            "rows": len(rows),
            "median_ms": round(times[len(times) // 2] * 1000, 1),
            "best_ms": round(times[0] * 1000, 1),
        }


async def update_fleet(
    subject: OrchestratorSubject,
    fleet: list[BenchBeacon],
    at_once: int,
    *,
    twice: bool = False,
    download: bool = False,
) -> None:
    """Take beacons through an update each, so many at a time; ``twice``: each report two times."""
    todo = iter(fleet)

    async def worker() -> None:
        one = await Connection.open(subject.place, PATIENCE)
        other = await Connection.open(subject.place, PATIENCE)
        for beacon in todo:
            await _go(subject, one, other, beacon, twice, download)
        one.close()
        other.close()

    await asyncio.gather(*(worker() for _ in range(at_once)))


async def _go(
    subject: OrchestratorSubject,
    one: Connection,
    other: Connection,
    beacon: BenchBeacon,
    twice: bool,
    download: bool,
) -> None:
    answer = await subject.ask(one, beacon)
    offer = json.loads(answer.body)
    if download:
        digest = hashlib.sha256()
        request = subject.request(beacon, "GET", offer["download_url"])
        answer = await one.send_request(request, PATIENCE, DownloadSink(digest.update))
        assert answer.status == 200 and digest.hexdigest() == offer["checksum"]
    version, image = subject.running[beacon.id]
    path = f"/api/beacons/{beacon.id}/ota_status"
    for word in ("rebooting", "success"):
        doc = {
            "firmware_version": offer["version"],
            "update_status": word,
            "updated_at": int(time.time()),
            "previous_version": version,
            "attempt_id": offer["attempt_id"],
            "firmware_id": offer["firmware_id"],
            "image_sha256": offer["checksum"] if word == "success" else image,
        }
        raw = json.dumps(doc).encode()
        asks = [one.send_request(subject.request(beacon, "POST", path, raw), PATIENCE)]
        if twice:
            asks.append(other.send_request(subject.request(beacon, "POST", path, raw), PATIENCE))
        for answer in await asyncio.gather(*asks):
            # The repeated `rebooting` may come after `success`: then it is over.
            assert answer.status == 200 or (twice and answer.status == 409), answer
    subject.running[beacon.id] = offer["version"], offer["checksum"]


def _mean_seconds(seconds: float, count: int) -> float:
    return round(seconds / max(count, 1) * 1e6, 1)
