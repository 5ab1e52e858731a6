"""The habits of the daemon, through bleak's own backend."""

import asyncio
import subprocess
import sys

import pytest
from bleak import BleakClient, BleakScanner
from bleak.exc import BleakBluetoothNotAvailableError, BleakDBusError, BleakDeviceNotFoundError

from tests.virtual.radio.beacons import FF01, FF02, until, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bleak's backend is Linux's")


def test_one_scan_per_program(bluez, beacon):
    async def body() -> None:
        async with BleakScanner() as first:
            with pytest.raises(BleakDBusError) as caught:
                await BleakScanner().start()
            assert caught.value.dbus_error == "org.bluez.Error.InProgress"
            await until(lambda: first.discovered_devices)
        assert bluez.sessions == 0

    asyncio.run(body())


def test_a_program_that_has_gone_scans_no_more(bluez, beacon):
    async def body() -> None:
        await BleakScanner().start()
        assert bluez.sessions == 1

    asyncio.run(body())
    other = asyncio.new_event_loop()  # bleak drops the bus of a closed loop when it next needs one
    other.run_until_complete(_scan_once())
    other.close()
    wait_until(lambda: bluez.sessions == 0)


async def _scan_once() -> None:
    async with BleakScanner() as scanner:
        await until(lambda: scanner.discovered_devices)


def test_a_device_is_forgotten(bluez, beacon):
    """Half a minute after it was last heard, unless it was ever connected."""

    async def find():
        async with BleakScanner() as scanner:
            return await until(lambda: next(iter(scanner.discovered_devices), None))

    async def body() -> None:
        device = await find()
        bluez.skip(29)
        assert bluez.device(beacon.address)
        bluez.skip(2)
        assert bluez.device(beacon.address) is None
        with pytest.raises((BleakDeviceNotFoundError, Exception), match="not found"):
            await BleakClient(device).connect()
        async with BleakClient(await find()):
            pass
        bluez.skip(100)
        assert bluez.device(beacon.address)

    asyncio.run(body())


PROGRAM = """
import asyncio, sys
from bleak import BleakClient, BleakScanner

async def main():
    device = await BleakScanner.find_device_by_address(sys.argv[1])
    async with BleakClient(device):
        print("connected", flush=True)
        await asyncio.sleep(1000)

asyncio.run(main())
"""


def test_a_connection_outlives_its_program(bluez, beacon):
    """The next program finds it, and bleak uses it as it is."""
    command = [sys.executable, "-c", PROGRAM, beacon.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "connected\n"
        program.kill()
    found = bluez.device(beacon.address)
    assert found is not None and found["Connected"]

    async def adopt() -> None:
        device = await BleakScanner.find_device_by_address(beacon.address)
        assert device is not None and device.details["props"]["Connected"]
        async with BleakClient(device):
            assert len(beacon.seen(1)) == 1
        assert not (bluez.device(beacon.address) or {})["Connected"]

    beacon.advertise()
    asyncio.run(adopt())


def test_values(bluez, beacon):
    """Writes, reads and notifications through the objects of a connection."""
    heard: list[bytes] = []

    async def body() -> None:
        device = await BleakScanner.find_device_by_address(beacon.address)
        assert device is not None
        async with BleakClient(device) as client:
            await client.start_notify(FF02, lambda _, data: heard.append(bytes(data)))
            await client.write_gatt_char(FF01, b"ping", response=True)
            rx, tx = beacon.handles[0][:2]
            assert beacon.do("read_value", rx) == b"ping"
            connection = beacon.seen(1)[0][0]
            for _ in range(2):  # the same value twice is two notifications
                beacon.do("send_notification", connection, tx, b"pong")
            await until(lambda: len(heard) == 2)
            assert heard == [b"pong", b"pong"]
            await client.stop_notify(FF02)

    asyncio.run(body())


def test_power(bluez, beacon):
    """Switched off, it ends the scan and the connections, and says so of the adapter."""

    async def body() -> None:
        gone = asyncio.Event()
        async with BleakScanner() as scanner:
            device = await until(lambda: next(iter(scanner.discovered_devices), None))
            async with BleakClient(device, lambda _: gone.set()):
                await asyncio.to_thread(bluez.set_powered, False)
                await gone.wait()
        assert bluez.sessions == 0 and "RSSI" not in (bluez.device(beacon.address) or {})
        with pytest.raises(BleakBluetoothNotAvailableError):
            await BleakScanner().start()
        await asyncio.to_thread(bluez.set_powered, True)
        await until(lambda: True)
        async with BleakScanner():
            pass

    asyncio.run(body())


def test_killed_and_restarted(bluez, beacon):
    """The bus stays; the name has no owner; nothing that was known is known afterwards."""
    bluez.kill()

    async def nobody() -> None:
        with pytest.raises(BleakDBusError) as caught:
            await BleakScanner().start()
        assert caught.value.dbus_error.endswith("ServiceUnknown")

    asyncio.run(nobody())
    bluez.restart()
    assert bluez.device(beacon.address) is None
    asyncio.run(_scan_once())


def test_calls_that_fail(bluez, beacon):
    async def body() -> None:
        bluez.fail_calls("StartDiscovery", "org.bluez.Error.Failed", 1)
        with pytest.raises(BleakDBusError, match="org.bluez.Error.Failed"):
            await BleakScanner().start()
        await _scan_once()

    asyncio.run(body())
