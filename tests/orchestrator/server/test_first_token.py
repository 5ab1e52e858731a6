"""The first admin token is never lost: a start that fails makes none that stays."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from beacon_ota.client import Client
from tests.orchestrator.postgres import cluster
from tests.orchestrator.world import COMMAND, DEADLINE_S, Server, until


def command(data: Path, *options: str) -> list[str]:
    return [str(COMMAND), "serve", f"--data={data}", "--port=0", "--insecure", *options]


def fails(data: Path, *options: str) -> str:
    done = subprocess.run(
        command(data, *options), capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode in (2, 3), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


def places(tmp_path: Path, where: str) -> list[str]:
    if where == "sqlite":
        return []
    workers = ["--workers=2"] if where == "workers" else []
    return [f"--database={cluster().create_database()}", *workers]


@pytest.mark.parametrize("where", ["sqlite", "postgresql", "workers"])
def test_a_start_that_fails_costs_no_token(tmp_path, where):
    options = places(tmp_path, where)
    bad = tmp_path / "bad.pem"
    bad.write_text("x")
    said = fails(tmp_path / "data", *options, f"--tls-cert={bad}", f"--tls-key={bad}")
    assert "tls_certificate" in said
    nowhere = tmp_path / "missing" / "token"
    assert "token_file" in fails(tmp_path / "data", *options, f"--token-file={nowhere}")
    assert "token_file" in fails(tmp_path / "data", *options, f"--token-file={tmp_path}")
    with Server(tmp_path / "data", *options) as server:
        (token,) = server.admin().list_tokens()
        assert token["name"] == "first"


@pytest.mark.parametrize("where", ["sqlite", "workers"])
def test_nobody_reads_standard_output(tmp_path, where):
    """Closed, or a pipe that nobody reads: the server goes on, and the token is made again."""
    options = places(tmp_path, where)
    log = (tmp_path / "log").open("w+")
    reading, writing = os.pipe()
    os.close(reading)
    with Server(tmp_path / "other"):  # the template is made
        pass
    process = subprocess.Popen(
        command(tmp_path / "data", *options, "--json"), stdout=writing, stderr=log
    )
    os.close(writing)
    try:
        until(lambda: "shown to nobody" in (tmp_path / "log").read_text())
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    log.close()
    assert "Traceback" not in (tmp_path / "log").read_text()
    with Server(tmp_path / "data", *options) as server:
        names = {one["name"]: one["revoked_at"] for one in server.admin().list_tokens()}
        assert len(server.admin().list_tokens()) == 2 and None in names.values()


def test_standard_files_that_are_closed_are_no_database(tmp_path):
    """A database must never be file 1 or 2, to which things are printed."""
    token = tmp_path / "token"
    script = 'exec "$@" >&- 2>&- <&-'
    arguments = command(tmp_path / "data", f"--token-file={token}")
    process = subprocess.Popen(["/bin/sh", "-c", script, "sh", *arguments])
    try:
        until(lambda: token.exists() and token.read_text().endswith("\n"))
        for number in range(3):
            held = os.readlink(f"/proc/{process.pid}/fd/{number}")
            assert held == "/dev/null", held
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(DEADLINE_S) == 0


def test_it_is_shown_once(tmp_path):
    def start() -> dict:
        process = subprocess.Popen(
            command(tmp_path / "data", "--json"), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        if said["token"]:
            assert Client(said["url"], said["token"]).list_tokens()
        process.terminate()
        process.wait(DEADLINE_S)
        process.stdout.close()
        return said

    assert start()["token"].startswith("bota_")
    assert start()["token"] is None
