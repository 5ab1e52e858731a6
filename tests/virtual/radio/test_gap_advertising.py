"""Advertising by a beacon: `gap_advertise` with the limits of the port."""

import errno

from bleak import BleakClient

from beacon_ota.virtual.radio.space import RadioSpace
from tests.virtual.radio.beacons import (
    Beacon,
    refused,
    talk,
    wait_until,
)

CONNECT, DISCONNECT = 1, 2


def test_advertising_refuses_and_stops(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    refused(-18, beacon.do, "start_advertising", 100_000, bytes(32), None, True)
    assert not space.list_radios()[0]["advertising"]
    refused(errno.EINVAL, beacon.do, "start_advertising", 100_000, None, bytes(32), True)
    for interval in (625, 19_999, 10_240_625):
        refused(errno.EINVAL, beacon.do, "start_advertising", interval, None, None, True)
    for interval in (0, 20_000, 10_240_000):
        beacon.do("start_advertising", interval, None, None, True)
        assert space.list_radios()[0]["advertising"]


def test_a_connection_ends_advertising(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()

    async def body(connected: BleakClient) -> None:
        assert not next(r for r in space.list_radios() if r["address"] == beacon.address)[
            "advertising"
        ]

    talk(beacon, body)
    wait_until(lambda: beacon.seen(DISCONNECT))
    assert not space.list_radios()[0]["advertising"]
    (handle, kind, address), (again, _, _) = beacon.seen(CONNECT)[0], beacon.seen(DISCONNECT)[0]
    assert (handle, kind, again) == (0, 0, 0) and len(address) == 6
