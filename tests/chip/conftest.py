"""Chips with releases of the real core, and an orchestrator that they reach over WiFi."""

import os
import shutil

import pytest

from beacon_ota.trust import KeySet
from tests.chip.scene import Scene, Shelf, free_port
from tests.system.scene import serve
from tests.trust.lab import Key


@pytest.fixture(scope="session")
def qemu() -> str:
    """The emulator that BEACON_OTA_QEMU names; the test is skipped without."""
    named = os.environ.get("BEACON_OTA_QEMU")
    if not named:
        pytest.skip("BEACON_OTA_QEMU names no emulator")
    found = shutil.which(named)
    assert found, f"BEACON_OTA_QEMU: no such program: {named}"
    return found


@pytest.fixture(scope="session")
def shelf(qemu, real_core) -> Shelf:
    """Releases with the real core, signed by a key that beacons trust."""
    return Shelf(real_core, Key("release"))


@pytest.fixture(scope="module")
def server(qemu, shelf, tmp_path_factory):
    """An orchestrator's process that takes what the shelf's key has signed."""
    keys = KeySet.of([shelf.key.public]).to_json()
    port = f"--port={free_port()}"
    with serve(tmp_path_factory.mktemp("chip"), keys, port, "--poll=1") as server:
        yield server
        assert "Traceback" not in server.log(), server.log()


@pytest.fixture
def scene(qemu, shelf, server, tmp_path):
    """Chips of one test, and what to do with them."""
    with Scene(qemu, shelf, server, tmp_path) as scene:
        yield scene


@pytest.fixture
def tell(capfd):
    """Print a line among the results."""

    def say(line: str) -> None:
        with capfd.disabled():
            print("\n" + line, flush=True)

    return say
