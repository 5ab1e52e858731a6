"""An orchestrator in a process of its own, as ``beacon-ota serve`` runs it."""

import json
import selectors
import subprocess
import sys
from pathlib import Path

from beacon_ota.client import Client
from beacon_ota.errors import ReachError

START_S = 30.0
STOP_S = 10.0


class Server:
    """Starts with a free port and an empty data folder; ends with the context.

    Args:
        folder: for its data and its log.
        keys: ``keys.json`` of those it trusts.
        scale: its clock runs so much faster.
        poll_s: between two polls of a beacon, in its own seconds.
        port: 0 takes a free one.
    """

    def __init__(self, folder: Path, keys: Path, *, scale: float, poll_s: float, port: int = 0):
        self._log = (folder / "orchestrator.log").open("w")
        command = [sys.executable, "-m", "beacon_ota", "serve", "--json"]
        command += ["--data", str(folder / "data"), "--keys", str(keys), "--port", str(port)]
        command += ["--time-scale", str(scale), "--poll", str(poll_s), "--window", "00:00-24:00"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        try:
            said = json.loads(self._line() or "{}")
            self.url, self.token = str(said["url"]), str(said["token"])
        except (KeyError, ValueError):
            self.close()
            raise ReachError(
                "orchestrator_start", f"the orchestrator did not start; see {self._log.name}"
            ) from None
        self.port = int(self.url.rsplit(":", 1)[1])
        self.client = Client(self.url, self.token)

    def _line(self) -> str:
        out = self._process.stdout
        assert out is not None
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            return out.readline() if selector.select(START_S) else ""

    def close(self) -> None:
        """End the process, gracefully if it lets itself be asked."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
