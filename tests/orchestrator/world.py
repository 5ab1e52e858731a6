"""What the orchestrator's tests are made of: a real server, releases, and beacons that sign."""

import hashlib
import hmac
import http.client
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from beacon_ota.client import Client
from beacon_ota.images import appfs, littlefs, release, synthetic
from beacon_ota.wire import auth

COMMAND = Path(sys.executable).with_name("beacon-ota")
DEADLINE_S = 20.0


def until(condition, *, deadline_s: float = DEADLINE_S, what: str = ""):
    """Wait for a condition and return what it returned."""
    end = time.monotonic() + deadline_s
    while True:
        if found := condition():
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what or condition}")
        time.sleep(0.02)


class Server:
    """An orchestrator in a process of its own."""

    def __init__(self, data: Path, *options: str, insecure: bool = True):
        self.data = data
        self.token_file = data.with_name(data.name + ".token")
        self.options = [*options, *(["--insecure"] if insecure else [])]
        self.process: subprocess.Popen[str]
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


def image(version: str, *, device_type: str = "esp32c3", size: int = 8192, seed: str = "") -> bytes:
    """Return a release image: a synthetic core and a tiny app, small and valid."""
    core = synthetic.app(size, seed=seed)
    info = appfs.AppInfo(version, device_type, hashlib.sha256(core).hexdigest())
    return release.build(core, app_filesystem(info))


def app_filesystem(info: appfs.AppInfo) -> bytes:
    """Return an app filesystem without a compiler's help."""
    return littlefs.build({"app.json": info.pack(), "main.mpy": b"M\x06\x00\x1f"}, 512)


def upload(admin: Client, version: str, tmp: Path, **fields: str) -> dict[str, Any]:
    """Build and upload a release."""
    file = tmp / f"{version}.bin"
    file.write_bytes(image(version))
    return admin.upload(file, device_type="esp32c3", version=version, **fields)


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
        self.clock = time.time
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
        return auth.header(self.id, ts, nonce, mac)

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
            nonce = auth.parse(given["Authorization"])[2]  # type: ignore[index]
            digest = hashlib.sha256(data).hexdigest()
            if target.startswith("/firmwares/") and response.status in (200, 206):
                digest = found.get("etag", f'"{digest}"').strip('"')
            text = auth.answer_text(nonce, response.status, digest)
            assert found.get("x-beacon-mac") == hmac.digest(self.key, text, "sha256").hex()
        return Answer(response.status, found, data)

    def poll(self) -> Answer:
        target = (
            f"/firmwares/latest/esp32c3?version={self.version}"
            f"&image={self.image}&state={self.state}"
        )
        return self.call("GET", target)

    def offer(self) -> dict[str, Any] | None:
        """Poll; return the offer, None when there is none."""
        answer = self.poll()
        assert answer.status in (200, 204), answer.body
        return answer.json if answer.status == 200 else None

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

    def update(self, offer: dict[str, Any]) -> None:
        """Go the whole way of an update that works."""
        assert self.download(offer).status == 200
        assert self.report("rebooting", offer).status == 200
        old = self.version
        self.install(offer)
        answer = self.report("success", offer, previous_version=old)
        assert answer.status == 200, answer.body

    def fail(self, offer: dict[str, Any], stage: str = "verify", code: str = "checksum") -> Answer:
        assert self.download(offer).status == 200
        return self.report("failed", offer, stage=stage, code=code, detail="in a test")


def beacons(server: Server, count: int, prefix: str = "b", **fields: Any) -> list[TestBeacon]:
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
