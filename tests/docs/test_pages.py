"""Every command of README and docs does what its page says, as far as no board is needed.

A command is run in an empty folder of its page, in the page's order, against a server of this test;
or it stands in ``NOT_RUN`` with the reason. The README's first steps are in ``test_readme.py``.
"""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.test_docs import PAGES, commands
from tests.docs.test_readme import SECTIONS, block
from tests.orchestrator.world import COMMAND, Server, TestBeacon

WAIT = 120.0  # s, on a busy machine
PASSWORD = "a password of its own"
BOARD, AIR = "a board on a serial port", "Bluetooth; tests/provision run these over the air"
OTHERS, LONG = "other machines", "minutes to hours; tests/campaign and tests/swarm run parts"
NOT_RUN = {
    r"flash(-batch)? ": BOARD,
    r"provision (scan|wifi|batch|status|reset)": AIR,
    r"monitor": AIR,
    r"core fetch": OTHERS,
    r"campaign ": LONG,
    r"swarm run": LONG,
    r"serve --database": OTHERS,
    r"virtual fleet .*…": "a part is left out on the page",
    r"image flash …": "a part is left out on the page",
}
# What a page takes for granted, made by commands before its own.
KEYS = ["keys new office", "keys export -o keys.json"]
BEFORE: dict[str, list[str]] = {
    "firmware.md": KEYS,
    "images.md": KEYS,
    "mirrors.md": KEYS,
    "orchestrator.md": KEYS,
    "rollouts.md": [*KEYS, "site add hq", "site add hq/a", "site add hq/b"],
    "virtual-beacon.md": ["image flash --version 1.0.0 --insecure --synthetic -o flash.bin"],
}


def pages() -> dict[str, list[str]]:
    """Return the commands of each page that has some, in its order."""
    found = {}
    for page in PAGES:
        text = page.read_text()
        if page.name == "README.md":
            for title in SECTIONS:
                text = text.replace(block(title), "")
        lines = [line.removeprefix("beacon-ota ") for line in commands(text)]
        if lines:
            found[page.name] = lines
    return found


def reason_not_to_run(line: str) -> str | None:
    return next((why for start, why in NOT_RUN.items() if re.match(start, line)), None)


class Reader:
    """Somebody who types a page's commands."""

    def __init__(self, folder: Path, server: Server):
        self.folder, self.server = folder, server
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("BEACON_OTA_")},
            "BEACON_OTA_CONFIG": str(folder / "configuration"),
            "BEACON_OTA_KEYRING": str(folder / "keyring"),
            "BEACON_OTA_KEY_PASSWORD": PASSWORD,
            "BEACON_OTA_URL": server.url,
            "BEACON_OTA_TOKEN": server.token,
            "PATH": f"{COMMAND.parent}:{os.environ['PATH']}",
            "COLUMNS": "200",
        }

    def type(self, line: str, *, codes: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            ["bash", "-c", f"beacon-ota {line}"],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WAIT,
        )
        assert done.returncode in codes, (line, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def serve(self, line: str) -> None:
        """Start a server, on a free port; it ends well when it is told to."""
        with (self.folder / "serve.log").open("w") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"exec beacon-ota {line} --port 0 --json"],
                cwd=self.folder,
                env=self.env,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            assert process.stdout is not None
            told = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(WAIT) == 0 and json.loads(told)["url"], (line, told)


def prepare(page: str, reader: Reader) -> None:
    """Make what a page takes for granted."""
    for name, text in {
        "wifi.txt": "correct horse\n",
        "ca.der": "0",
        "plan.toml": plan_of_the_page(),
    }.items():
        (reader.folder / name).write_text(text)
    for line in BEFORE.get(page, ()):
        reader.type(line)
    if page == "rollouts.md":
        for version in ("1.1.0", "1.2.0"):
            publish(reader, version, "esp32c3")
    elif page == "mirrors.md":
        publish(reader, "1.1.0", "esp32c3")
        reader.type("rollout create 1.1.0")
    elif page == "orchestrator.md":
        key = bytes(range(32))
        reader.server.admin().create_beacon("b-0042", "esp32c3", key=key.hex())
        beacon = TestBeacon(reader.server.url, "b-0042", key)
        for said in ("esp32c3", "esp32c3-8mb"):
            beacon.device_type = said
            beacon.poll()


def publish(reader: Reader, version: str, board: str) -> None:
    file = f"{board}-{version}.bin"
    reader.type(
        f"image build --version {version} --keys keys.json --synthetic --board {board} -o {file}"
    )
    reader.type(f"release sign {file} --key office")
    reader.type(f"release upload {file}")
    reader.type(f"release promote {board}/{version}")


def plan_of_the_page() -> str:
    text = (PAGES[0].parent / "docs" / "rollouts.md").read_text()
    return text.split("```toml\n", 1)[1].split("```", 1)[0]


def replace_examples(line: str, reader: Reader) -> str:
    """Return a command with this test's own in place of a page's examples."""
    if "4c1f0a" in line:
        rollouts = json.loads(reader.type("rollout list --json"))
        line = line.replace("4c1f0a", rollouts[0]["rollout_id"][:8])
        if "--watch" in line:
            reader.type(f"rollout abort {rollouts[0]['rollout_id']} --yes")
    if "esp32c3-8mb/1.2.0" in line:
        publish(reader, "1.2.0", "esp32c3-8mb")
    if "release.bin" in line:
        reader.type("image build --version 1.0.0 --keys keys.json --synthetic -o release.bin")
    line = line.replace("https://ota.example ", reader.server.url + " ")
    line = line.replace("/mnt/shared/beacon-ota …", "images --insecure --data shared")
    if re.match(r"image (build|flash)", line) and "--synthetic" not in line:
        line += " --synthetic"
    if line.startswith("virtual run"):
        line += " --for 1"
    if "--questioned" in line and "retype" in line:
        line += " --yes"
    if line.startswith("serve --insecure"):
        line += " --data open"
    if "--upstream" in line:
        line += " --data mirror"
    return line


@pytest.fixture
def served(tmp_path_factory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("served") / "data") as server:
        yield server


RUN = {
    page: [line for line in lines if reason_not_to_run(line) is None]
    for page, lines in pages().items()
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", [page for page, lines in RUN.items() if lines])
def test_every_command_of_a_page(page, served, tmp_path):
    reader = Reader(tmp_path, served)
    prepare(page, reader)
    for line in RUN[page]:
        line = replace_examples(line, reader)
        if line.startswith("serve"):
            reader.serve(line)
        else:
            reader.type(line)


def test_every_reason_is_one():
    lines = [line for found in pages().values() for line in found]
    assert len(lines) > 60 and sum(map(len, RUN.values())) > 30
    for start in NOT_RUN:
        assert any(re.match(start, line) for line in lines), start
