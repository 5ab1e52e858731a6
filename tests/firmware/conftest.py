"""Releases of the app in the tree, built once for all tests of a worker."""

import pytest

from tests.firmware.beacons import make


@pytest.fixture(scope="session")
def v1(small_core) -> bytes:
    return make(small_core, "1.0.0")


@pytest.fixture(scope="session")
def v2(small_core) -> bytes:
    return make(small_core, "2.0.0")


@pytest.fixture(scope="session")
def v3(small_core) -> bytes:
    return make(small_core, "3.0.0-rc.1+build.5", filler=20_000)
