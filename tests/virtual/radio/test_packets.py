"""Packets of peers, as strictly as esp-nimble takes them."""

import asyncio
from typing import Any

from bleak import BleakClient
from bumble import att

from beacon_ota.virtual.radio.space import RadioSpace
from tests.virtual.radio.beacons import (
    BLUFI,
    FF01,
    FLAG_INDICATE,
    FLAG_NOTIFY,
    FLAG_READ,
    RX,
    TX,
    Beacon,
    client,
    talk,
    until,
    wait_until,
)
from tests.virtual.radio.raw import answer, connection, error_code, opcodes, write_descriptor

CONNECT, DISCONNECT, WRITE, MTU = 1, 2, 3, 21
NOTIFIED, INDICATED = 18, 19


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
