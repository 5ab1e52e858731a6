"""Starts ``beacon-ota serve`` in a process of its own, for demonstrations and measurements."""

import json
import os
import selectors
import subprocess
import sys
from pathlib import Path

from beacon_ota import lifeline
from beacon_ota.errors import ReachError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


class OrchestratorProcess:
    """A running orchestrator with data and log in a folder; ends with the context.

    Args:
        folder: an empty folder.
        options: options of ``beacon-ota serve``; the port is a free one by default.

    Attributes:
        url: the URL that the server announced.
        token: the admin token that it announced.

    Raises:
        ReachError: ``orchestrator_start``, with the last line of the log.
    """

    def __init__(self, folder: Path, *options: str):
        self._log = (folder / "orchestrator.log").open("w")
        command = [sys.executable, "-m", "beacon_ota", "serve", "--json", "--port=0"]
        self._process = subprocess.Popen(
            [*command, f"--data={folder / 'data'}", *options],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            **lifeline.options(),
        )
        try:
            announced = json.loads(self._read_line() or "{}")
            self.url, self.token = str(announced["url"]), str(announced["token"])
        except (KeyError, ValueError):
            self.close()
            last = self.log().strip().splitlines()[-1:] or ["it said nothing"]
            raise ReachError(
                "orchestrator_start", f"the orchestrator did not start: {last[0]}"
            ) from None

    def _read_line(self) -> str:
        out = self._process.stdout
        assert out is not None
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            return out.readline() if selector.select(START_TIMEOUT_S) else ""

    def log(self) -> str:
        """Return the text of the log."""
        return Path(self._log.name).read_text()

    def usage(self) -> dict[str, float]:
        """Return CPU seconds and RSS (MB) of the process until now; empty without /proc."""
        return process_usage(self._process.pid)

    def close(self) -> None:
        """Terminate the process; kill it after ``STOP_TIMEOUT_S`` seconds."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> "OrchestratorProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def process_usage(pid: int) -> dict[str, float]:
    """Return CPU seconds and RSS (MB) of a process; empty without /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    ticks = os.sysconf("SC_CLK_TCK")
    return {
        "cpu_s": (int(stat[11]) + int(stat[12])) / ticks,
        "rss_mb": round(int(status.split("VmRSS:")[1].split()[0]) / 1024, 1),
    }
