"""The limits of esp-nimble that a lenient stand-in would hide."""

import asyncio
import errno
import re
from typing import Any

import pytest
from bleak import BleakClient
from bleak.exc import BleakError, BleakGATTProtocolError
from bumble import att

from beacon_ota import paths
from beacon_ota.virtual.radio import prepared
from beacon_ota.virtual.radio.space import RadioSpace
from tests.virtual.radio.beacons import (
    BLUFI,
    FF01,
    FF02,
    FLAG_INDICATE,
    FLAG_NOTIFY,
    FLAG_READ,
    NAME,
    PROVISIONABLE,
    RX,
    SERVICE,
    TX,
    Beacon,
    client,
    refused,
    talk,
    until,
    wait_until,
)

CONNECT, DISCONNECT, WRITE, MTU = 1, 2, 3, 21
NOTIFIED, INDICATED, ENCRYPTED, GET_SECRET, SET_SECRET = 18, 19, 28, 29, 30


def connection(connected: BleakClient) -> Any:
    """bumble's connection of a client, for what bleak cannot send."""
    return connected._backend._connection  # type: ignore[attr-defined]


def opcodes(capture: Any) -> list[bytes]:
    return [frame.att_pdu[:1] for frame in capture if frame.att_pdu]


async def answer(connected: BleakClient, request: Any) -> Any:
    return await connection(connected).gatt_client.send_request(request)


async def write_descriptor(connected: BleakClient, handle: int, value: bytes) -> None:
    """Write also what bleak writes by itself only: subscriptions."""
    await connected._backend._write_value(handle, value, True)  # type: ignore[attr-defined]


async def error_code(operation: Any) -> int:
    with pytest.raises(BleakGATTProtocolError) as caught:
        await operation
    return caught.value.code


# Connections


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


def test_nothing_is_answered_while_the_handler_of_a_connection_waits(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    free = asyncio.Event()
    capture = space.start_capture()

    async def slow(event: int, data: tuple[Any, ...]) -> None:
        if event == CONNECT:
            await free.wait()

    beacon.on_irq = slow

    async def run() -> None:
        connected = client(beacon)
        connecting = asyncio.ensure_future(connected.connect())
        await until(lambda: b"\x02" in opcodes(capture))
        await asyncio.sleep(0.1)  # long enough for an answer, if there were one
        assert b"\x03" not in opcodes(capture)
        await asyncio.to_thread(space.call, free.set)
        await connecting
        await connected.disconnect()

    asyncio.run(run())
    assert [event for event, _ in beacon.events[:2]] == [CONNECT, MTU]


def test_packets_come_in_pieces(space: RadioSpace) -> None:
    beacon = Beacon(space).start()
    beacon.do("set_config", "mtu", 527)
    beacon.do("set_buffer", beacon.handles[0][0], 512, False)
    beacon.advertise()

    async def body(connected: BleakClient) -> list[int]:
        sizes: list[int] = []
        host = beacon.peripheral._device.host  # type: ignore[union-attr]
        take = host.on_hci_acl_data_packet

        def measure(packet: Any) -> None:
            sizes.append(len(packet.data))
            take(packet)

        host.on_hci_acl_data_packet = measure  # type: ignore[method-assign]
        await connected.write_gatt_char(FF01, bytes(500), response=True)
        return sizes

    assert talk(beacon, body) == [251, 251, 5]
    assert len(beacon.do("read_value", beacon.handles[0][0])) == 500


# Memory


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


# Packets


def test_a_packet_over_the_mtu_is_dropped_in_silence(space: RadioSpace) -> None:
    beacon = Beacon(space).start()
    beacon.do("set_buffer", beacon.handles[0][0], 512, False)
    beacon.advertise()

    async def body(connected: BleakClient) -> None:
        for size in (51, 50):
            command = b"\x52" + beacon.handles[0][0].to_bytes(2, "little") + bytes(size - 3)
            connection(connected).send_l2cap_pdu(att.ATT_CID, command)
        await until(lambda: beacon.seen(WRITE))

    talk(beacon, body, mtu=50)
    assert len(beacon.seen(WRITE)) == 1
    assert len(beacon.do("read_value", beacon.handles[0][0])) == 47


def test_an_mtu_below_23_counts_as_23(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()

    async def body(connected: BleakClient) -> None:
        for asked in (22, 100):
            said = await answer(connected, att.ATT_Exchange_MTU_Request(client_rx_mtu=asked))
            assert said.server_rx_mtu == 256

    talk(beacon, body, mtu=23)
    assert beacon.seen(MTU) == [(0, 23), (0, 100)]


def test_subscriptions_are_checked(space: RadioSpace) -> None:
    service = (BLUFI, [(RX, FLAG_INDICATE, []), (TX, FLAG_READ | FLAG_NOTIFY, [])])
    beacon = Beacon(space).start(service).advertise()

    async def body(connected: BleakClient) -> None:
        indicated, notified = (handle + 1 for handle in beacon.handles[0])
        for handle, good, bad in ((indicated, b"\2\0", b"\1\0"), (notified, b"\1\0", b"\2\0")):
            for value in (bad, b"\3\0", b"\4\0", good[:1] + b"\1"):
                assert await error_code(write_descriptor(connected, handle, value)) == 0x06
            for value in (b"", b"\1", b"\1\0\0"):
                assert await error_code(write_descriptor(connected, handle, value)) == 0x0D
            await write_descriptor(connected, handle, good)
            assert await connected.read_gatt_descriptor(handle) == good
            await write_descriptor(connected, handle, b"\0\0")

    talk(beacon, body)


def test_client_features_are_kept_for_the_link(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()

    async def body(connected: BleakClient) -> None:
        assert await connected.read_gatt_char("2b29") == b"\0"
        await connected.write_gatt_char("2b29", b"\x09", response=True)
        assert await connected.read_gatt_char("2b29") == b"\1"
        assert await error_code(connected.write_gatt_char("2b29", b"\2", response=True)) == 0x13

    for _ in range(2):
        talk(beacon, body)
        wait_until(lambda: beacon.seen(DISCONNECT))
        beacon.events.clear()
        beacon.advertise()


def test_a_peer_can_notify_the_beacon(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    capture = space.start_capture()

    async def body(connected: BleakClient) -> None:
        for opcode in (b"\x1b", b"\x1d"):
            connection(connected).send_l2cap_pdu(att.ATT_CID, opcode + b"\x2a\0hello")
        await until(lambda: b"\x1e" in [frame.att_pdu for frame in capture])

    talk(beacon, body)
    assert beacon.seen(NOTIFIED) == beacon.seen(INDICATED) == [(0, 42, b"hello")]


# Registering


def test_a_registration_that_failed_costs_the_next_one(space: RadioSpace) -> None:
    services = [(bytes([n, 0xF0]), [(RX, FLAG_READ, [])]) for n in range(9)]
    beacon = Beacon(space).start()
    refused(errno.E2BIG, beacon.do, "register_services", services)
    refused(errno.ENOMEM, beacon.do, "register_services", [SERVICE])
    assert beacon.do("register_services", [SERVICE]) == beacon.handles
    beacon.do("fail_registration")
    beacon.do("set_active", True)
    assert beacon.do("register_services", [SERVICE]) == beacon.handles


# Pairing


@pytest.mark.parametrize("bond", [False, True])
def test_pairing_succeeds_and_is_not_kept(space: RadioSpace, bond: bool) -> None:
    guarded = (BLUFI, [(RX, FLAG_READ | 0x0200, []), (TX, FLAG_READ | 0x0400, [])])
    beacon = Beacon(space).start(guarded)
    beacon.do("set_config", "bond", bond)
    beacon.advertise()
    keys: list[Any] = []

    async def body(connected: BleakClient) -> None:
        assert await error_code(connected.read_gatt_char(FF01)) == 0x05
        connection(connected).on("pairing", keys.append)
        await connected.pair()
        await until(lambda: beacon.seen(ENCRYPTED) and keys)
        assert await connected.read_gatt_char(FF01) == b""
        assert await error_code(connected.read_gatt_char(FF02)) == 0x05  # not authenticated

    talk(beacon, body)
    assert beacon.seen(ENCRYPTED) == [(0, 1, 0, int(bond), 16)]
    assert [data[:2] for data in beacon.seen(GET_SECRET)] == [(2, 0)]
    assert [data[0] for data in beacon.seen(SET_SECRET)] == ([1, 2] if bond else [])
    wait_until(lambda: beacon.seen(DISCONNECT))
    beacon.advertise()

    async def later(connected: BleakClient) -> None:
        link = connection(connected)
        await link.device.keystore.update(str(link.peer_address), keys[0])
        with pytest.raises(Exception, match="PIN_OR_KEY_MISSING"):
            await link.device.encrypt(link)

    if bond:
        talk(beacon, later)
        assert [data[:2] for data in beacon.seen(GET_SECRET)] == [(2, 0), (1, 0)]


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
