"""What the orchestrator's tests are made of: a real server, releases, and beacons that sign."""

import asyncio
import hashlib
import hmac
import http.client
import json
import os
import queue
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from beacon_ota.client import Client
from beacon_ota.images import appfs, littlefs_writer, release, synthetic
from beacon_ota.orchestrator.clock import Clock
from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.connection import connect, sqlite_url
from beacon_ota.orchestrator.db.schema_version import migrate_if_due
from beacon_ota.orchestrator.mirror.engine import MirrorEngine
from beacon_ota.orchestrator.server.listen import ListenOptions
from beacon_ota.orchestrator.server.run import run_service
from beacon_ota.orchestrator.settings import Settings
from beacon_ota.wire import auth, auth_header

COMMAND = Path(sys.executable).with_name("beacon-ota")
DEADLINE_S = 120.0  # a busy machine may be this slow


def until(condition, *, deadline_s: float = DEADLINE_S, what: str = ""):
    """Wait for a condition and return what it returned."""
    end = time.monotonic() + deadline_s
    while True:
        if found := condition():
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what or condition}")
        time.sleep(0.02)


@cache
def template() -> bytes:
    """Return an empty database of the newest schema: making one takes a second each time."""
    with tempfile.TemporaryDirectory() as folder:
        engine = connect(sqlite_url(Path(folder)))
        migrate_if_due(engine)
        engine.dispose()
        return (Path(folder) / "beacon-ota.db").read_bytes()


def _prepare(data: Path) -> None:
    if not data.exists():
        data.mkdir()
        (data / "beacon-ota.db").write_bytes(template())


class Server:
    """An orchestrator in a process of its own."""

    def __init__(self, data: Path, *options: str, insecure: bool = True):
        self.data = data
        self.token_file = data.with_name(data.name + ".token")
        self.options = [*options, *(["--insecure"] if insecure else [])]
        self.process: subprocess.Popen[str]
        _prepare(data)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                str(COMMAND),
                "serve",
                f"--data={self.data}",
                "--port=0",
                f"--token-file={self.token_file}",
                "--json",
                *self.options,
            ],
            stdout=subprocess.PIPE,
            stderr=(self.data.with_name(self.data.name + ".log")).open("a"),
            text=True,
        )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
        line = self.process.stdout.readline() if ready else ""
        assert line, f"the server did not start: {self.log()}"
        self.url = json.loads(line)["url"]
        self.token = self.token_file.read_text().strip()

    def log(self) -> str:
        return self.data.with_name(self.data.name + ".log").read_text()

    def admin(self) -> Client:
        return Client(self.url, self.token)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self._gone()

    def kill(self) -> None:
        self.process.kill()
        self._gone()

    def _gone(self) -> int:
        code = self.process.wait(DEADLINE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_exception) -> None:
        if self.process.poll() is None:
            self.kill()


def image(
    version: str,
    *,
    device_type: str = "esp32c3",
    size: int = 8192,
    seed: str = "",
    keys: bytes | None = None,
) -> bytes:
    """Return a release image: a synthetic core and a tiny app, small and valid."""
    core = _core(size, seed)
    info = appfs.AppInfo(version, device_type, hashlib.sha256(core).hexdigest())
    return release.join_core_and_app(core, app_filesystem(info, keys))


def app_filesystem(info: appfs.AppInfo, keys: bytes | None = None) -> bytes:
    """Return an app filesystem without a compiler's help."""
    files = {"app.json": info.pack(), "main.mpy": b"M\x06\x00\x1f"}
    return littlefs_writer.build_filesystem(
        files if keys is None else {**files, "keys.json": keys}, 512
    )


@cache
def _core(size: int, seed: str) -> bytes:
    return synthetic.app_image(size, seed=seed)


def upload(
    admin: Client, version: str, tmp: Path, *, device_type: str = "esp32c3", **fields: str
) -> dict[str, Any]:
    """Build and upload a release."""
    file = tmp / f"{device_type}-{version}.bin"
    file.write_bytes(image(version, device_type=device_type))
    return admin.upload_firmware(file, device_type=device_type, version=version, **fields)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class TestBeacon:
    """The beacon's side of the protocol, with its own clock and nonces."""

    __test__ = False

    def __init__(self, url: str, beacon_id: str, key: bytes, version: str = "1.0.0"):
        self.id, self.key = beacon_id, key
        self.version, self.image = version, hashlib.sha256(version.encode()).hexdigest()
        self.state = "valid"
        self.device_type = "esp32c3"  # that it says it is
        self.clock = time.time
        self.last_header = ""
        self.connect(url)

    def connect(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port, timeout=DEADLINE_S
        )

    def sign(self, method: str, target: str, body: bytes = b"", **changed: Any) -> str:
        """Return an Authorization header; ``changed`` parts are signed as they are."""
        ts = changed.get("ts", int(self.clock()))
        nonce = changed.get("nonce", secrets.token_hex(8))
        digest = hashlib.sha256(body).hexdigest()
        text = auth.request_text(method, target, self.id, ts, nonce, digest)
        mac = hmac.digest(self.key, text, "sha256").hex()
        return auth.build_header(self.id, ts, nonce, mac)

    def call(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        check: bool = True,
    ) -> Answer:
        """Make a signed call; the answer's seal is verified."""
        given = {"Authorization": self.sign(method, target, body), **(headers or {})}
        self.last_header = given["Authorization"]
        connection = self._connection
        for last in (False, True):
            try:
                connection.request(method, target, body or None, given)
                response = connection.getresponse()
                data = response.read()
                break
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                connection.close()  # an idle connection that was closed under us
                if last:
                    raise
        found = {key.lower(): value for key, value in response.getheaders()}
        if check:
            nonce = auth_header.parse_header(given["Authorization"])[2]  # type: ignore[index]
            digest = hashlib.sha256(data).hexdigest()
            if target.startswith("/firmwares/") and response.status in (200, 206):
                digest = found.get("etag", f'"{digest}"').strip('"')
            text = auth.answer_text(nonce, response.status, digest)
            assert found.get("x-beacon-mac") == hmac.digest(self.key, text, "sha256").hex()
        return Answer(response.status, found, data)

    def poll(self) -> Answer:
        target = (
            f"/firmwares/latest/{self.device_type}?version={self.version}"
            f"&image={self.image}&state={self.state}"
        )
        return self.call("GET", target)

    def offer(self) -> dict[str, Any] | None:
        """Poll; return the offer, None when there is none."""
        answer = self.poll()
        assert answer.status in (200, 204), answer.body
        return answer.json if answer.status == 200 else None

    def offered(self) -> dict[str, Any]:
        """Poll; there is an offer."""
        offer = self.offer()
        assert offer is not None
        return offer

    def download(self, offer: dict[str, Any], headers: dict[str, str] | None = None) -> Answer:
        return self.call("GET", offer["download_url"], headers=headers)

    def report(self, status: str, offer: dict[str, Any] | None = None, **more: Any) -> Answer:
        """Send a status report."""
        own = status in ("idle", "success", "rolled_back") or offer is None
        doc: dict[str, Any] = {
            "firmware_version": self.version if own else offer["version"],  # type: ignore[index]
            "update_status": status,
            "updated_at": int(self.clock()),
            "image_sha256": self.image,
        }
        if offer is not None:
            assert isinstance(offer, dict)
            doc |= {
                "attempt_id": offer["attempt_id"],
                "firmware_id": offer["firmware_id"],
                "previous_version": self.version,
            }
        if status == "downloading":
            doc["progress"] = 0
        doc |= more
        body = json.dumps(doc).encode()
        return self.call("POST", f"/api/beacons/{self.id}/ota_status", body)

    def install(self, offer: dict[str, Any]) -> None:
        """Boot the release of an offer, as it is after its self-test."""
        self.version, self.image = offer["version"], offer["checksum"]

    def update(self, offer: dict[str, Any], **more: Any) -> None:
        """Go the whole way of an update that works; ``more`` goes into the last report."""
        assert self.download(offer).status == 200
        assert self.report("rebooting", offer).status == 200
        old = self.version
        self.install(offer)
        answer = self.report("success", offer, previous_version=old, **more)
        assert answer.status == 200, answer.body

    def fail(self, offer: dict[str, Any], stage: str = "verify", code: str = "checksum") -> Answer:
        assert self.download(offer).status == 200
        return self.report("failed", offer, stage=stage, code=code, detail="in a test")


def beacons(server: Any, count: int, prefix: str = "b", **fields: Any) -> list[TestBeacon]:
    """Register beacons and return them."""
    admin = server.admin()
    made = []
    for number in range(count):
        beacon_id = f"{prefix}{number:04}"
        key = secrets.token_bytes(32)
        admin.create_beacon(beacon_id, "esp32c3", key=key.hex(), **fields)
        made.append(TestBeacon(server.url, beacon_id, key))
    return made


def environment(folder: Path, server: Server) -> dict[str, str]:
    """Return an environment in which the command line finds a server."""
    return {
        **os.environ,
        "BEACON_OTA_URL": server.url,
        "BEACON_OTA_TOKEN": server.token,
        "BEACON_OTA_CONFIG": str(folder),
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }


class ManualClock(Clock):
    """A clock that stands still until it is told to go on."""

    def __init__(self, at: float = 1_900_000_000.0):
        super().__init__()
        self.at = at

    def now(self) -> float:
        return self.at

    def real(self, seconds: float) -> float:
        return 3600.0  # nothing comes by itself


class Local:
    """An orchestrator in a thread of this process, on a real socket, with a clock of ours."""

    loop: asyncio.AbstractEventLoop
    service: Service
    engine: Engine
    listen: ListenOptions
    url: str
    token: str

    def __init__(self, data: Path, clock: ManualClock | None = None, **settings: Any):
        self.clock = clock or ManualClock()
        _prepare(data)
        self._settings = Settings(data, **{"insecure": True, "poll_s": 60.0, **settings})
        self._token_file = data.with_name(data.name + ".token")
        self.start()

    def start(self) -> None:
        ready: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        self.url = ready.get(timeout=DEADLINE_S)
        assert self.url, "the server did not start"
        self.token = self._token_file.read_text().strip()

    def _run(self, ready: "queue.Queue[str]") -> None:
        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            self.service = Service(self._settings, self.clock)
            local = self._settings.upstream is not None
            self.engine = (MirrorEngine if local else Engine)(self.service)
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            self.listen = ListenOptions(
                token_file=self._token_file, on_ready=lambda url, _token: ready.put(url)
            )
            await run_service(self.service, self.engine, sock, self.listen)

        try:
            asyncio.run(main())
        finally:
            ready.put("")

    def admin(self) -> Client:
        return Client(self.url, self.token)

    def beacons(self, count: int, prefix: str = "b", **fields: Any) -> list[TestBeacon]:
        made = beacons(self, count, prefix, **fields)
        for beacon in made:
            beacon.clock = self.clock.now
        return made

    def call(self, work: Any) -> Any:
        """Await something on the server's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(DEADLINE_S)

    def go_on(self, seconds: float) -> None:
        """Let time pass, then have the engine do everything that is due."""
        self.clock.at += seconds
        self.step()

    def step(self) -> None:
        async def everything() -> None:
            for entry in list(self.service.fleet.rollouts.values()):
                async with self.engine.rollout_lock:
                    await self.engine.evaluate_rollout(entry)

        self.call(everything())

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.listen.stop.set)
            self._thread.join(DEADLINE_S)

    def __enter__(self) -> "Local":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
