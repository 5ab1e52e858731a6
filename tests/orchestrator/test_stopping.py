"""A rollout is stopped when somebody says so, whatever the database does; and stays so.

Real full disks, locks held by other processes, a PostgreSQL that is stopped, workers that are
killed.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from beacon_ota.orchestrator.limits import LIMITS
from tests.orchestrator.postgres import cluster
from tests.orchestrator.world import (
    COMMAND,
    DEADLINE_S,
    Server,
    TestBeacon,
    beacons,
    environment,
    template,
    until,
    upload,
)

PLAN = {"preset": "all-at-once", "window": "00:00-24:00"}
NOW_S = 30.0  # what "at once" may take on a busy machine; a locked database alone takes as long
UNSTORED = 5


@contextmanager
def small_disk(folder: Path, size: str = "4m"):
    """Mount a file system of its own, small enough to fill."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte of room."""
    file = folder / "ballast"
    with file.open("ab", buffering=0) as out:
        for size in (65536, 4096, 1):
            try:
                while True:
                    out.write(b"x" * size)
            except OSError:
                pass
    return file


def is_refused(server: Server) -> bool:
    """Write something; tell whether there was no room for it."""
    name = f"s{time.monotonic_ns()}"
    answer = requests.post(
        f"{server.url}/api/sites",
        json={"path": name},
        headers={"Authorization": f"Bearer {server.token}"},
        timeout=DEADLINE_S,
    )
    return answer.status_code == 503


LOCK = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
db.execute("ROLLBACK")
"""


@contextmanager
def locked(data: Path):
    """Have another process hold the database's lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOCK, str(data / "beacon-ota.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline()
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(DEADLINE_S)
        process.stdout.close()


def started(server: Server, tmp: Path, count: int = 3) -> tuple[list[TestBeacon], str]:
    """Return beacons and a rollout to all of them."""
    admin = server.admin()
    fleet = beacons(server, count)
    firmware = upload(admin, "1.1.0", tmp, channel="stable")["firmware_id"]
    return fleet, admin.create_rollout(firmware, PLAN)["rollout_id"]


def cli(server: Server, tmp: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMMAND), *words],
        env=environment(tmp, server),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def post(server: Server, rollout: str, verb: str, token: str = "") -> requests.Response:
    return requests.post(
        f"{server.url}/api/rollouts/{rollout}/{verb}",
        json={"reason": "in a test"},
        headers={"Authorization": f"Bearer {token or server.token}"},
        timeout=DEADLINE_S,
    )


def health(server: Server) -> dict:
    return requests.get(f"{server.url}/health", timeout=DEADLINE_S).json()


def get(server: Server, path: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {server.token}"}
    return requests.get(server.url + path, headers=headers, timeout=DEADLINE_S)


def test_a_full_disk_does_not_keep_a_rollout_going(tmp_path):
    with small_disk(tmp_path / "disk") as disk, Server(disk / "data") as server:
        fleet, rollout = started(server, tmp_path)
        offers = [beacon.offered() for beacon in fleet]
        assert fleet[0].download(offers[0]).status == 200
        ballast = fill(disk)
        until(lambda: fill(disk) and all(is_refused(server) for _ in range(3)))

        done = cli(server, tmp_path, "rollout", "halt", rollout, "--reason", "smoke")
        assert done.returncode == UNSTORED, (done.stdout, done.stderr)
        assert "halted" in done.stdout and "memory" in done.stderr
        for beacon, offer in zip(fleet, offers, strict=True):
            assert beacon.download(offer).status == 410
        assert fleet[0].report("rebooting", offers[0]).status == 410
        assert fleet[1].poll().status == 204
        assert health(server)["unstored_stops"] == [rollout]
        gauge = f'beacon_ota_rollout_stop_unstored{{rollout="{rollout}"}} 1.0'
        assert gauge in get(server, "/metrics").text
        assert server.admin().rollout(rollout)["stored"] is False
        said = post(server, rollout, "halt")  # another administrator, or the same again
        assert said.status_code == 202 and said.json()["survives_restart"] is True
        assert post(server, rollout, "resume").json()["code"] == "stop_unstored"

        # Killed before it was stored, and started again on the same full disk.
        server.kill()
        server.start()
        for beacon, offer in zip(fleet, offers, strict=True):
            beacon.connect(server.url)
            assert beacon.poll().status == 204
            assert beacon.download(offer).status == 410
        assert health(server)["unstored_stops"] == [rollout]

        ballast.unlink()
        until(lambda: health(server)["unstored_stops"] == [])
        found = server.admin().rollout(rollout)
        assert found["status"] == "halted" and found["stored"] is True
        last = found["transitions"][-1]
        assert (last["kind"], last["detail"]) == ("halted", "smoke")
        assert server.admin().verify_audit()["entries"]
        assert cli(server, tmp_path, "rollout", "resume", rollout, "--yes").returncode == 0
        assert fleet[1].offer() is not None
        # What was stored does not come back either: the note is empty again.
        assert server.stop() == 0
        server.start()
        fleet[2].connect(server.url)
        assert fleet[2].offer() is not None
