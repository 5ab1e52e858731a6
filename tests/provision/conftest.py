"""The release that beacons of these tests run, built once for all tests of a worker."""

import pytest

from tests.firmware.beacons import make


@pytest.fixture(scope="session")
def v1(small_core) -> bytes:
    return make(small_core, "1.0.0")
