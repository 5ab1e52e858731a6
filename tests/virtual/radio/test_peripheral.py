"""What a beacon's code sees: the semantics of MicroPython's `bluetooth` on the ESP32-C3."""

import asyncio
import errno

import pytest
from bleak import BleakClient
from bleak.exc import BleakError

from beacon_ota.virtual.radio.space import RadioSpace
from tests.virtual.radio.beacons import (
    FF01,
    FF02,
    FLAG_NOTIFY,
    FLAG_READ,
    NAME,
    PROVISIONABLE,
    RX,
    SERVICE,
    Beacon,
    client,
    refused,
    talk,
    until,
    wait_until,
)

CONNECT, DISCONNECT = 1, 2


# Off


def test_everything_needs_an_active_stack(space: RadioSpace) -> None:
    beacon = Beacon(space)
    for call in (
        ("start_advertising", 100_000, b"", b"", True),
        ("register_services", [SERVICE]),
        ("write_value", 16, b"", False),
        ("set_buffer", 16, 100, False),
        ("send_notification", 0, 16, b""),
        ("disconnect", 0),
        ("start_scan", 100, 30000, 30000, False),
        ("get_config", "mtu"),
        ("get_config", "mac"),
        ("set_config", "mtu", 100),
    ):
        refused(errno.ENODEV, beacon.do, *call)
    assert beacon.do("read_value", 16) == b""
    assert beacon.do("get_config", "gap_name") == b"MPY ESP32"


def test_settings(space: RadioSpace) -> None:
    beacon = Beacon(space).start()
    assert beacon.do("get_config", "mac") == (0, beacon.mac)
    assert beacon.do("get_config", "mtu") == 256
    for mtu in (23, 527):
        beacon.do("set_config", "mtu", mtu)
        assert beacon.do("get_config", "mtu") == mtu
    for mtu in (22, 528, 0, -1):
        refused(errno.EINVAL, beacon.do, "set_config", "mtu", mtu)
    beacon.do("set_config", "gap_name", b"x" * 31)
    refused(errno.EINVAL, beacon.do, "set_config", "gap_name", b"x" * 32)
    for name in ("rxbuf", "nonsense"):
        with pytest.raises(ValueError, match="unknown config param"):
            beacon.do("get_config", name)
        with pytest.raises(ValueError, match="unknown config param"):
            beacon.do("set_config", name, 1)


def test_a_second_activation_restarts_the_stack(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    beacon.do("set_config", "mtu", 100)
    beacon.do("set_active", True)
    assert beacon.do("get_config", "mtu") == 256
    assert not space.list_radios()[0]["advertising"]
    refused(errno.EINVAL, beacon.do, "write_value", beacon.handles[0][0], b"", False)


# Registering


def test_handles_are_numbered_as_by_nimble(space: RadioSpace) -> None:
    battery = (b"\x0f\x18", [(b"\x19\x2a", FLAG_READ | FLAG_NOTIFY, [(b"\x01\x29", FLAG_READ)])])
    beacon = Beacon(space).start(battery, SERVICE)
    # 14 service, 15 declaration, 16 value, 17 subscription, 18 description, 19 service, ...
    assert beacon.handles == [[16, 18], [21, 23]]


def test_registering_replaces_everything(space: RadioSpace) -> None:
    beacon = Beacon(space).start()
    beacon.do("write_value", beacon.handles[0][0], b"old", False)
    assert beacon.do("register_services", [SERVICE]) == beacon.handles
    assert beacon.do("read_value", beacon.handles[0][0]) == b""
    beacon.do("register_services", [(b"\x0f\x18", [(b"\x19\x2a", FLAG_READ, [])])])
    beacon.advertise()

    async def body(connected: BleakClient) -> list[str]:
        return [service.uuid[4:8] for service in connected.services]

    assert talk(beacon, body) == ["1800", "1801", "180f"]


def test_registering_needs_quiet(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    refused(errno.EBUSY, beacon.do, "register_services", [SERVICE])

    async def body(connected: BleakClient) -> None:
        await asyncio.to_thread(refused, errno.EBUSY, beacon.do, "register_services", [SERVICE])

    talk(beacon, body)


def test_eight_services_are_the_limit(space: RadioSpace) -> None:
    services = [(bytes([n, 0xF0]), [(RX, FLAG_READ, [])]) for n in range(9)]
    beacon = Beacon(space).start(*services[:8])
    assert len(beacon.handles) == 8
    refused(errno.E2BIG, beacon.do, "register_services", services)


def test_uuids_of_every_size(space: RadioSpace) -> None:
    long = bytes(range(16))
    beacon = Beacon(space).start((long, [(long[::-1], FLAG_READ, [])])).advertise()

    async def body(connected: BleakClient) -> tuple[str, str]:
        service = list(connected.services)[2]
        return service.uuid, service.characteristics[0].uuid

    assert talk(beacon, body) == (
        "0f0e0d0c-0b0a-0908-0706-050403020100",
        "00010203-0405-0607-0809-0a0b0c0d0e0f",
    )


# Ending


def test_the_beacon_hangs_up(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    ended: list[BleakClient] = []

    async def run() -> None:
        connected = client(beacon, disconnected_callback=ended.append)
        await connected.connect()
        got: list[bytes] = []
        await connected.start_notify(FF02, lambda c, data: got.append(bytes(data)))

        def last_words() -> bool:
            beacon.do("send_notification", 0, beacon.handles[0][1], b"bye")
            return beacon.do("disconnect", 0)

        assert await asyncio.to_thread(last_words) is True
        await until(lambda: ended == [connected])
        assert got == [b"bye"]
        assert not connected.is_connected
        with pytest.raises(BleakError):
            await connected.write_gatt_char(FF01, b"x", response=True)
        await connected.disconnect()

    asyncio.run(run())
    assert beacon.do("disconnect", 0) is False


def test_switching_off_drops_everything(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    ended: list[BleakClient] = []

    async def run() -> None:
        connected = client(beacon, disconnected_callback=ended.append)
        await connected.connect()
        await asyncio.to_thread(beacon.do, "set_active", False)
        await until(lambda: ended)

    asyncio.run(run())
    assert not beacon.peripheral.active
    assert len(beacon.seen(DISCONNECT)) == 1
    wait_until(lambda: space.list_radios() == [])
    refused(errno.ENODEV, beacon.do, "start_advertising", 100_000, None, None, True)
    beacon.start().advertise()

    async def body(connected: BleakClient) -> None:
        await connected.write_gatt_char(FF01, b"again", response=True)

    talk(beacon, body)


# Scanning by a beacon


def test_a_beacon_can_scan(space: RadioSpace) -> None:
    other = Beacon(space, 2).start().advertise()
    beacon = Beacon(space, 1).start()
    beacon.do("start_scan", 150, 30_000, 30_000, True)
    refused(errno.EALREADY, beacon.do, "start_scan", 100, 30_000, 30_000, True)
    wait_until(lambda: beacon.seen(6))
    results = beacon.seen(5)
    assert {kind for _, _, kind, _, _ in results} == {0, 4}
    assert {(addr_type, address) for addr_type, address, *_ in results} == {(0, other.mac)}
    beacon.do("start_scan", 0, 30_000, 30_000, False)
    wait_until(lambda: len(beacon.seen(5)) > len(results) + 2)
    beacon.do("stop_scan")
    wait_until(lambda: len(beacon.seen(6)) == 2)


@pytest.mark.parametrize("name", ["on", "off", "advertise"])
def test_the_power_may_fail_inside_any_call(space: RadioSpace, name: str) -> None:
    """After so many turns of the loop, wherever in the call that is."""
    beacon = Beacon(space)
    peripheral = beacon.peripheral

    async def body(turns: int) -> bool:
        if name != "on":
            await peripheral.set_active(True)
            await peripheral.start_advertising(20_000, b"", b"", True)
        call = {
            "on": lambda: peripheral.set_active(True),
            "off": lambda: peripheral.set_active(False),
            "advertise": lambda: peripheral.start_advertising(30_000, b"", b"", True),
        }[name]
        task = asyncio.ensure_future(call())
        for _ in range(turns):
            await asyncio.sleep(0)
        done = task.done()
        peripheral.lose_power()
        await asyncio.wait([task], timeout=0.05)  # it may never end
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            assert isinstance(task.exception(), OSError | None)
        assert not peripheral.active and peripheral.advertising is None
        return done

    turns = 1  # the call has begun
    while not space.run(body(turns)):
        assert space.list_radios() == []
        turns += 1
    assert turns > 4
    beacon.start().advertise()
    assert len(space.list_radios()) == 1


# What NimBLE does without a word


def test_a_connection_that_fails_leaves_no_word_and_an_empty_advertisement(
    space: RadioSpace,
) -> None:
    beacon = Beacon(space).start().advertise()
    space.fail_connections(beacon.address)

    async def run() -> None:
        with pytest.raises(BleakError):
            await client(beacon).connect()

    asyncio.run(run())
    wait_until(lambda: beacon.peripheral.advertising)
    shown = beacon.peripheral.advertising
    assert shown is not None
    assert (shown.data, shown.response, shown.connectable) == (b"", NAME, True)
    assert [event for event, _ in beacon.events] == [CONNECT]
    assert beacon.do("disconnect", 0) is False
    beacon.do("start_advertising", 20_000, PROVISIONABLE, NAME, True)
    assert talk(beacon, lambda connected: asyncio.sleep(0, connected.is_connected))


def test_a_host_reset_ends_links_and_advertising(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()

    async def body(connected: BleakClient) -> None:
        await asyncio.to_thread(beacon.do, "start_advertising", 20_000, None, None, True)
        await asyncio.to_thread(beacon.do, "reset_host")
        await until(lambda: beacon.seen(DISCONNECT))

    talk(beacon, body)
    assert beacon.peripheral.advertising is None
    assert not [radio for radio in space.list_radios() if radio["advertising"]]
    beacon.advertise()

    async def again(connected: BleakClient) -> None:
        await connected.write_gatt_char(FF01, b"x", response=True)

    talk(beacon, again)


def test_a_registration_that_failed_costs_the_next_one(space: RadioSpace) -> None:
    services = [(bytes([n, 0xF0]), [(RX, FLAG_READ, [])]) for n in range(9)]
    beacon = Beacon(space).start()
    refused(errno.E2BIG, beacon.do, "register_services", services)
    refused(errno.ENOMEM, beacon.do, "register_services", [SERVICE])
    assert beacon.do("register_services", [SERVICE]) == beacon.handles
    beacon.do("fail_registration")
    beacon.do("set_active", True)
    assert beacon.do("register_services", [SERVICE]) == beacon.handles
