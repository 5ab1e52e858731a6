"""Values, events and notifications of a beacon, as on the ESP32-C3."""

import asyncio
import errno
from typing import Any

import pytest
from bleak import BleakClient
from bleak.exc import BleakError, BleakGATTProtocolError

from beacon_ota.virtual.radio.space import RadioSpace
from tests.virtual.radio.beacons import (
    BLUFI,
    FF01,
    FF02,
    FLAG_READ,
    FLAG_WRITE,
    SERVICE,
    TX,
    Beacon,
    refused,
    talk,
    until,
    wait_until,
)

DISCONNECT, WRITE, READ, MTU, UPDATE = 2, 3, 4, 21, 27


# Values


def test_the_default_buffer_cuts_at_20_bytes(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()

    async def body(connected: BleakClient) -> None:
        await connected.write_gatt_char(FF01, bytes(range(50)), response=True)

    talk(beacon, body)
    assert beacon.do("read_value", beacon.handles[0][0]) == bytes(range(20))


def test_a_bigger_buffer_takes_more(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    handle = beacon.handles[0][0]
    beacon.do("write_value", handle, b"before", False)
    beacon.do("set_buffer", handle, 40, False)
    assert beacon.do("read_value", handle) == b""

    async def body(connected: BleakClient) -> None:
        await connected.write_gatt_char(FF01, bytes(range(50)), response=True)

    talk(beacon, body)
    assert beacon.do("read_value", handle) == bytes(range(40))
    assert beacon.do("read_value", handle) == bytes(range(40))


def test_an_appending_buffer_collects_until_read(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    handle = beacon.handles[0][0]
    beacon.do("set_buffer", handle, 10, True)

    async def body(connected: BleakClient) -> None:
        for part in (b"abcd", b"efgh", b"ijkl"):
            await connected.write_gatt_char(FF01, part, response=True)
        assert await asyncio.to_thread(beacon.do, "read_value", handle) == b"abcdefghij"
        await connected.write_gatt_char(FF01, b"new", response=True)

    talk(beacon, body)
    assert beacon.do("read_value", handle) == b"new"
    assert beacon.do("read_value", handle) == b""


def test_own_writes_grow_the_buffer(space: RadioSpace) -> None:
    beacon = Beacon(space).start()
    handle = beacon.handles[0][1]
    beacon.do("write_value", handle, bytes(100), False)
    assert len(beacon.do("read_value", handle)) == 100
    refused(errno.EINVAL, beacon.do, "write_value", 999, b"", False)
    refused(errno.EINVAL, beacon.do, "set_buffer", 999, 10, False)
    for size in (-1, 1 << 20):
        refused(errno.ENOMEM, beacon.do, "set_buffer", handle, size, False)
    assert beacon.do("read_value", 999) == b""


@pytest.mark.parametrize(("asked", "offered", "result"), [(23, 256, 23), (185, 256, 185),
                         (517, 256, 256), (517, 517, 517), (256, 256, 256)])  # fmt: skip
def test_mtu(space: RadioSpace, asked: int, offered: int, result: int) -> None:
    beacon = Beacon(space).start()
    beacon.do("set_config", "mtu", offered)
    beacon.do("set_buffer", beacon.handles[0][0], 512, False)
    beacon.advertise()
    sent = bytes(n & 0xFF for n in range(512))
    most = 216 if result == 23 else 512  # twelve parts fit NimBLE's memory

    async def body(connected: BleakClient) -> list[bytes]:
        got: list[bytes] = []
        assert connected.mtu_size == result
        characteristic = connected.services.get_characteristic(FF01)
        assert characteristic is not None
        assert characteristic.max_write_without_response_size == result - 3
        await connected.start_notify(FF02, lambda c, data: got.append(bytes(data)))
        await asyncio.to_thread(beacon.do, "send_notification", 0, beacon.handles[0][1], sent)
        await until(lambda: got)
        await connected.write_gatt_char(FF01, sent[: result - 3], response=True)
        await connected.write_gatt_char(FF01, sent[: result - 3], response=False)
        with pytest.raises(BleakError):
            await connected.write_gatt_char(FF01, (sent + b"!")[: result - 2], response=False)
        # longer than the MTU: prepared writes, which arrive as one
        await connected.write_gatt_char(FF01, sent[:most], response=True)
        if most < len(sent):
            with pytest.raises(BleakGATTProtocolError) as caught:
                await connected.write_gatt_char(FF01, sent[: most + 1], response=True)
            assert caught.value.code == 0x11
        with pytest.raises(BleakError):
            await connected.write_gatt_char(FF01, sent + b"!", response=True)
        return got

    assert talk(beacon, body, mtu=asked) == [sent[: result - 3]]  # cut, and nobody learns of it
    assert beacon.do("read_value", beacon.handles[0][0]) == sent[:most]
    assert len(beacon.seen(WRITE)) == 3
    assert beacon.seen(MTU) == ([(0, result)] if asked > 23 else [])


def test_long_values_are_read_whole(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    value = bytes(n & 0xFF for n in range(500))
    beacon.do("write_value", beacon.handles[0][1], value, False)

    async def body(connected: BleakClient) -> bytes:
        return bytes(await connected.read_gatt_char(FF02))

    assert talk(beacon, body, mtu=64) == value
    assert len(beacon.seen(READ)) == 8  # the handler is asked before every part


def test_a_read_can_be_answered_or_denied(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    answers = iter([None, 0x05])

    def on_irq(event: int, data: tuple[Any, ...]) -> object:
        if event != READ:
            return None
        beacon.peripheral.write_value(data[1], b"fresh", False)
        return next(answers)

    beacon.on_irq = on_irq

    async def body(connected: BleakClient) -> None:
        assert await connected.read_gatt_char(FF02) == b"fresh"
        with pytest.raises(BleakGATTProtocolError) as caught:
            await connected.read_gatt_char(FF02)
        assert caught.value.code == 0x05

    talk(beacon, body)


def test_flags_are_permissions(space: RadioSpace) -> None:
    secure = (b"\x0e\x18", [(b"\x03\xff", FLAG_READ | 0x0200, []), (b"\x04\xff", 0x1008, [])])
    beacon = Beacon(space).start(SERVICE, secure).advertise()

    async def body(connected: BleakClient) -> None:
        async def code(operation: Any) -> int:
            with pytest.raises(BleakGATTProtocolError) as caught:
                await operation
            return caught.value.code

        assert await code(connected.read_gatt_char(FF01)) == 0x02
        assert await code(connected.write_gatt_char(FF02, b"x", response=True)) == 0x03
        assert await code(connected.write_gatt_char(FF02, bytes(300), response=True)) == 0x03
        assert await code(connected.read_gatt_char("2a05")) == 0x02
        assert await code(connected.write_gatt_char("2a00", b"x", response=True)) == 0x03
        assert await code(connected.read_gatt_char("ff03")) == 0x05
        assert await code(connected.write_gatt_char("ff04", b"x", response=True)) == 0x05
        await connected.write_gatt_char(FF02, b"ignored", response=False)
        assert await connected.read_gatt_char("2a00") == b"MPY ESP32"

    talk(beacon, body, mtu=100)
    assert beacon.seen(WRITE) == []


def test_descriptors_have_values(space: RadioSpace) -> None:
    service = (BLUFI, [(TX, FLAG_READ, [(b"\x01\x29", FLAG_READ | FLAG_WRITE)])])
    beacon = Beacon(space).start(service).advertise()
    beacon.do("write_value", beacon.handles[0][1], b"status", False)

    async def body(connected: BleakClient) -> None:
        descriptor = beacon.handles[0][1]
        assert await connected.read_gatt_descriptor(descriptor) == b"status"
        await connected.write_gatt_descriptor(descriptor, b"new")

    talk(beacon, body)
    assert beacon.seen(WRITE) == [(0, beacon.handles[0][1])]
    assert beacon.do("read_value", beacon.handles[0][1]) == b"new"


# Events


def test_the_write_response_waits_for_the_handler(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    order: list[str] = []

    async def slow(event: int, data: tuple[Any, ...]) -> None:
        if event == WRITE:
            await asyncio.sleep(0.1)
            order.append("handled")

    beacon.on_irq = slow

    async def body(connected: BleakClient) -> None:
        await connected.write_gatt_char(FF01, b"x", response=True)
        order.append("answered")

    talk(beacon, body)
    assert order == ["handled", "answered"]


def test_events_come_one_at_a_time_and_each_finds_its_value(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    found: list[bytes] = []
    inside = 0

    async def slow(event: int, data: tuple[Any, ...]) -> None:
        nonlocal inside
        inside += 1
        assert inside == 1
        await asyncio.sleep(0.005)
        if event == WRITE:
            found.append(beacon.peripheral.read_value(data[1]))
        inside -= 1

    beacon.on_irq = slow
    sent = [bytes([n]) for n in range(20)]

    async def body(connected: BleakClient) -> None:
        for part in sent:
            await connected.write_gatt_char(FF01, part, response=False)
        await until(lambda: len(found) == 20)

    talk(beacon, body)
    assert found == sent


def test_parameter_updates_are_told(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()

    async def body(connected: BleakClient) -> None:
        connection = connected._backend._connection  # type: ignore[attr-defined]
        await connection.update_parameters(30.0, 30.0, 2, 4000.0)
        await until(lambda: beacon.seen(UPDATE))

    talk(beacon, body)
    assert beacon.seen(UPDATE) == [(0, 24, 2, 400, 0)]


# Notifications


def test_notifications_need_no_subscription(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    capture = space.start_capture()

    async def body(connected: BleakClient) -> None:
        await asyncio.to_thread(beacon.do, "send_notification", 0, beacon.handles[0][1], b"out")
        await until(lambda: b"\x1b\x12\x00out" in [frame.att_pdu for frame in capture])

    talk(beacon, body)


def test_notify_without_data_sends_the_value(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    beacon.do("write_value", beacon.handles[0][1], b"value", False)

    async def body(connected: BleakClient) -> list[bytes]:
        got: list[bytes] = []
        await connected.start_notify(FF02, lambda c, data: got.append(bytes(data)))
        for data in (None, b""):
            await asyncio.to_thread(beacon.do, "send_notification", 0, beacon.handles[0][1], data)
        await until(lambda: len(got) == 2)
        return got

    assert talk(beacon, body) == [b"value", b""]
    beacon.advertise()

    async def wrong(connected: BleakClient) -> None:
        for handle in (0, -1, 1 << 16):
            await asyncio.to_thread(
                refused, errno.EINVAL, beacon.do, "send_notification", 0, handle, b""
            )
        await asyncio.to_thread(refused, errno.EINVAL, beacon.do, "send_notification", 0, 999, None)

    talk(beacon, wrong)


def test_notify_after_the_end(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    refused(errno.ENOTCONN, beacon.do, "send_notification", 0, beacon.handles[0][1], b"")

    async def body(connected: BleakClient) -> None:
        pass

    talk(beacon, body)
    wait_until(lambda: beacon.seen(DISCONNECT))
    refused(errno.ENOTCONN, beacon.do, "send_notification", 0, beacon.handles[0][1], b"")
    assert beacon.do("disconnect", 0) is False


def test_a_flood_is_refused_and_nothing_is_lost(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    space.set_conditions(paced=True, per_event=2)
    sent: list[bytes] = []

    async def flood() -> int:
        refusals = 0
        for number in range(200):
            data = number.to_bytes(2, "big")
            while True:
                try:
                    beacon.peripheral.send_notification(0, beacon.handles[0][1], data)
                    break
                except OSError as error:
                    assert error.args[0] == errno.ENOMEM
                    refusals += 1
                    await asyncio.sleep(0.005)
            sent.append(data)
        return refusals

    async def body(connected: BleakClient) -> int:
        got: list[bytes] = []
        await connected.start_notify(FF02, lambda c, data: got.append(bytes(data)))
        refusals = await asyncio.to_thread(beacon.space.run, flood())
        await until(lambda: len(got) == 200)
        assert got == sent
        return refusals

    assert talk(beacon, body) > 0


def test_send_update_reaches_subscribers_only(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    handle = beacon.handles[0][1]

    async def body(connected: BleakClient) -> list[bytes]:
        got: list[bytes] = []
        await asyncio.to_thread(beacon.do, "write_value", handle, b"nobody", True)
        await connected.start_notify(FF02, lambda c, data: got.append(bytes(data)))
        await asyncio.to_thread(beacon.do, "write_value", handle, b"first", True)
        await until(lambda: got)
        await connected.stop_notify(FF02)
        await asyncio.to_thread(beacon.do, "write_value", handle, b"late", True)
        assert await connected.read_gatt_char(FF02) == b"late"
        return got

    assert talk(beacon, body) == [b"first"]
    assert (0xFFFF, handle) in beacon.seen(READ)  # NimBLE reads the value for itself
