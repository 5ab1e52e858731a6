"""Indications of a beacon: what is confirmed, and what is reported of it."""

import asyncio

from bleak import BleakClient

from beacon_ota.virtual.radio.space import RadioSpace
from tests.virtual.radio.beacons import (
    BLUFI,
    FF02,
    FLAG_INDICATE,
    TX,
    Beacon,
    talk,
    until,
)

INDICATE_DONE = 20


def test_indications_are_confirmed(space: RadioSpace) -> None:
    service = (BLUFI, [(TX, FLAG_INDICATE, [])])
    beacon = Beacon(space).start(service).advertise()
    handle = beacon.handles[0][0]

    async def body(connected: BleakClient) -> list[bytes]:
        got: list[bytes] = []
        await connected.start_notify(FF02, lambda c, data: got.append(bytes(data)))
        for number, data in enumerate((b"one", b"two"), 1):
            await asyncio.to_thread(beacon.do, "send_indication", 0, handle, data)
            await until(lambda: len(beacon.seen(INDICATE_DONE)) == number)  # noqa: B023
        return got

    assert talk(beacon, body) == [b"one", b"two"]
    assert beacon.seen(INDICATE_DONE) == [(0, handle, 0)] * 2


def test_a_second_indication_goes_out_at_once_and_one_is_reported(space: RadioSpace) -> None:
    service = (BLUFI, [(TX, FLAG_INDICATE, [])])
    beacon = Beacon(space).start(service).advertise()
    handle = beacon.handles[0][0]

    async def body(connected: BleakClient) -> None:
        got: list[bytes] = []
        await connected.start_notify(FF02, lambda c, data: got.append(bytes(data)))
        capture = space.start_capture()

        async def both() -> None:
            for data in (b"one", b"two"):
                beacon.peripheral.send_indication(0, handle, data)

        await asyncio.to_thread(space.run, both())
        await until(lambda: [frame.att_pdu for frame in capture].count(b"\x1e") == 2)
        pdus = [frame.att_pdu[:1] for frame in capture if frame.att_pdu]
        assert pdus[:2] == [b"\x1d", b"\x1d"] and got == [b"one", b"two"]
        assert await connected.read_gatt_char("2a00")  # whatever was to come has come

    talk(beacon, body)
    assert beacon.seen(INDICATE_DONE) == [(0, handle, 0)]


def test_an_indication_ends_with_the_connection(space: RadioSpace) -> None:
    service = (BLUFI, [(TX, FLAG_INDICATE, [])])
    beacon = Beacon(space).start(service).advertise()

    async def body(connected: BleakClient) -> None:
        space.set_conditions(latency=0.3)
        await asyncio.to_thread(beacon.do, "send_indication", 0, beacon.handles[0][0], b"x")
        space.break_links(beacon.address)
        await until(lambda: beacon.seen(INDICATE_DONE))

    talk(beacon, body)
    assert beacon.seen(INDICATE_DONE) == [(0, beacon.handles[0][0], 7)]
