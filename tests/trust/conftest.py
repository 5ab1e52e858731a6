import hashlib

import pytest

from beacon_ota.images import appfs, release
from tests.trust.lab import Device, Key


@pytest.fixture(scope="session")
def keys() -> list[Key]:
    """Four signing keys; which of them are trusted, each test decides."""
    return [Key(f"key-{i}") for i in range(4)]


@pytest.fixture(scope="session")
def device(tmp_path_factory):
    """The beacon's own verification code, in its interpreter."""
    with Device(tmp_path_factory.mktemp("device")) as device:
        yield device


@pytest.fixture(scope="session")
def image(small_core):
    """Build a small release image: ``image(version, keys=…, device_type=…, insecure=…)``."""
    app = {"main.py": b"print('hello')\n"}
    core_sha256 = hashlib.sha256(small_core).hexdigest()

    def build(version="1.0.0", keys=None, device_type="esp32c3", insecure=False) -> bytes:
        info = appfs.AppInfo(version, device_type, core_sha256, 0, insecure)
        data = None if keys is None else keys.to_json()
        return release.join_core_and_app(small_core, appfs.build_app(app, info, keys=data).image)

    return build
