"""A server under test: a process, where it listens, and what it uses."""

import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from beacon_ota.orchestrator.server.subprocess import process_usage

START_S = 60.0

FLOOR = """
import json, sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Route
class Bare:
    async def __call__(self, scope, receive, send):
        if scope["path"] == "/file":
            await FileResponse(sys.argv[2])(scope, receive, send)
            return
        head = [(b"content-length", b"27"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b'{"what": "a bare response"}'})
uvicorn.run(Bare(), port=int(sys.argv[1]), loop="uvloop", http="httptools", lifespan="off",
            access_log=False, log_level="error")
"""


class Watched:
    """A server that runs already."""

    def __init__(self, url: str, process: subprocess.Popen):
        self.url, self.process = url, process

    @property
    def cpu_s(self) -> float:
        """CPU seconds until now."""
        return process_usage(self.process.pid)["cpu_s"]

    @property
    def rss(self) -> int:
        """Memory in bytes."""
        return int(process_usage(self.process.pid)["rss_mb"] * 1024 * 1024)


class Subject(Watched):
    """A server process; ends with the context.

    Args:
        name: in the table.
        command: starts it.
        url: where it listens; None when it says so itself, as the first line of JSON on stdout.
    """

    def __init__(self, name: str, command: Sequence[str], url: str | None, log: Path):
        self.name = name
        self._log = log.open("w")
        self._path = log
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE if url is None else self._log,
            stderr=self._log,
            text=True,
        )
        super().__init__(url or "", process)
        self.said: dict = {}
        if url is None:
            out = process.stdout
            assert out is not None
            ready, _, _ = select.select([out], [], [], START_S)
            line = out.readline() if ready else ""
            if not line:
                self.close()
                raise RuntimeError(f"{name} did not start: {self.log()[-2000:]}")
            self.said = json.loads(line)
            self.url = str(self.said["url"])
        else:
            self._wait(url)

    def _wait(self, url: str) -> None:
        parts = urlsplit(url)
        end = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection((parts.hostname or "", parts.port or 80), 1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    self.close()
                    raise RuntimeError(f"{self.name} did not start: {self.log()[-2000:]}") from None
                time.sleep(0.05)

    def log(self) -> str:
        return self._path.read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()

    def __enter__(self) -> "Subject":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def floor(folder: Path, file: Path) -> Subject:
    """A route that does nothing, and a file, on the server software that ours uses."""
    port = free_port()
    command = [sys.executable, "-c", FLOOR, str(port), str(file)]
    return Subject("floor", command, f"http://127.0.0.1:{port}", folder / "floor.log")
