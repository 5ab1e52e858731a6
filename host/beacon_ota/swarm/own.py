"""An orchestrator of the swarm's own, in a process beside it: no other needs to be touched."""

import json
import os
import selectors
import subprocess
import sys
import tempfile
from pathlib import Path

from beacon_ota.errors import ReachError
from beacon_ota.swarm.scenario import WINDOW, Scenario

_START_S = 60.0
_STOP_S = 20.0


class Own:
    """Takes a free port and unsigned releases, ends with the context, and leaves nothing behind."""

    def __init__(self, scenario: Scenario):
        self._folder = tempfile.TemporaryDirectory(prefix="beacon-swarm-")
        root = Path(self._folder.name)
        self._log = (root / "log").open("w+")
        command = [sys.executable, "-m", "beacon_ota", "serve", "--insecure", "--json"]
        command += [f"--data={root / 'data'}", "--port=0", f"--window={WINDOW}"]
        command += [f"--poll={scenario.poll_s}", f"--time-scale={scenario.scale}"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        try:
            said = json.loads(self._line() or "{}")
            self.url, self.token = str(said["url"]), str(said["token"])
        except (KeyError, ValueError):
            reason = self.log().strip().splitlines()[-1:] or ["it said nothing"]
            self.close()
            raise ReachError(
                "orchestrator_start", f"the orchestrator did not start: {reason[0]}"
            ) from None

    def _line(self) -> str:
        out = self._process.stdout
        assert out is not None
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            return out.readline() if selector.select(_START_S) else ""

    def log(self) -> str:
        """Return what it has logged."""
        self._log.flush()
        return Path(self._log.name).read_text()

    def usage(self) -> dict[str, float]:
        """Return its CPU seconds and memory (RSS, MB) until now; nothing where nobody tells."""
        return usage(self._process.pid)

    def close(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()
        self._folder.cleanup()

    def __enter__(self) -> "Own":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def usage(pid: int) -> dict[str, float]:
    """Return CPU seconds and RSS in MB of a process; empty where there is no /proc."""
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
