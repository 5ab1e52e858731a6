"""What a command does by radio: in one event loop, and ended when the adapter goes."""

import asyncio
import gc
import sys

import pytest

from beacon_ota.cli._support.bluetooth import run_with_radio
from beacon_ota.errors import ReachError
from beacon_ota.virtual.bluez.daemon import VirtualBluez
from beacon_ota.virtual.radio.selection import select_radio
from beacon_ota.virtual.radio.space import RadioSpace


@pytest.fixture(autouse=True)
def _nothing_left():
    """Collect what bleak keeps of event loops that have ended, before another test has to."""
    yield
    gc.collect()


async def give(value: object) -> object:
    if isinstance(value, Exception):
        raise value
    return value


def test_results_and_errors_are_passed_on():
    room = select_radio("room:/nowhere")
    assert run_with_radio(room, give(7)) == 7
    with pytest.raises(KeyError):
        run_with_radio(room, give(KeyError("x")))


@pytest.mark.skipif(sys.platform != "linux", reason="BlueZ is Linux's")
def test_work_ends_with_the_adapter(monkeypatch):
    cleaned: list[bool] = []
    with RadioSpace(seed=1) as space, VirtualBluez(space) as bluez:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bluez.address)

        async def work() -> None:
            try:
                await asyncio.to_thread(bluez.set_powered, False)
                await asyncio.sleep(1000)
            finally:
                cleaned.append(True)

        with pytest.raises(ReachError) as caught:
            run_with_radio(select_radio(""), work())
        assert caught.value.code == "bluetooth_off" and cleaned
        assert "turn Bluetooth on" in caught.value.message


@pytest.mark.skipif(sys.platform != "linux", reason="BlueZ is Linux's")
def test_without_a_bus_nothing_begins(monkeypatch):
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere/bus")
    begun: list[bool] = []

    async def work() -> None:
        begun.append(True)

    with pytest.raises(ReachError) as caught:
        run_with_radio(select_radio(""), work())
    assert "dbus" in caught.value.message and not begun
