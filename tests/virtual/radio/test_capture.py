"""What an eavesdropper gets: frames, ATT PDUs, and a pcap file."""

import asyncio
import struct
from pathlib import Path

import pytest
from bleak import BleakClient, BleakScanner
from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.errors import InputError
from beacon_ota.virtual.radio.capture import AirFrame, Capture, crc24, read_pcap
from beacon_ota.virtual.radio.selection import select_radio
from beacon_ota.virtual.radio.space import RadioSpace
from tests.virtual.radio.beacons import (
    FF01,
    NAME,
    PROVISIONABLE,
    Beacon,
)

ADVERTISING = 0x8E89BED6


def conversation(room: RadioSpace, beacon: Beacon, secret: bytes) -> Capture:
    """Scan, connect, write a secret, disconnect; all of it recorded."""
    capture = room.start_capture()

    async def body() -> None:
        device = await BleakScanner.find_device_by_name(
            "BLUFI_A1B2C3", **select_radio(room.spec).scanner
        )
        assert device is not None
        async with BleakClient(device, **select_radio(room.spec).client) as connected:
            await connected.write_gatt_char(FF01, secret, response=True)

    asyncio.run(body())
    room.stop_capture()
    return capture


def test_everything_on_the_air_is_recorded(room: RadioSpace) -> None:
    beacon = Beacon(room).start().advertise()
    beacon.do("resize", beacon.handles[0][0], 512, False)
    secret = b"correct horse battery staple " * 10  # longer than one link-layer packet
    capture = conversation(room, beacon, secret)
    kinds = {frame.kind for frame in capture}
    assert kinds == {
        "ADV_IND", "SCAN_REQ", "SCAN_RSP", "CONNECT_IND", "DATA", "LL_TERMINATE_IND"
    }  # fmt: skip
    advertisement = next(frame for frame in capture if frame.kind == "ADV_IND")
    response = next(frame for frame in capture if frame.kind == "SCAN_RSP")
    assert (advertisement.sender, advertisement.payload) == (beacon.address, PROVISIONABLE)
    assert (response.sender, response.payload) == (beacon.address, NAME)
    assert [frame.at for frame in capture] == sorted(frame.at for frame in capture)
    written = b"".join(
        frame.att_pdu[5:] for frame in capture if frame.att_pdu and frame.att_pdu[0] == 0x16
    )  # prepared writes
    assert written == secret


def test_the_pcap_file_holds_link_layer_packets(room: RadioSpace, tmp_path: Path) -> None:
    beacon = Beacon(room).start().advertise()
    capture = conversation(room, beacon, bytes(range(200)))
    path = tmp_path / "air.pcap"
    count = capture.write_pcap(path)
    header = struct.unpack_from("<IHHiIII", path.read_bytes())
    assert header == (0xA1B2C3D4, 2, 4, 0, 0, 65535, 256)
    packets = read_pcap(path)
    assert len(packets) == count >= len(capture)
    access = {int.from_bytes(packet[:4], "little") for _, packet in packets}
    assert len(access) == 2 and ADVERTISING in access
    crc_init = None
    for _, packet in packets:
        pdu, crc = packet[4:-3], packet[-3:]
        assert pdu[1] == len(pdu) - 2
        if int.from_bytes(packet[:4], "little") == ADVERTISING:
            assert crc == crc24(0x555555, pdu)
            if pdu[0] & 0xF == 5:  # CONNECT_IND: InitA, AdvA, access address, CRC init
                assert pdu[8:14][::-1] == beacon.mac
                assert int.from_bytes(pdu[14:18], "little") in access
                crc_init = int.from_bytes(pdu[18:21], "little")
        else:
            assert crc_init is not None and crc == crc24(crc_init, pdu)
    assert bytes(range(200)) in b"".join(packet for _, packet in packets)


def test_an_empty_capture_is_a_file(tmp_path: Path) -> None:
    assert Capture().write_pcap(tmp_path / "none") == 0
    assert read_pcap(tmp_path / "none") == []


def test_a_capture_is_bounded() -> None:
    capture = Capture(limit=10)
    for n in range(25):
        capture.add_frame(AirFrame(n, "ADV_IND", "AA:BB:CC:DD:EE:FF", None, b""))
    assert [frame.at for frame in capture] == list(range(15, 25))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "pcap_magic"),
        (bytes(100), "pcap_magic"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 256) + b"x", "pcap_truncated"),
        (
            struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 256)
            + struct.pack("<IIII", 0, 0, 0xFFFFFFFF, 0),
            "pcap_truncated",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes, code: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_pcap(path)
    assert caught.value.code == code


def shift_register(init: int, data: bytes) -> bytes:
    """The CRC as the specification draws it: a register of 24 bits, position 0 to 23.

    Data bits enter least significant first; the result leaves position 23 first.
    """
    register = [init >> position & 1 for position in range(24)]
    for byte in data:
        for bit in range(8):
            feedback = register[23] ^ byte >> bit & 1
            register = [feedback, *register[:23]]
            for tap in (1, 3, 4, 6, 9, 10):
                register[tap] ^= feedback
    out = bytearray(3)
    for n, position in enumerate(range(23, -1, -1)):
        out[n // 8] |= register[position] << n % 8
    return bytes(out)


@given(st.integers(0, 0xFFFFFF), st.binary(max_size=40))
def test_the_crc_is_the_shift_register_of_the_specification(init: int, data: bytes) -> None:
    assert crc24(init, data) == shift_register(init, data)
