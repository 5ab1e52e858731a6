"""A radio space with BlueZ over it, and a beacon in it that a test drives."""

import gc
from collections.abc import Iterator

import pytest

from beacon_ota.virtual.bluez.daemon import VirtualBluez
from beacon_ota.virtual.radio.space import RadioSpace
from tests.virtual.radio.beacons import Beacon


@pytest.fixture
def space() -> Iterator[RadioSpace]:
    with RadioSpace(seed=1) as space:
        yield space


@pytest.fixture
def bluez(space, monkeypatch) -> Iterator[VirtualBluez]:
    with VirtualBluez(space) as bluez:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bluez.address)
        yield bluez


@pytest.fixture
def beacon(space) -> Beacon:
    return Beacon(space).start().advertise()


@pytest.fixture(autouse=True)
def _nothing_left():
    """Collect what bleak keeps of event loops that have ended, before another test has to."""
    yield
    gc.collect()
