"""openmv-ota 1.0.7: check-ins without device authentication, as it is designed."""

import asyncio
import contextlib
import json
import sqlite3
import time
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from beacon_ota.swarm.http import Connection, DownloadSink, ServerAddress
from tests.bench.load import hammer
from tests.bench.peers.environment import python
from tests.bench.subject import Subject, free_port

REQUIREMENTS = ("openmv-ota[server]==1.0.7",)
NAME = "openmv-ota 1.0.7"
_PATIENCE = 120.0


class Openmv:
    """What is measured on it."""

    def __init__(self, folder: Path, image: Path, devices: int):
        interpreter = python("openmv-ota", *REQUIREMENTS)
        port = free_port()
        self._folder = folder / "openmv"
        self._folder.mkdir()
        script = Path(__file__).with_name("openmv_server.py")
        command = [str(interpreter), "-P", str(script), str(port), str(self._folder), str(image)]
        self.server = Subject(NAME, command, f"http://127.0.0.1:{port}", folder / "openmv.log")
        self.place = ServerAddress.parse_url(self.server.url)
        self._ids = [f"b{number:05}" for number in range(devices)]

    def _check(self, one: str, version: int) -> bytes:
        doc = {
            "device_id": one,
            "product_id": 1,
            "board": "BENCH",
            "app_version": f"1.{version - 1}.0",
            "payload_version": version,
            "confirmed": True,
        }
        raw = json.dumps(doc).encode()
        head = "POST /api/v1/check HTTP/1.1\r\nHost: o\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw

    async def enrol(self) -> None:
        """Every device checks in once, so that it is known."""
        await hammer(self.server.url, [self._check(one, 1) for one in self._ids], 16, 60)

    async def polls(self, connections: int, seconds: float) -> dict[str, Any]:
        made = cycle([self._check(one, 1) for one in self._ids])
        return await hammer(self.server.url, made, connections, seconds)

    async def downloads(self, readers: int, seconds: float) -> dict[str, Any]:
        connection = await Connection.open(self.place, _PATIENCE)
        answer = await connection.send_request(self._check(self._ids[0], 1), _PATIENCE)
        connection.close()
        path = urlsplit(json.loads(answer.body)["manifest_url"]).path
        path = path.replace("manifest.bin", "image.bin")
        made = cycle([f"GET {path} HTTP/1.1\r\nHost: o\r\n\r\n".encode()])
        return await hammer(self.server.url, made, readers, seconds)

    async def cycles(self, count: int, at_once: int) -> dict[str, Any]:
        """Check-in on the old version, manifest, check-in on the new one: three calls."""
        todo = iter(self._ids[:count])
        wrong = 0

        async def worker() -> None:
            nonlocal wrong
            connection = await Connection.open(self.place, _PATIENCE)
            for one in todo:
                answer = await connection.send_request(self._check(one, 1), _PATIENCE)
                path = urlsplit(json.loads(answer.body)["manifest_url"]).path
                request = f"GET {path} HTTP/1.1\r\nHost: o\r\n\r\n".encode()
                found = await connection.send_request(
                    request, _PATIENCE, DownloadSink(lambda piece: None)
                )
                last = await connection.send_request(self._check(one, 2), _PATIENCE)
                wrong += sum(each.status != 200 for each in (answer, found, last))
            connection.close()

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(at_once)))
        took = time.perf_counter() - began
        with contextlib.closing(sqlite3.connect(self._folder / "ota.db")) as database:
            (counted,) = database.execute("SELECT updated FROM rollouts").fetchone()
        return {
            "updates_per_s": round(count / took, 1),
            "beacons": count,
            "counted": counted,
            "wrong": wrong,
        }
