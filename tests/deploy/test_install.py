"""docs/install.md: its service is one that systemd takes, its exit codes are the program's."""

import ctypes
import json
import os
import re
import select
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import requests

from beacon_ota import errors
from tests.orchestrator.world import COMMAND, DEADLINE_S

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "install.md").read_text()
UNIT = ROOT / "docs" / "deploy" / "beacon-ota.service"
EXPOSURE = 2.0  # of systemd-analyze security, 10 is no protection at all


@pytest.fixture
def unit(tmp_path) -> Path:
    """The service, with the program of this installation."""
    text = UNIT.read_text()
    assert text.count("/opt/beacon-ota/bin/beacon-ota ") == 1
    file = tmp_path / UNIT.name
    file.write_text(text.replace("/opt/beacon-ota/bin/beacon-ota", str(COMMAND)))
    return file


def analyze(*words: object) -> subprocess.CompletedProcess:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here (Debian: apt-get install systemd)")
    return subprocess.run(
        ["systemd-analyze", *map(str, words)], capture_output=True, text=True, check=False
    )


def test_systemd_takes_the_service(unit):
    done = analyze("verify", unit)
    assert done.returncode == 0 and unit.name not in done.stderr, done.stderr


def test_little_is_exposed(unit):
    done = analyze("security", "--offline=true", unit)
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE, done.stdout


def test_the_options_of_the_service_work_without_writable_code(tmp_path):
    """As ``MemoryDenyWriteExecute`` has it: no memory becomes executable."""
    line = re.search(r"^ExecStart=\S+ serve (.*)$", UNIT.read_text(), re.M)
    assert line is not None
    words = line[1].replace("/var/lib/beacon-ota", str(tmp_path / "data")).split()

    def deny() -> None:
        ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE; an older kernel refuses, and goes on

    process = subprocess.Popen(
        [str(COMMAND), "serve", "--insecure", "--port=0", "--json", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=deny,
        umask=0o077,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], DEADLINE_S)
        said = process.stdout.readline() if ready else ""
        assert said, process.stderr.read()
        assert (tmp_path / "data" / "first-token").read_text().strip()
        answer = requests.get(json.loads(said)["url"] + "/health", timeout=DEADLINE_S)
        assert answer.status_code == 200 and "unstored_stops" in answer.json()
        process.send_signal(signal.SIGHUP)  # systemctl reload
        assert requests.get(json.loads(said)["url"] + "/health", timeout=DEADLINE_S).ok
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def codes() -> dict[int, str]:
    return {int(n): text for n, text in re.findall(r"^\| (\d+) \| (.+) \|$", PAGE, re.M)}


def test_the_table_of_exit_codes_is_the_programs(tmp_path):
    kinds = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.BeaconOtaError)
    }
    from beacon_ota.cli.rollout import commands

    assert "5" in Path(str(commands.__file__)).read_text()
    ended = {128 + int(one) for one in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    assert set(codes()) == {0, 5} | kinds | ended
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("BEACON_OTA_")},
        "BEACON_OTA_CONFIG": str(tmp_path),
        "BEACON_OTA_URL": "http://127.0.0.1:9",
    }
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "there").touch()
    for code, words in {
        0: ["--version"],
        1: ["restore", tmp_path / "gone.tar", "--data", tmp_path / "new"],
        2: ["serve", "--workers=2", "--insecure", "--data", tmp_path / "x"],
        3: ["beacon", "list"],
    }.items():
        done = subprocess.run(
            [str(COMMAND), *map(str, words)], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, (words, done.stderr)


def test_every_code_that_the_page_names_is_one():
    known = "\n".join(path.read_text() for path in (ROOT / "host" / "beacon_ota").rglob("*.py"))
    for code in re.findall(r"`([a-z]+_[a-z_]+)`", PAGE):
        assert f'"{code}"' in known or code == "unstored_stops", code


def test_files_that_the_page_names_are_there():
    for name in re.findall(r"docs/deploy/[\w.-]+|\]\((deploy/[\w.-]+)\)", PAGE):
        assert not name or (ROOT / "docs" / name).is_file()
    assert (ROOT / "docs" / "deploy" / "nginx.conf").is_file()
