"""The memory of a beacon's host: how many notifications may wait."""

import asyncio
import errno

import pytest
from bleak import BleakClient

from beacon_ota.virtual.radio.space import RadioSpace
from tests.virtual.radio.beacons import (
    Beacon,
    talk,
)


@pytest.mark.parametrize(
    ("size", "most"), [(1, 17), (100, 17), (200, 15), (240, 15), (250, 9), (400, 9), (509, 6)]
)
def test_so_many_notifications_wait(space: RadioSpace, size: int, most: int) -> None:
    beacon = Beacon(space).start()
    beacon.do("set_config", "mtu", 527)
    beacon.advertise()

    async def flood() -> int:
        for number in range(40):
            try:
                beacon.peripheral.send_notification(0, beacon.handles[0][1], bytes(size))
            except OSError as error:
                assert error.args[0] == errno.ENOMEM
                return number
        return 40

    async def body(connected: BleakClient) -> None:
        space.set_conditions(latency=0.2)
        for _ in range(2):  # also when the first ones have gone
            assert await asyncio.to_thread(space.run, flood()) == most
            await connected.read_gatt_char("2a00")
        space.set_conditions(latency=0.0)

    talk(beacon, body)
