"""Whole updates on virtual beacons: there, back, and every way not to get there."""

import pytest

from tests.firmware.beacons import bench, make


@pytest.fixture(scope="session")
def v1(small_core) -> bytes:
    return make(small_core, "1.0.0")


@pytest.fixture(scope="session")
def v2(small_core) -> bytes:
    return make(small_core, "2.0.0")


def test_update(v1, v2):
    with bench(v1) as b:
        b.server.image = v2
        b.server.offering = True
        done = b.reported("success")
        assert done["firmware_version"] == "2.0.0"
