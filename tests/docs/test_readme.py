"""The README's first steps, typed by somebody who has nothing yet: an empty folder, no board."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.docs.test_docs import commands
from tests.orchestrator.world import COMMAND

README = Path(__file__).parents[2] / "README.md"
WAIT = 120.0  # s, on a busy machine
SECTIONS = ("One virtual beacon, step by step", "The first update")


def block(title: str) -> str:
    """Return a section's text."""
    return README.read_text().split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def lines(title: str) -> list[str]:
    """Return the commands of a section's code blocks, without their comments."""
    found = []
    for line in block(title).splitlines():
        if line.startswith("    "):
            found.append(re.split(r"\s+# ", line.strip())[0])
    return found


@pytest.mark.timeout(600)
def test_the_first_steps(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("BEACON_OTA_")},
        "BEACON_OTA_CONFIG": str(tmp_path / "configuration"),
        "BEACON_OTA_KEYRING": str(tmp_path / "keyring"),
        "BEACON_OTA_KEY_PASSWORD": "a password of its own",
        "BEACON_OTA_URL": f"http://127.0.0.1:{port}",
        "PATH": f"{COMMAND.parent}:{os.environ['PATH']}",
    }
    behind: list[subprocess.Popen] = []

    def run(line: str) -> str:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=WAIT,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done.stdout

    def wait(done) -> None:
        until = time.monotonic() + WAIT
        while not done():
            assert time.monotonic() < until
            time.sleep(0.2)

    def versions() -> list[str]:
        return [row["version"] for row in json.loads(run("beacon-ota beacon list --json"))]

    try:
        for title in SECTIONS:
            for line in lines(title):
                line = line.replace("8080", str(port))
                if line.startswith(("beacon-ota serve", "beacon-ota virtual run")):
                    line = line.replace("beacon-ota serve", f"beacon-ota serve --port {port}")
                    with (tmp_path / f"{len(behind)}.log").open("w") as log:
                        behind.append(
                            subprocess.Popen(
                                shlex.split(line), cwd=tmp_path, env=env, stdout=log, stderr=log
                            )
                        )
                    there = "token" if len(behind) == 1 else "room.socket"
                    wait((tmp_path / there).exists)
                elif line.startswith("export "):
                    name, _, value = line.removeprefix("export ").partition("=")
                    env[name] = run(f"echo {value}").strip()
                else:
                    run(line)
        assert len(behind) == 2
        wait(lambda: versions() == ["1.1.0"])
    finally:
        for process in behind:
            process.send_signal(signal.SIGINT)
        for process in behind:
            process.wait(WAIT)


def test_both_sections_have_commands():
    assert all(len(list(commands(block(title)))) > 5 for title in SECTIONS)
