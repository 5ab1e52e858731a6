"""The calls of the `bluetooth` stand-in: whatever a beacon's code asks has a named answer."""

import asyncio
import errno
import inspect
from typing import Any

import pytest
from bleak import BleakClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beacon_ota.virtual.radio.backend import SpaceBackend
from beacon_ota.virtual.radio.peripheral import Advertising
from beacon_ota.virtual.radio.selection import select_radio
from beacon_ota.virtual.radio.space import RadioSpace
from beacon_ota.virtual.radio.vhci import BluetoothPort

MAC = bytes.fromhex("d4f98d0000aa")
SERVICE = (b"\xff\xff", ((b"\x01\xff", 0x08), (b"\x02\xff", 0x12, ((b"\x01\x29", 0x02),))))


def attached(room: RadioSpace) -> SpaceBackend:
    """A backend whose interpreter never listens."""
    backend = SpaceBackend(room.make_radio())
    backend.attach(BluetoothPort(MAC, "beacon", lambda: None))
    return backend


def ask(room: RadioSpace, bluetooth: SpaceBackend, name: str, *args: Any) -> Any:
    async def body() -> Any:
        result = bluetooth.call(name, *args)
        return await result if inspect.isawaitable(result) else result

    return room.run(body())


def test_the_calls_of_a_session(room: RadioSpace) -> None:
    bluetooth = attached(room)
    assert ask(room, bluetooth, "active", None) is False
    assert ask(room, bluetooth, "active", True) is True
    assert ask(room, bluetooth, "config_get", "mac") == (0, MAC)
    ask(room, bluetooth, "config_set", "gap_name", b"beacon")
    assert ask(room, bluetooth, "gatts_register_services", (SERVICE,)) == ((16, 18, 20),)
    ask(room, bluetooth, "gatts_set_buffer", 16, 100, False)
    ask(room, bluetooth, "gatts_write", 18, b"value", False)
    assert ask(room, bluetooth, "gatts_read", 18) == b"value"
    ask(room, bluetooth, "gap_advertise", 100_000, b"\x02\x01\x06", None, True)
    assert room.list_radios()[0]["advertising"]
    assert bluetooth.advertising == Advertising(100_000, True, b"\x02\x01\x06", b"")
    ask(room, bluetooth, "gap_advertise", None, None, None, True)
    assert not room.list_radios()[0]["advertising"]
    ask(room, bluetooth, "gap_scan", 50)
    ask(room, bluetooth, "gap_scan", None)
    assert ask(room, bluetooth, "gap_disconnect", 0) is False
    assert ask(room, bluetooth, "active", False) is False


def test_what_the_virtual_radio_does_not_do(room: RadioSpace) -> None:
    bluetooth = attached(room)
    ask(room, bluetooth, "active", True)
    for name in ("gattc_read", "gap_pair", "l2cap_listen", "__class__", "nonsense"):
        with pytest.raises(OSError) as caught:
            ask(room, bluetooth, name, 1, 2)
        assert caught.value.args[0] == errno.EOPNOTSUPP


INTEGERS = st.one_of(st.integers(-5, 40), st.integers(-(2**63), 2**63 - 1), st.just(100_000))
PAYLOADS = st.binary(max_size=600)
MAYBE = st.none() | st.binary(max_size=40)
UUIDS = st.sampled_from([b"\x01\xff", b"\x02\xff\0\0", bytes(range(16))])
CHARACTERISTICS = st.tuples(UUIDS, st.integers(0, 0xFFFF)) | st.tuples(
    UUIDS, st.integers(0, 0xFFFF), st.lists(st.tuples(UUIDS, st.integers(0, 0xFFFF)), max_size=2)
)
SERVICES = st.lists(st.tuples(UUIDS, st.lists(CHARACTERISTICS, max_size=3)), max_size=10)
CALLS = st.one_of(
    st.tuples(st.just("active"), st.sampled_from([None, True, False])),
    st.tuples(st.just("config_get"), st.sampled_from(["mac", "mtu", "gap_name", "rxbuf", ""])),
    st.tuples(st.just("config_set"), st.sampled_from(["mtu", "addr_mode", "bond"]), INTEGERS),
    st.tuples(st.just("config_set"), st.just("gap_name"), PAYLOADS),
    st.tuples(st.just("gap_advertise"), INTEGERS | st.none(), MAYBE, MAYBE, st.booleans()),
    st.tuples(st.just("gap_disconnect"), INTEGERS),
    st.tuples(st.just("gap_scan"), INTEGERS | st.none(), INTEGERS, INTEGERS, st.booleans()),
    st.tuples(st.just("gatts_register_services"), SERVICES),
    st.tuples(st.just("gatts_read"), INTEGERS),
    st.tuples(st.just("gatts_write"), INTEGERS, PAYLOADS, st.booleans()),
    st.tuples(st.just("gatts_set_buffer"), INTEGERS, INTEGERS, st.booleans()),
    st.tuples(st.just("gatts_notify"), INTEGERS, INTEGERS, MAYBE),
    st.tuples(st.just("gatts_indicate"), INTEGERS, INTEGERS, MAYBE),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(calls=st.lists(CALLS, max_size=25))
def test_any_calls_in_any_order(room: RadioSpace, calls: list[tuple[Any, ...]]) -> None:
    """Only the port's errors, also while somebody is connected; and it works afterwards."""
    bluetooth = attached(room)
    ask(room, bluetooth, "active", True)
    ask(room, bluetooth, "gatts_register_services", (SERVICE,))
    ask(room, bluetooth, "gap_advertise", 20_000, b"", b"", True)

    async def body() -> None:
        address = ":".join(f"{byte:02X}" for byte in MAC)
        client = BleakClient(address, **select_radio(room.spec).client)
        await client.connect()
        for call in calls:
            try:
                await asyncio.to_thread(ask, room, bluetooth, *call)
            except (OSError, ValueError):
                pass
        await client.disconnect()
        # a restart makes everything good again
        await asyncio.to_thread(ask, room, bluetooth, "active", True)
        handles = await asyncio.to_thread(
            ask, room, bluetooth, "gatts_register_services", (SERVICE,)
        )
        assert handles == ((16, 18, 20),)
        await asyncio.to_thread(ask, room, bluetooth, "gap_advertise", 20_000, b"", b"", True)
        async with client as again:
            await again.write_gatt_char(16, b"fine", response=True)
        assert await asyncio.to_thread(ask, room, bluetooth, "gatts_read", 16) == b"fine"

    asyncio.run(body())
    room.call(bluetooth.reset)
