"""Our server under the load: every beacon authenticated, every answer signed."""

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
from beacon_ota.swarm.http import Connection, DownloadSink, ServerAddress
from beacon_ota.swarm.signing import sign_request
from tests.bench.load import hammer, slow_readers
from tests.bench.subject import Subject, Watched

SIZE = 1_638_400
TYPE = "esp32c3"
TAG = "bench"
PATIENCE = 60.0
_RATE = 20_000  # requests per second that are made ready at most


class Simple(NamedTuple):
    """A beacon of the bench."""

    id: str
    key: bytes


def start(folder: Path) -> Subject:
    """Start an orchestrator on SQLite, as it comes."""
    command = [sys.executable, "-m", "beacon_ota", "serve", "--insecure", "--json", "--port=0"]
    command += [f"--data={folder / 'data'}", "--window=00:00-24:00"]
    return Subject("ours", command, None, folder / "ours.log")


class Ours:
    """What is measured on it.

    Args:
        fleet: beacons that are registered already: ``id``, ``key``, ``version``, ``image``.
    """

    def __init__(self, server: Watched, token: str, fleet: Iterable[Any] = ()):
        self.server, self.token = server, token
        self.place = ServerAddress.parse_url(server.url)
        self.client = Client(server.url, token)
        self.fleet = [Simple(one.id, one.key) for one in fleet]
        self.running = {one.id: (one.version, one.image) for one in fleet}

    async def register(self, count: int) -> None:
        names = [(f"b{number:05}", 0, "bench") for number in range(count)]
        self.client.create_site("bench")
        made = await enrol.enrol_beacons(self.place, self.token, names, TYPE, TAG)
        self.fleet = [Simple(one.id, one.key) for one in made]
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

    def poll(self, beacon: Simple, ts: int | None = None) -> bytes:
        version, image = self.running[beacon.id]
        target = f"/firmwares/latest/{TYPE}?version={version}&image={image}&state=valid"
        return self.request(beacon, "GET", target, ts=ts)

    def request(
        self, beacon: Simple, method: str, target: str, body: bytes = b"", ts: int | None = None
    ) -> bytes:
        now = int(time.time()) if ts is None else ts
        return sign_request(beacon.id, beacon.key, method, target, now, body=body, keep=True)[0]

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
        found["server_cpu_us"] = _each(self.server.cpu_s - used, found["requests"])
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
                answer = await connection.send_request(self.poll(next(todo)), PATIENCE)
                connection.close()
                assert answer.status == 200, answer
                count += 1

        await asyncio.gather(*(worker() for _ in range(at_once)))
        return {
            "requests_per_s": round(count / (time.perf_counter() - began)),
            "requests": count,
            "server_cpu_us": _each(self.server.cpu_s - used, count),
            "generator_cpu_us": _each(time.process_time() - own, count),
        }

    async def offers(self, count: int, at_once: int = 16) -> list[tuple[Simple, dict[str, Any]]]:
        """Have beacons ask; return their offers."""
        found: list[tuple[Simple, dict[str, Any]]] = []
        todo = iter(self.fleet[:count])

        async def worker() -> None:
            connection = await Connection.open(self.place, PATIENCE)
            for beacon in todo:
                answer = await connection.send_request(self.poll(beacon), PATIENCE)
                assert answer.status == 200, answer
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
        await update(self, self.fleet[:count], at_once, twice=twice, download=download)
        took = time.perf_counter() - began
        counted = self.client.get_rollout(rollout)["results"].get("success", 0)
        return {
            "updates_per_s": round(count / took, 1),
            "beacons": count,
            "counted": counted,
            "server_cpu_us": _each(self.server.cpu_s - used, count),
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


async def update(
    ours: Ours, fleet: list[Simple], at_once: int, *, twice: bool = False, download: bool = False
) -> None:
    """Take beacons through an update each, so many at a time; ``twice``: each report two times."""
    todo = iter(fleet)

    async def worker() -> None:
        one = await Connection.open(ours.place, PATIENCE)
        other = await Connection.open(ours.place, PATIENCE)
        for beacon in todo:
            await _go(ours, one, other, beacon, twice, download)
        one.close()
        other.close()

    await asyncio.gather(*(worker() for _ in range(at_once)))


async def _go(
    ours: Ours, one: Connection, other: Connection, beacon: Simple, twice: bool, download: bool
) -> None:
    answer = await one.send_request(ours.poll(beacon), PATIENCE)
    assert answer.status == 200, answer
    offer = json.loads(answer.body)
    if download:
        digest = hashlib.sha256()
        request = ours.request(beacon, "GET", offer["download_url"])
        answer = await one.send_request(request, PATIENCE, DownloadSink(digest.update))
        assert answer.status == 200 and digest.hexdigest() == offer["checksum"]
    version, image = ours.running[beacon.id]
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
        asks = [one.send_request(ours.request(beacon, "POST", path, raw), PATIENCE)]
        if twice:
            asks.append(other.send_request(ours.request(beacon, "POST", path, raw), PATIENCE))
        for answer in await asyncio.gather(*asks):
            # The repeated `rebooting` may come after `success`: then it is over.
            assert answer.status == 200 or (twice and answer.status == 409), answer
    ours.running[beacon.id] = offer["version"], offer["checksum"]


def _each(seconds: float, count: int) -> float:
    return round(seconds / max(count, 1) * 1e6, 1)
