"""Keys, releases of the app in the tree, and an orchestrator that knows them."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from beacon_ota.trust import KeySet, Manifest, dsse, releases
from beacon_ota.trust.releases import Terms
from tests.firmware.beacons import make
from tests.system.scene import serve
from tests.trust.lab import Key


@dataclass
class Release:
    """A release, and what its signers said about it."""

    version: str
    image: bytes
    manifest: Manifest
    envelope: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.image).hexdigest()


def signed(data: bytes, key: Key) -> Release:
    """Sign a release image, good from an hour ago until tomorrow."""
    now = int(time.time())
    manifest, _ = releases.describe_release(data, Terms(now - 3600, now + 86_400))
    return Release(manifest.version, data, manifest, dsse.sign_payload(manifest.payload(), [key]))


@pytest.fixture(scope="session")
def key() -> Key:
    """The key that beacons trust."""
    return Key("release")


@pytest.fixture(scope="session")
def stranger() -> Key:
    """A key that nobody trusts."""
    return Key("stranger")


@pytest.fixture(scope="session")
def trusted(key) -> bytes:
    return KeySet.of([key.public]).to_json()


@pytest.fixture(scope="session")
def released(small_core, trusted, key):
    """Build and sign releases of the app: ``released("2.0.0")``; each is made once."""
    made: dict[str, Release] = {}

    def build(version: str) -> Release:
        if version not in made:
            made[version] = signed(make(small_core, version, keys=trusted, insecure=False), key)
        return made[version]

    return build


@pytest.fixture(scope="module")
def server(tmp_path_factory, trusted):
    """An orchestrator's process that takes what ``key`` has signed, and nothing else."""
    with serve(tmp_path_factory.mktemp("system"), trusted) as server:
        yield server
        assert "Traceback" not in server.log(), server.log()


def put(server, release: Release, folder: Path) -> dict:
    """Upload a release for everybody."""
    file = folder / f"{release.version}.bin"
    file.write_bytes(release.image)
    return server.admin().upload_firmware(
        file,
        device_type="esp32c3",
        version=release.version,
        manifest=release.envelope,
        channel="stable",
    )
