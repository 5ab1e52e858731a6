"""Long writes, and the memory that their parts hold."""

import asyncio
import re

import pytest
from bleak import BleakClient
from bleak.exc import BleakError
from bumble import att

from beacon_ota import paths
from beacon_ota.virtual.radio import prepared
from beacon_ota.virtual.radio.space import RadioSpace
from tests.virtual.radio.beacons import (
    FF01,
    Beacon,
    client,
    talk,
    until,
    wait_until,
)
from tests.virtual.radio.raw import answer

DISCONNECT, WRITE = 2, 3


def test_parts_of_a_stranger_starve_everybody(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    handle = beacon.handles[0][0]

    async def run() -> None:
        async with client(beacon, mtu=23) as stranger:
            for number in range(14):
                part = att.ATT_Prepare_Write_Request(
                    attribute_handle=handle, value_offset=number, part_attribute_value=b"x"
                )
                said = await answer(stranger, part)
                assert (said.op_code == 0x17) is (number < 12)
            beacon.advertise()
            free = space.call(lambda: beacon.peripheral._server._blocks.free)  # type: ignore
            assert free == 0
            async with asyncio.timeout(10):
                failing = client(beacon)
                with pytest.raises((BleakError, TimeoutError)):
                    await failing.connect()  # discovery finds no memory either
            execute = att.ATT_Execute_Write_Request(flags=0)
            assert (await answer(stranger, execute)).op_code == 0x19
            await stranger.write_gatt_char(FF01, b"again", response=True)

    asyncio.run(run())
    assert beacon.seen(WRITE) == [(0, handle)]


def test_parts_end_with_their_link(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()

    async def body(connected: BleakClient) -> None:
        part = att.ATT_Prepare_Write_Request(
            attribute_handle=beacon.handles[0][0], value_offset=0, part_attribute_value=b"x"
        )
        for _ in range(12):
            assert (await answer(connected, part)).op_code == 0x17

    talk(beacon, body)
    wait_until(lambda: beacon.seen(DISCONNECT))
    beacon.advertise()

    async def again(connected: BleakClient) -> None:
        await connected.write_gatt_char(FF01, b"x", response=True)

    talk(beacon, again)


def test_parts_have_to_be_complete(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    handle = beacon.handles[0][0]

    async def body(connected: BleakClient) -> None:
        for parts, code in (([(0, b"ab"), (3, b"d")], 0x07), ([(1, b"b")], 0x07)):
            for offset, data in parts:
                await answer(
                    connected,
                    att.ATT_Prepare_Write_Request(
                        attribute_handle=handle, value_offset=offset, part_attribute_value=data
                    ),
                )
            said = await answer(connected, att.ATT_Execute_Write_Request(flags=1))
            assert (said.error_code, said.attribute_handle_in_error) == (code, handle)
        assert not beacon.seen(WRITE)

    talk(beacon, body)


@pytest.mark.parametrize("mtu", [64, 100, 256])
def test_long_writes_of_512_bytes_from_mtu_64_on(space: RadioSpace, mtu: int) -> None:
    beacon = Beacon(space).start()
    beacon.do("set_buffer", beacon.handles[0][0], 512, False)
    beacon.advertise()

    async def body(connected: BleakClient) -> None:
        await connected.write_gatt_char(FF01, bytes(512), response=True)

    talk(beacon, body, mtu=mtu)
    assert len(beacon.do("read_value", beacon.handles[0][0])) == 512


def test_on_the_own_core_a_stranger_cannot_take_all_memory(space: RadioSpace, monkeypatch) -> None:
    config = paths.data_path("boards", "micropython", "BEACON_C3", "sdkconfig.board").read_text()
    [entries] = re.findall(r"^CONFIG_BT_NIMBLE_ATT_MAX_PREP_ENTRIES=(\d+)$", config, re.M)
    monkeypatch.setattr(prepared, "MAX_ENTRIES", int(entries))
    beacon = Beacon(space).start().advertise()

    async def run() -> None:
        async with client(beacon) as stranger:
            said = []
            for number in range(14):
                part = att.ATT_Prepare_Write_Request(
                    attribute_handle=beacon.handles[0][0],
                    value_offset=number,
                    part_attribute_value=bytes(251),
                )
                said.append((await answer(stranger, part)).op_code)
            assert said == [0x17] * int(entries) + [0x01] * (14 - int(entries))
            beacon.advertise()
            async with client(beacon) as other:
                await other.write_gatt_char(FF01, b"x", response=True)

    asyncio.run(run())
    assert beacon.seen(WRITE) == [(1, beacon.handles[0][0])]


def test_who_never_executes_is_disconnected(space: RadioSpace, monkeypatch) -> None:
    monkeypatch.setattr(prepared, "TIMEOUT_S", 0.1)
    beacon = Beacon(space).start().advertise()

    async def body(connected: BleakClient) -> None:
        part = att.ATT_Prepare_Write_Request(
            attribute_handle=beacon.handles[0][0], value_offset=0, part_attribute_value=b"x"
        )
        await answer(connected, part)
        await until(lambda: not connected.is_connected)

    talk(beacon, body)
    wait_until(lambda: beacon.seen(DISCONNECT))
