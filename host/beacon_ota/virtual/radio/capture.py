"""What an eavesdropper in the room hears, frame by frame, and a pcap file of it.

A frame holds what a sniffer would have after dewhitening: nothing is hidden from it, for links
in the room are not encrypted at the link layer. Wireshark opens the file as it is.
"""

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from beacon_ota.errors import InputError

ADVERTISING_ACCESS_ADDRESS = 0x8E89BED6
ATT_CID = 4

# PDU types of the advertising channels (Core 5.4, vol 6, part B, 2.3).
PDU_TYPE = {
    "ADV_IND": 0,
    "ADV_NONCONN_IND": 2,
    "SCAN_REQ": 3,
    "SCAN_RSP": 4,
    "CONNECT_IND": 5,
    "ADV_SCAN_IND": 6,
}
LL_TERMINATE_IND = 0x02

_MAGIC = 0xA1B2C3D4
_LINKTYPE = 256  # LE_LL_WITH_PHDR
_MAX_LL_PAYLOAD = 251
_FLAGS = 0x0001 | 0x0002 | 0x0010 | 0x0400 | 0x0800  # dewhitened, signal, address, CRC checked, ok


@dataclass(frozen=True, slots=True)
class AirFrame:
    """One frame on the air.

    Args:
        at: seconds since the capture began.
        kind: a name of ``PDU_TYPE``, ``DATA`` or ``LL_TERMINATE_IND``.
        sender: address of the transmitter, ``AA:BB:CC:DD:EE:FF``.
        receiver: address it was meant for, ``None`` for an advertisement.
        payload: AD structures of an advertisement or scan response; the LLData of a CONNECT_IND;
            the L2CAP PDU (header included) of a data frame; the reason byte of a termination.
        sender_random, receiver_random: whether the addresses are random ones.
        access_address: of the connection; of the advertising channels otherwise.
        channel: RF channel 0..39 as Wireshark numbers it.
        crc_init: initial CRC of the connection.
        rssi: dBm at one metre of the transmitter.
    """

    at: float
    kind: str
    sender: str
    receiver: str | None
    payload: bytes
    sender_random: bool = False
    receiver_random: bool = False
    access_address: int = ADVERTISING_ACCESS_ADDRESS
    channel: int = 37
    crc_init: int = 0x555555
    rssi: int = -59

    @property
    def att_pdu(self) -> bytes | None:
        """The ATT PDU that a data frame carries, if it carries one."""
        if self.kind != "DATA" or int.from_bytes(self.payload[2:4], "little") != ATT_CID:
            return None
        return self.payload[4:]


class Capture:
    """The last ``limit`` frames of a room, oldest first."""

    def __init__(self, limit: int = 100_000) -> None:
        self._frames: deque[AirFrame] = deque(maxlen=limit)

    def add_frame(self, frame: AirFrame) -> None:
        self._frames.append(frame)

    def __iter__(self) -> Iterator[AirFrame]:
        return iter(tuple(self._frames))

    def __len__(self) -> int:
        return len(self._frames)

    def write_pcap(self, path: Path) -> int:
        """Write a pcap file of link type ``LE_LL_WITH_PHDR``; return the number of packets."""
        packets = 0
        with path.open("wb") as file:
            file.write(struct.pack("<IHHiIII", _MAGIC, 2, 4, 0, 0, 65535, _LINKTYPE))
            sequence: dict[tuple[int, str], int] = {}
            for frame in self:
                for pdu in _link_layer_pdus(frame, sequence):
                    body = _physical_header(frame) + _air_bytes(frame, pdu)
                    seconds, micros = divmod(round(frame.at * 1_000_000), 1_000_000)
                    file.write(struct.pack("<IIII", seconds, micros, len(body), len(body)) + body)
                    packets += 1
        return packets


def read_pcap(path: Path) -> list[tuple[float, bytes]]:
    """Read back a file of :meth:`Capture.write_pcap`: (seconds, link-layer packet) each.

    The packet begins with the access address and ends with the CRC.

    Raises:
        InputError: ``pcap_magic`` or ``pcap_truncated``.
    """
    data = path.read_bytes()
    if len(data) < 24 or struct.unpack_from("<I", data)[0] != _MAGIC:
        raise InputError("pcap_magic", f"{path.name} is not a capture of the virtual radio.")
    packets = []
    offset = 24
    while offset < len(data):
        if offset + 16 > len(data):
            raise InputError("pcap_truncated", f"{path.name} ends inside a packet header.")
        seconds, micros, length, _ = struct.unpack_from("<IIII", data, offset)
        offset += 16
        if length < 10 or offset + length > len(data):
            raise InputError("pcap_truncated", f"{path.name} ends inside a packet.")
        packets.append((seconds + micros / 1e6, data[offset + 10 : offset + length]))
        offset += length
    return packets


def crc24(init: int, data: bytes) -> bytes:
    """The link layer's CRC of a PDU (Core vol 6, part B, 3.1.1), as the three bytes on the air."""
    # The register is kept bit-reversed, so that the bits of a byte enter least significant first.
    crc = int(f"{init:024b}"[::-1], 2)
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xDA6000 if crc & 1 else 0)
    return crc.to_bytes(3, "little")


def _physical_header(frame: AirFrame) -> bytes:
    return struct.pack("<BbbBIH", frame.channel, frame.rssi, -128, 0, frame.access_address, _FLAGS)


def _air_bytes(frame: AirFrame, pdu: bytes) -> bytes:
    return frame.access_address.to_bytes(4, "little") + pdu + crc24(frame.crc_init, pdu)


def _link_layer_pdus(frame: AirFrame, sequence: dict[tuple[int, str], int]) -> Iterator[bytes]:
    if frame.kind in PDU_TYPE:
        yield _advertising_pdu(frame)
    elif frame.kind == "LL_TERMINATE_IND":
        yield _data_pdu(frame, 0b11, bytes([LL_TERMINATE_IND]) + frame.payload, sequence)
    else:
        for start in range(0, len(frame.payload), _MAX_LL_PAYLOAD):
            part = frame.payload[start : start + _MAX_LL_PAYLOAD]
            yield _data_pdu(frame, 0b01 if start else 0b10, part, sequence)


def _advertising_pdu(frame: AirFrame) -> bytes:
    body = _address_bytes(frame.sender) + frame.payload
    header = PDU_TYPE[frame.kind] | frame.sender_random << 6 | frame.receiver_random << 7
    if frame.receiver is not None and frame.kind in ("SCAN_REQ", "CONNECT_IND"):
        body = _address_bytes(frame.sender) + _address_bytes(frame.receiver) + frame.payload
    return bytes([header, len(body)]) + body


def _data_pdu(
    frame: AirFrame, llid: int, payload: bytes, sequence: dict[tuple[int, str], int]
) -> bytes:
    # SN is the parity of what the sender sent before, NESN of what it has received.
    mine = (frame.access_address, frame.sender)
    sent = sequence.get(mine, 0)
    sequence[mine] = sent + 1
    received = sequence.get((frame.access_address, frame.receiver or ""), 0)
    header = llid | (received & 1) << 2 | (sent & 1) << 3
    return bytes([header, len(payload)]) + payload


def _address_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))[::-1]
