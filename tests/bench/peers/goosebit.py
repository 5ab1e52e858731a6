"""goosebit 0.2.12: hawkBit's device API, its default of no device authentication."""

import asyncio
import contextlib
import json
import sqlite3
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import requests

from beacon_ota.swarm.http import Connection, DownloadSink, ServerAddress
from tests.bench.load import hammer
from tests.bench.peers.environment import python
from tests.bench.subject import Subject, free_port

REQUIREMENTS = ("goosebit==0.2.12", "uvloop", "httptools")
NAME = "goosebit 0.2.12"
_PATIENCE = 120.0


class Goosebit:
    """What is measured on it."""

    def __init__(self, folder: Path, image: Path, devices: int):
        interpreter = python("goosebit", *REQUIREMENTS)
        port = free_port()
        self._folder = folder / "goosebit"
        self._folder.mkdir()
        script = Path(__file__).with_name("goosebit_server.py")
        command = [str(interpreter), "-P", str(script), str(port), str(self._folder), str(image)]
        self.server = Subject(
            NAME, [*command, str(devices)], f"http://127.0.0.1:{port}", folder / "goosebit.log"
        )
        self.place = ServerAddress.parse_url(self.server.url)
        self._ids = [f"b{number:05}" for number in range(devices)]

    def _get(self, path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\nHost: o\r\n\r\n".encode()

    async def polls(self, connections: int, seconds: float) -> dict[str, Any]:
        made = cycle([self._get(f"/DEFAULT/controller/v1/{one}") for one in self._ids])
        return await hammer(self.server.url, made, connections, seconds)

    async def downloads(self, readers: int, seconds: float) -> dict[str, Any]:
        made = cycle([self._get(f"/DEFAULT/controller/v1/{self._ids[0]}/download")])
        return await hammer(self.server.url, made, readers, seconds)

    async def cycles(self, count: int, at_once: int) -> dict[str, Any]:
        """poll, configData, poll, deploymentBase, two feedbacks, poll: seven calls."""
        todo = iter(self._ids[:count])
        wrong = 0

        async def worker() -> None:
            nonlocal wrong
            connection = await Connection.open(self.place, _PATIENCE)
            for one in todo:
                wrong += await self._go(connection, one)
            connection.close()

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(at_once)))
        took = time.perf_counter() - began
        with contextlib.closing(sqlite3.connect(self._folder / "db.sqlite3")) as database:
            (counted,) = database.execute("SELECT success_count FROM rollout").fetchone()
        return {
            "updates_per_s": round(count / took, 1),
            "beacons": count,
            "counted": counted,
            "wrong": wrong,
        }

    async def _go(self, connection: Connection, one: str) -> int:
        base = f"/DEFAULT/controller/v1/{one}"
        data = {"data": {"hw_boardname": "default", "sw_version": "1.0.0"}}
        going = {"execution": "proceeding", "result": {"finished": "none"}, "details": [""]}
        done = {"execution": "closed", "result": {"finished": "success"}, "details": [""]}
        wrong = 0
        for method, path, body in (
            ("GET", base, None),
            ("PUT", f"{base}/configData", data),
            ("GET", base, None),
            ("GET", f"{base}/deploymentBase/1", None),
            ("POST", f"{base}/deploymentBase/1/feedback", {"status": going}),
            ("POST", f"{base}/deploymentBase/1/feedback", {"status": done}),
            ("GET", base, None),
        ):
            raw = b"" if body is None else json.dumps(body).encode()
            head = f"{method} {path} HTTP/1.1\r\nHost: o\r\nContent-Type: application/json\r\n"
            request = f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw
            answer = await connection.send_request(
                request, _PATIENCE, DownloadSink(lambda piece: None)
            )
            wrong += answer.status >= 300
        return wrong

    def page(self) -> dict[str, Any]:
        """All devices: it has no pages in its API."""
        form = {"username": "bench", "password": "bench"}
        token = requests.post(f"{self.server.url}/login", data=form, timeout=60).json()
        headers = {"Authorization": f"Bearer {token['access_token']}"}
        began = time.perf_counter()
        answer = requests.get(f"{self.server.url}/api/v1/devices", headers=headers, timeout=120)
        answer.raise_for_status()
        took = time.perf_counter() - began
        return {"rows": len(answer.json()["devices"]), "median_ms": round(took * 1000, 1)}
