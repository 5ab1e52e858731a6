"""One machine for all tests. Where Debian's packages are missing they are skipped, and say so."""

import json
import os
import time
from collections.abc import Iterator

import pytest

from beacon_ota.virtual.radio.space import RadioSpace
from tests.bluez import image
from tests.bluez.machine import HOST, Machine, run_machine
from tests.firmware.beacons import make
from tests.orchestrator.world import Server
from tests.provision.scene import PASSWORD, PIN

REPORT = image.ROOT / "reports" / "bluez.json"


@pytest.fixture(scope="session")
def v1(small_core) -> bytes:
    return make(small_core, "1.0.0")


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("orchestrator") / "data") as server:
        server.admin().create_site("hq")
        yield server


@pytest.fixture(scope="session")
def space() -> Iterator[RadioSpace]:
    with RadioSpace(seed=1) as space:
        yield space


@pytest.fixture(scope="session")
def machine(space, server) -> Iterator[Machine]:
    if not os.environ.get("BEACON_OTA_BLUEZ"):
        pytest.skip("make bluez runs these")
    missing = image.missing_tools()
    if missing:
        pytest.skip(f"needs Debian's packages {', '.join(missing)}")
    begun = time.monotonic()
    built = image.build_image()
    ready = time.monotonic()
    with run_machine(built, space.path) as machine:
        port = server.url.rpartition(":")[2]
        machine.set_environment(
            BEACON_OTA_URL=f"http://{HOST}:{port}", BEACON_OTA_TOKEN=server.token
        )
        machine.run("true", files={"pin": PIN + "\n", "wifi": PASSWORD})
        note("image_s", ready - begun)
        note("boot_s", time.monotonic() - ready)
        yield machine


_noted: dict[str, object] = {}


def note(name: str, value: object) -> None:
    """Keep a number for ``reports/bluez.json``."""
    _noted[name] = round(value, 2) if isinstance(value, float) else value
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(_noted) + "\n")
