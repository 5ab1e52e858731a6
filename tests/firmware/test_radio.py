"""The owner of Bluetooth on a stack as strict as the chip's: what NimBLE does without a word."""

import asyncio
import contextlib
import errno
from collections.abc import Iterator

import pytest
from bleak import BleakClient
from bleak.exc import BleakError
from bumble import att

from beacon_ota.virtual.radio.backend import SpaceBackend
from beacon_ota.virtual.radio.gap_advertising import Advertising
from beacon_ota.virtual.radio.selection import select_radio
from beacon_ota.virtual.radio.space import RadioSpace
from beacon_ota.wire import access
from tests.firmware.beacons import bench
from tests.firmware.test_access import CREDENTIALS, Reader, at_the_door
from tests.virtual.radio.beacons import until

MAC = bytes.fromhex("7cdfa1a1b2c3")
ADDRESS = "7C:DF:A1:A1:B2:C5"
SCALE = 5


class Air:
    """A beacon in a space."""

    def __init__(self, space: RadioSpace, backend: SpaceBackend, bench) -> None:
        self.space, self.backend, self.bench = space, backend, bench
        self.wait(lambda: self.shown and self.shown.connectable)

    def wait(self, condition) -> None:
        self.bench.wait(condition, 120)

    @property
    def shown(self) -> Advertising | None:
        return self.backend.advertising

    def is_positioning(self) -> bool:
        return self.shown is not None and self.shown.data[9:29] == bytes(range(20))

    def fail_connection(self) -> None:
        """Let a central connect that the beacon never hears."""
        self.space.fail_connections(ADDRESS)

        async def connect() -> None:
            with pytest.raises(BleakError):
                await self.client().connect()

        asyncio.run(connect())

    def client(self, mtu: int = 517) -> BleakClient:
        return BleakClient(ADDRESS, mtu=mtu, **select_radio(self.space.spec).client)

    def enter(self) -> None:
        async def visit(reader: Reader) -> None:
            assert (await reader.enter())[0] == access.GRANTED

        at_the_door(self.space, visit)


@pytest.fixture
def air(v1) -> Iterator[Air]:
    with RadioSpace(seed=1) as space:
        backend, settings = space.make_backend(), {"creds": CREDENTIALS}
        with bench(v1, settings=settings, scale=SCALE, bluetooth=backend, mac=MAC) as b:
            yield Air(space, backend, b)


def test_positioning_returns_after_a_failed_connection(air):
    """NimBLE says nothing, and advertises without data until the beacon applies its own again."""
    capture = air.space.start_capture()
    air.fail_connection()
    air.wait(lambda: any(f.kind == "ADV_IND" and not f.payload for f in list(capture)))
    air.wait(air.is_positioning)
    air.enter()


def test_four_failed_connections_leave_room_for_a_fifth(air):
    """Until their links are dropped the beacon cannot be connected to, and is on the air."""
    for _ in range(4):
        air.wait(lambda: air.is_positioning() and air.shown.connectable)
        air.fail_connection()
    air.wait(air.is_positioning)
    air.wait(lambda: air.is_positioning() and air.shown.connectable)
    air.enter()


def test_links_that_only_nimble_knows_do_not_take_the_beacon_off_the_air(air, monkeypatch):
    """Connectable advertising is refused although the beacon counts fewer than four links."""
    from beacon_ota.virtual.radio import gap_advertising

    monkeypatch.setattr(gap_advertising, "MAX_CONNECTIONS", 0)
    air.wait(lambda: air.is_positioning() and not air.shown.connectable)
    monkeypatch.undo()
    air.wait(lambda: air.is_positioning() and air.shown.connectable)
    air.enter()


def test_a_reset_of_nimble_is_cured(air):
    async def reset() -> None:
        await air.backend.peripheral.reset_host()
        assert air.shown is None

    air.space.run(reset())
    air.wait(air.is_positioning)
    air.enter()


def test_a_stranger_who_only_prepares_writes_is_cut_early(air):
    """His parts hold all the memory of the host, so that nobody can write: not for 30 s."""

    async def prepare() -> float:
        async with air.client(mtu=23) as stranger:
            control = stranger.services.get_characteristic(access.CONTROL)
            assert control is not None
            link = stranger._backend._connection  # type: ignore[attr-defined]
            for offset in range(14):
                await link.gatt_client.send_request(
                    att.ATT_Prepare_Write_Request(
                        attribute_handle=control.handle,
                        value_offset=offset,
                        part_attribute_value=b"x",
                    )
                )
            begun = air.bench.beacon.clock.now()
            with pytest.raises(BleakError):
                await stranger.write_gatt_char(access.CONTROL, b"\x09", response=True)
            await until(lambda: not stranger.is_connected)
            return air.bench.beacon.clock.now() - begun

    took = asyncio.run(prepare())
    air.enter()
    assert took < 20, "seconds of the beacon"


@contextlib.contextmanager
def without_memory(air: Air, times: int) -> Iterator[list[bytes]]:
    """Refuse the first notifications; what was refused appears in the list."""
    notify = air.backend._operations["gatts_notify"]
    refused: list[bytes] = []

    def answer(conn: int, handle: int, data: bytes) -> object:
        if len(refused) < times:
            refused.append(data)
            raise OSError(errno.ENOMEM)
        return notify(conn, handle, data)

    air.backend._operations["gatts_notify"] = answer
    yield refused
    air.backend._operations["gatts_notify"] = notify


def test_an_answer_that_finds_no_memory_comes_a_little_later(air):
    with without_memory(air, 1) as refused:
        air.enter()
    assert len(refused) == 1
    with without_memory(air, 2) as refused:  # once more, and no third time

        async def visit(reader: Reader) -> None:
            await reader.client.write_gatt_char(access.CONTROL, b"\x01door", response=True)
            await until(lambda: len(refused) == 2)
            assert (await reader.enter())[0] == access.GRANTED
            assert reader.heard.empty()

        at_the_door(air.space, visit)
    assert len(refused) == 2
