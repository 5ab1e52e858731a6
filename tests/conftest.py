"""Cores for the tests: the real one that BEACON_OTA_CORE names, else a synthetic one."""

import os
from pathlib import Path

import pytest

from beacon_ota.images import combined, synthetic

SMALL = 16 * 1024  # bytes of the small synthetic core


def _given() -> Path | None:
    named = os.environ.get("BEACON_OTA_CORE")
    return Path(named) if named else None


def pytest_report_header(config) -> str:
    given = _given()
    return f"core: real, {given.name}" if given else "core: synthetic"


@pytest.fixture(scope="session")
def small_core() -> bytes:
    """A small app image without an interpreter."""
    return synthetic.app(SMALL)


@pytest.fixture(scope="session")
def real_core() -> combined.Core:
    """The core that BEACON_OTA_CORE names, with its bootloader; the test is skipped without."""
    given = _given()
    if given is None:
        pytest.skip("BEACON_OTA_CORE names no core")
    return combined.load(given.read_bytes())


@pytest.fixture(scope="session")
def core(request) -> bytes:
    """The bytes of an app core: real where there is one, else synthetic."""
    if _given():
        return request.getfixturevalue("real_core").data
    return request.getfixturevalue("small_core")
