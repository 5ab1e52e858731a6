"""Connections under bad conditions, several at once, and ends at any moment."""

import asyncio
import contextlib
import errno
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from bleak import BleakClient, BleakScanner
from bleak.exc import BleakBluetoothNotAvailableError, BleakDeviceNotFoundError, BleakError

from beacon_ota.errors import ReachError
from beacon_ota.virtual.radio.peripheral import Peripheral
from beacon_ota.virtual.radio.selection import select_radio
from beacon_ota.virtual.radio.space import RadioSpace
from beacon_ota.virtual.radio.transport import RemoteRadio
from tests.virtual.radio.beacons import (
    FF01,
    FF02,
    NAME,
    PROVISIONABLE,
    SERVICE,
    WAIT,
    Beacon,
    client,
    until,
    wait_until,
)
from tests.virtual.radio.timers import ManualTimers, Stopped

CONNECT, DISCONNECT, WRITE = 1, 2, 3


def test_a_found_device_brings_its_room_along(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()

    async def body() -> None:
        device = await BleakScanner.find_device_by_name(
            "BLUFI_A1B2C3", **select_radio(space.spec).scanner
        )
        assert device is not None and device.address == beacon.address
        async with BleakClient(
            device, backend=select_radio(space.spec).client["backend"]
        ) as connected:
            assert connected.is_connected and connected.name == "BLUFI_A1B2C3"

    asyncio.run(body())


def test_a_random_address_is_found_too(space: RadioSpace) -> None:
    beacon = Beacon(space).start()
    beacon.do("set_config", "addr_mode", 1)
    kind, mac = beacon.do("get_config", "mac")
    assert kind == 1 and mac[0] >= 0xC0 and mac != beacon.mac
    beacon.advertise()

    async def body() -> None:
        address = ":".join(f"{byte:02X}" for byte in mac)
        async with BleakClient(address, **select_radio(space.spec).client) as connected:
            await connected.write_gatt_char(FF01, b"x", response=True)

    asyncio.run(body())
    assert len(beacon.seen(WRITE)) == 1


def test_nobody_there(space: RadioSpace) -> None:
    beacon = Beacon(space).start()  # silent

    async def body() -> None:
        with pytest.raises(BleakDeviceNotFoundError):
            await client(beacon, timeout=0.3).connect()
        beacon.advertise(connectable=False)
        chosen = select_radio(space.spec)
        found = await BleakScanner.find_device_by_address(beacon.address, WAIT, **chosen.scanner)
        assert found is not None
        with pytest.raises(TimeoutError):
            await BleakClient(found, timeout=0.3, **chosen.client).connect()
        # the cancelled attempt leaves the adapter fit for the next
        beacon.advertise()
        async with client(beacon, timeout=WAIT) as connected:
            assert connected.is_connected

    asyncio.run(body())


def test_giving_up_at_the_moment_of_success_leaves_nothing_behind(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()

    async def again(event: int, data: tuple[Any, ...]) -> None:
        if event == DISCONNECT:
            await beacon.peripheral.start_advertising(20_000, None, None, True)

    beacon.on_irq = again

    async def body() -> int:
        given_up = 0
        device = await BleakScanner.find_device_by_address(
            beacon.address, **select_radio(space.spec).scanner
        )
        assert device is not None
        async with BleakScanner(**select_radio(space.spec).scanner):  # keeps the adapter open
            for attempt in range(60):
                connected = BleakClient(device, **select_radio(space.spec).client)
                try:
                    async with asyncio.timeout(attempt / 2000):
                        await connected.connect()
                except TimeoutError:
                    given_up += 1
                await connected.disconnect()
                await until(lambda: not space.call(lambda: space.medium.links))
            async with BleakClient(device, **select_radio(space.spec).client) as last:
                await last.write_gatt_char(FF01, b"x", response=True)
        return given_up

    assert asyncio.run(body()) > 10


def test_no_room(tmp_path: Any) -> None:
    async def body() -> None:
        with pytest.raises(BleakBluetoothNotAvailableError):
            await BleakScanner.discover(0.1, **select_radio(f"room:{tmp_path}/none").scanner)

    asyncio.run(body())


def test_two_beacons_one_central(space: RadioSpace) -> None:
    beacons = [Beacon(space, n).start().advertise() for n in (1, 2)]
    for beacon in beacons:
        beacon.on_irq = lambda event, data, b=beacon: (
            b.peripheral.send_notification(0, b.handles[0][1], b.mac) if event == WRITE else None
        )

    async def one(beacon: Beacon) -> list[bytes]:
        got: list[bytes] = []
        async with client(beacon) as connected:
            await connected.start_notify(FF02, lambda c, data: got.append(bytes(data)))
            for _ in range(5):
                await connected.write_gatt_char(FF01, b"?", response=True)
            await until(lambda: len(got) == 5)
        return got

    async def body() -> list[list[bytes]]:
        return await asyncio.gather(*map(one, beacons))

    assert asyncio.run(body()) == [[beacon.mac] * 5 for beacon in beacons]


def test_ten_at_once(space: RadioSpace) -> None:
    beacons = [Beacon(space, n).start().advertise() for n in range(10)]

    async def one(beacon: Beacon) -> None:
        async with client(beacon) as connected:
            for n in range(20):
                await connected.write_gatt_char(FF01, bytes([n]), response=True)

    async def body() -> None:
        await asyncio.gather(*map(one, beacons))

    asyncio.run(body())
    assert all(len(beacon.seen(WRITE)) == 20 for beacon in beacons)


def test_four_connections_are_the_limit(space: RadioSpace) -> None:
    beacon = Beacon(space).start()

    async def body() -> None:
        clients = []
        for number in range(4):
            await asyncio.to_thread(beacon.advertise)
            # one adapter holds one connection to a device, so each central is a loop of its own
            clients.append(await asyncio.to_thread(_central, space, beacon))
            await until(lambda n=number: len(beacon.seen(CONNECT)) == n + 1)
        with pytest.raises(OSError) as caught:
            await asyncio.to_thread(beacon.advertise)
        assert caught.value.args[0] == 12  # ENOMEM
        await asyncio.to_thread(beacon.advertise, connectable=False)
        assert [data[0] for data in beacon.seen(CONNECT)] == [0, 1, 2, 3]
        await asyncio.to_thread(beacon.do, "disconnect", 2)
        await until(lambda: [data[0] for data in beacon.seen(DISCONNECT)] == [2])
        await asyncio.to_thread(beacon.advertise)
        for close in clients:
            await asyncio.to_thread(close)

    asyncio.run(body())
    wait_until(lambda: len(beacon.seen(DISCONNECT)) == 4)


def _central(space: RadioSpace, beacon: Beacon) -> Any:
    """A connected central in an event loop of its own; a function that ends it."""
    loop = asyncio.new_event_loop()
    connected = client(beacon)
    loop.run_until_complete(connected.connect())

    def close() -> None:
        loop.run_until_complete(connected.disconnect())
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()

    return close


def test_each_connection_gets_its_own(space: RadioSpace) -> None:
    beacon = Beacon(space).start()
    beacon.on_irq = lambda event, data: (
        beacon.peripheral.send_notification(data[0], beacon.handles[0][1], bytes([data[0]]))
        if event == WRITE
        else None
    )

    def central(got: list[bytes]) -> None:
        async def body() -> None:
            async with client(beacon) as connected:
                await connected.start_notify(FF02, lambda c, data: got.append(bytes(data)))
                together.wait(WAIT)
                for n in range(10):
                    await connected.write_gatt_char(FF01, b"x", response=True)
                    await until(lambda n=n: len(got) == n + 1)

        asyncio.run(body())

    together = threading.Barrier(2)
    answers: list[list[bytes]] = [[], []]
    threads = [threading.Thread(target=central, args=(got,)) for got in answers]
    for number, thread in enumerate(threads):
        beacon.advertise()
        thread.start()
        wait_until(lambda n=number: len(beacon.seen(CONNECT)) == n + 1)
    for thread in threads:
        thread.join(WAIT)
    assert answers == [[b"\0"] * 10, [b"\1"] * 10]


# The way there


def test_latency_delays_and_keeps_order(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()

    async def body() -> None:
        async with client(beacon) as connected:
            space.set_conditions(latency=0.05)
            start = time.monotonic()
            for n in range(3):
                await connected.write_gatt_char(FF01, bytes([n]), response=True)
            assert time.monotonic() - start >= 0.3
            got: list[bytes] = []
            await connected.start_notify(FF02, lambda c, data: got.append(bytes(data)))
            for n in range(17):
                beacon.do("send_notification", 0, beacon.handles[0][1], bytes([n]))
            await until(lambda: len(got) == 17)
            assert got == [bytes([n]) for n in range(17)]
            space.set_conditions(latency=0.0)

    asyncio.run(body())


def test_loss_is_only_delay(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()

    async def body() -> None:
        async with client(beacon) as connected:
            space.set_conditions(loss=0.3)
            for n in range(30):
                await connected.write_gatt_char(FF01, bytes([n]), response=True)
            space.set_conditions(loss=0.0)

    asyncio.run(body())
    assert len(beacon.seen(WRITE)) == 30


def test_a_paced_link_takes_its_intervals(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()

    async def body() -> None:
        async with client(beacon) as connected:
            space.set_conditions(paced=True)
            start = time.monotonic()
            for _ in range(10):
                await connected.write_gatt_char(FF01, b"x", response=True)
            # request and response at connection events 15 ms apart
            assert time.monotonic() - start >= 0.14

    asyncio.run(body())


async def notified(beacon: Beacon, data: bytes) -> None:
    """Send a notification as soon as there is space for it."""
    while True:
        try:
            beacon.do("send_notification", 0, beacon.handles[0][1], data)
            return
        except OSError as error:
            assert error.args[0] == errno.ENOMEM
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", range(4))
def test_what_arrives_is_what_was_sent(seed: int) -> None:
    """Both ways at once over a bad link: nothing lost, doubled or out of order."""
    chance = random.Random(seed)
    with RadioSpace(seed=seed) as space:
        beacon = Beacon(space).start().advertise()
        received: list[bytes] = []
        beacon.on_irq = lambda event, data: (
            received.append(beacon.peripheral.read_value(data[1])) if event == WRITE else None
        )
        parts = [n.to_bytes(2, "big") * chance.randrange(1, 10) for n in range(60)]

        async def body() -> None:
            async with client(beacon) as connected:
                got: list[bytes] = []
                await connected.start_notify(FF02, lambda c, data: got.append(bytes(data)))
                space.set_conditions(
                    loss=chance.uniform(0, 0.5),
                    latency=chance.uniform(0, 0.02),
                    paced=seed % 2 == 0,
                    per_event=chance.randrange(1, 6),
                )
                for part in parts:
                    await notified(beacon, part)
                    await connected.write_gatt_char(FF01, part, response=False)
                await until(lambda: len(got) == len(received) == len(parts))
                assert got == received == parts
                space.set_conditions(loss=0.0, latency=0.0, paced=False)

        asyncio.run(body())


# Ends


def ended(space: RadioSpace, beacon: Beacon, how: Callable[[], object]) -> None:
    """Wait until a connected client learns of what ``how()`` does."""

    async def body() -> None:
        gone = asyncio.Event()
        connected = client(beacon, disconnected_callback=lambda c: gone.set())
        await connected.connect()
        await asyncio.to_thread(how)
        await asyncio.wait_for(gone.wait(), WAIT)
        assert not connected.is_connected

    asyncio.run(body())


def links(space: RadioSpace) -> int:
    return space.call(lambda: len(space.medium.links))


def test_a_break_is_known_to_both_at_once(space: RadioSpace, timers: ManualTimers) -> None:
    beacon = Beacon(space).start().advertise()

    def breaks() -> None:
        with Stopped(space, timers):
            space.break_links(beacon.address)
            assert links(space) == 0
            wait_until(lambda: beacon.seen(DISCONNECT))

    ended(space, beacon, breaks)


def test_a_power_cut_is_silence(space: RadioSpace, timers: ManualTimers) -> None:
    """Until the supervision timeout, which is two seconds."""
    beacon = Beacon(space).start().advertise()

    def vanishes() -> None:
        with Stopped(space, timers) as stopped:
            beacon.do("lose_power")
            stopped.advance(1.99)
            assert links(space) == 1
            stopped.advance(0.02)
            assert links(space) == 0

    ended(space, beacon, vanishes)
    assert beacon.seen(DISCONNECT) == []


def test_walking_away_ends_in_a_timeout_for_both(space: RadioSpace, timers: ManualTimers) -> None:
    beacon = Beacon(space).start().advertise()

    def leaves() -> None:
        with Stopped(space, timers) as stopped:
            space.move_radio(beacon.address, 900.0)
            stopped.advance(1.99)
            assert links(space) == 1
            stopped.advance(0.02)
            assert links(space) == 0

    ended(space, beacon, leaves)
    wait_until(lambda: beacon.seen(DISCONNECT))


def test_coming_back_in_time_saves_the_link(space: RadioSpace, timers: ManualTimers) -> None:
    beacon = Beacon(space).start().advertise()

    async def body() -> None:
        async with client(beacon) as connected:
            with Stopped(space, timers) as stopped:
                space.move_radio(beacon.address, 900.0)
                writing = asyncio.create_task(
                    connected.write_gatt_char(FF01, b"late", response=True)
                )
                for _ in range(19):
                    await asyncio.to_thread(stopped.advance, 0.1)
                assert not writing.done() and links(space) == 1
                space.move_radio(beacon.address, 1.0)
            await asyncio.wait_for(writing, WAIT)

    asyncio.run(body())
    assert len(beacon.seen(WRITE)) == 1


def test_a_central_that_dies_is_noticed(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()

    async def body() -> None:
        connected = client(beacon)
        await connected.connect()
        adapter = connected._backend._adapter  # type: ignore[attr-defined]
        adapter._client._transport.abort()  # as when the process is killed
        with pytest.raises(BleakError):
            await connected.read_gatt_char(FF02)

    asyncio.run(body())
    wait_until(lambda: beacon.seen(DISCONNECT))


def test_the_room_closes_under_a_client() -> None:
    with RadioSpace() as space:
        beacon = Beacon(space).start().advertise()
        ended(space, beacon, space.close)


@pytest.mark.parametrize("after", [1, 2, 3, 5, 8, 13, 21, 34])
def test_the_end_at_any_moment(space: RadioSpace, after: int) -> None:
    """Cut after so many packets, wherever in a conversation that is: both sides stay usable."""
    beacon = Beacon(space).start().advertise()
    beacon.on_irq = lambda event, data: (
        beacon.peripheral.send_notification(0, beacon.handles[0][1], b"!")
        if event == WRITE
        else None
    )

    async def talk() -> int:
        done = 0
        async with client(beacon) as connected:
            space.break_links(beacon.address, after=after)
            await connected.start_notify(FF02, lambda c, data: None)
            for _ in range(30):
                await connected.write_gatt_char(FF01, b"x", response=True)
                done += 1
        return done

    async def body() -> None:
        with pytest.raises(BleakError):
            await asyncio.wait_for(talk(), WAIT)
        await until(lambda: beacon.seen(DISCONNECT))
        beacon.advertise()
        async with client(beacon) as connected:
            await connected.write_gatt_char(FF01, b"again", response=True)

    asyncio.run(body())
    assert beacon.do("read_value", beacon.handles[0][0]) == b"again"


# Bad neighbours


def test_garbage_on_the_socket_disturbs_nobody(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    chance = random.Random(7)

    async def body() -> None:
        async with client(beacon) as connected:
            for _ in range(40):
                with socket.socket(socket.AF_UNIX) as stranger:
                    stranger.connect(str(space.path))
                    for _ in range(5):
                        kind = chance.choice([1, 1, 2, 4, chance.randrange(256)])
                        size = chance.randrange(60)
                        body = bytes(
                            [kind, chance.randrange(256), chance.choice([0x0C, 0x20, 0xFC])]
                        )
                        with contextlib.suppress(ConnectionError):  # thrown out already
                            stranger.send(body + bytes([size]) + chance.randbytes(size))
            await connected.write_gatt_char(FF01, b"still here", response=True)

    asyncio.run(body())
    wait_until(lambda: len(space.list_radios()) == 1)


def test_a_host_that_ignores_its_credits_loses_its_link(
    space: RadioSpace, timers: ManualTimers
) -> None:
    """Before a single packet has crossed the space."""
    beacon = Beacon(space).start().advertise()

    async def body() -> None:
        connected = client(beacon, mtu=23)
        connected._backend._discover_services = _nothing  # type: ignore[attr-defined]
        await connected.connect()
        adapter = connected._backend._adapter  # type: ignore[attr-defined]
        with Stopped(space, timers):
            space.set_conditions(latency=1.0)
            for _ in range(1000):
                adapter._client.on_packet(bytes.fromhex("020020090005000400521000" + "6162"))
            await until(lambda: beacon.seen(DISCONNECT))
        assert beacon.seen(WRITE) == []

    asyncio.run(body())


async def _nothing(connection: Any) -> Any:
    from bleak.backends.service import BleakGATTServiceCollection

    return BleakGATTServiceCollection()


def test_malformed_requests_are_answered(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    capture = space.start_capture()
    chance = random.Random(3)

    async def body() -> None:
        async with client(beacon) as connected:
            connection = connected._backend._connection  # type: ignore[attr-defined]
            for request in (b"\x0a", b"\x12\x10", b"\x16\x10\x00\x00", b"\x08\x01", b"\x02\x17"):
                connection.send_l2cap_pdu(4, request)
                expected = b"\x01" + request[:1] + b"\x00\x00\x04"  # invalid PDU
                await until(lambda e=expected: e in [frame.att_pdu for frame in capture])
            for _ in range(200):
                connection.send_l2cap_pdu(4, chance.randbytes(chance.randrange(12)))
            connection.send_l2cap_pdu(4, b"")
            connection.send_l2cap_pdu(77, b"nobody")
        await until(lambda: beacon.seen(DISCONNECT))
        beacon.advertise()
        async with client(beacon) as connected:
            assert await connected.read_gatt_char("2a00") == b"MPY ESP32"

    asyncio.run(body())


def test_a_beacon_of_another_process_may_join(space: RadioSpace) -> None:
    """The same peripheral over the socket, here in another event loop."""
    events: list[int] = []

    async def handler(event: int, data: tuple[Any, ...]) -> None:
        events.append(event)

    async def body() -> None:
        mac = bytes.fromhex("d4f98d0000ee")
        peripheral = Peripheral(RemoteRadio(str(space.path)), mac, handler)
        await peripheral.set_active(True)
        peripheral.register_services([SERVICE])
        await peripheral.start_advertising(20_000, PROVISIONABLE, NAME, True)
        space.move_radio("D4:F9:8D:00:00:EE", 10.0)
        heard: dict[str, int] = {}

        def callback(device: Any, data: Any) -> None:
            heard[device.address] = data.rssi

        async with BleakScanner(callback, **select_radio(space.spec).scanner):
            await until(lambda: heard)
        assert heard == {"D4:F9:8D:00:00:EE": -81}
        async with BleakClient("D4:F9:8D:00:00:EE", **select_radio(space.spec).client) as connected:
            await connected.write_gatt_char(FF01, b"x", response=True)
        await until(lambda: DISCONNECT in events)
        peripheral.lose_power()

    asyncio.run(body())
    assert events == [CONNECT, 21, WRITE, DISCONNECT]
    wait_until(lambda: space.list_radios() == [])


def test_a_path_of_another_room_is_taken(space: RadioSpace) -> None:
    with pytest.raises(ReachError) as caught:
        RadioSpace(space.path).start()
    assert caught.value.code == "radio_taken"


def test_a_socket_left_behind_is_not_in_the_way(tmp_path: Any) -> None:
    path = tmp_path / "room"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with RadioSpace(path) as space:
        Beacon(space).start().advertise()
    assert not path.exists()
