"""HCI between a host stack and its simulated controller: direct, or over a local socket.

A host in the process of the space calls its controller directly; a host in another process connects
to the socket of the space and speaks H4, the framing of HCI over a serial line. Each connection to
the socket is one radio, which is removed when the connection ends.
"""

import asyncio
import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bumble import hci
from bumble.core import InvalidPacketError
from bumble.host import Host
from bumble.transport.common import AsyncPipeSink, PacketParser, TransportLostError

from beacon_ota.errors import ReachError
from beacon_ota.virtual.radio.controller import WRITE_BD_ADDR, SimulatedController

# bumble warns of ordinary events, such as a notification without a subscriber.
logging.getLogger("bumble").setLevel(logging.ERROR)


def is_other_failure(record: logging.LogRecord) -> bool:
    """Tell whether a record of bumble's log is not about a radio space that has gone.

    A space goes when the program that has it ends, and commands that wait then fail with an
    exception; whoever waits for one gets that anyway, and a traceback would only look like a fault.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], TransportLostError))


logging.getLogger("bumble.host").addFilter(is_other_failure)

REPORT_BACKLOG = 64 * 1024  # bytes a slow host may leave unread before it misses advertisements
BACKLOG = 1024 * 1024  # unread bytes after which the host is disconnected
CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class AdvertisingReport:
    """One advertising report of a controller.

    Args:
        kind: 0 ADV_IND, 2 ADV_SCAN_IND, 3 ADV_NONCONN_IND, 4 SCAN_RSP.
        address: of the advertiser.
        data: AD structures, at most 31 bytes.
        rssi: dBm.
    """

    kind: int
    address: hci.Address
    data: bytes
    rssi: int


class RadioHost(Host):
    """The host of bumble without its log lines per packet, which cost more than the packets."""

    def __init__(self, source: Any = None, sink: Any = None) -> None:
        self.on_report: Callable[[AdvertisingReport], None] | None = None
        self.lost = asyncio.Event()
        super().__init__(source, sink)

    def send_hci_packet(self, packet: hci.HCI_Packet) -> None:
        if self.hci_sink is not None:
            self.hci_sink.on_packet(bytes(packet))

    async def _send_command(self, *args: Any, **kwargs: Any) -> Any:
        if self.lost.is_set():
            raise TransportLostError("the radio space is gone")
        return await super()._send_command(*args, **kwargs)

    def on_packet(self, packet: bytes) -> None:
        if packet[:2] == b"\x04\x3e" and packet[3] == 0x02:
            if self.on_report is not None:
                self.on_report(_parse_report(packet))
            return
        super().on_packet(packet)

    def on_hci_packet(self, packet: hci.HCI_Packet) -> None:
        if isinstance(packet, hci.HCI_Event):
            self.on_hci_event_packet(packet)
        elif isinstance(packet, hci.HCI_AclDataPacket):
            self.on_hci_acl_data_packet(packet)

    def on_command_processed(self, event: Any) -> None:
        """Take the answer of a command, unless whoever sent that was cancelled meanwhile."""
        if self.pending_response is None or not self.pending_response.done():
            super().on_command_processed(event)

    def on_transport_lost(self) -> None:
        """Fail the pending command: the connection to the space has ended."""
        self.lost.set()
        if self.pending_response is not None and not self.pending_response.done():
            self.pending_response.set_exception(TransportLostError("the radio space is gone"))
        self.emit("flush")


def _parse_report(packet: bytes) -> AdvertisingReport:
    # 04 3e len 02 count kind address_type address[6] length data rssi; one report per event
    length = packet[13]
    return AdvertisingReport(
        kind=packet[5],
        address=hci.Address(packet[7:13], hci.AddressType(packet[6])),
        data=packet[14 : 14 + length],
        rssi=int.from_bytes(packet[14 + length : 15 + length], "little", signed=True),
    )


def attach_host(controller: SimulatedController) -> RadioHost:
    """Return a host for a controller of the same event loop."""
    host = RadioHost(controller, AsyncPipeSink(controller))
    controller.host = host
    return host


class RemoteRadio:
    """A radio in the space of another process, for a :class:`~.peripheral.Peripheral`.

    Args:
        path: of the socket of the space.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._client: HciClient | None = None

    async def open(self, address: bytes) -> RadioHost:
        """Connect, with a public address (six bytes, most significant first)."""
        self._client = await HciClient.open(self._path, address)
        return self._client.host

    def close(self) -> None:
        """Disconnect."""
        line, self._client = self._client, None
        if line is not None:
            line.close()


class HciServer(asyncio.Protocol):
    """The controller side of one connection to the socket of a space.

    Args:
        enter: makes the controller of a newly connected host.
        leave: removes the controller from the space.
    """

    def __init__(
        self,
        enter: Callable[["HciServer"], SimulatedController],
        leave: Callable[[SimulatedController], None],
    ) -> None:
        self._add_radio = enter
        self._remove_radio = leave
        self._controller: SimulatedController | None = None
        self._transport: asyncio.Transport | None = None
        self._parser = PacketParser()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        try:
            self._controller = self._add_radio(self)
        except ReachError:
            transport.abort()
            return
        self._controller.can_take_reports = self._can_take_reports
        self._controller.on_garbage = lambda error: self.close()
        self._parser.set_packet_sink(self._controller)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._controller is not None:
            self._remove_radio(self._controller)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except InvalidPacketError:  # not H4, or out of step: the following bytes cannot be parsed
            assert self._transport is not None
            self._transport.abort()

    def on_packet(self, packet: bytes) -> None:
        """Send an HCI packet of the controller to the host."""
        assert self._transport is not None
        if self._transport.get_write_buffer_size() > BACKLOG:
            self._transport.abort()
        elif not self._transport.is_closing():
            self._transport.write(packet)

    def close(self) -> None:
        """Disconnect the host."""
        if self._transport is not None:
            self._transport.abort()

    def _can_take_reports(self) -> bool:
        assert self._transport is not None
        return self._transport.get_write_buffer_size() < REPORT_BACKLOG


class HciClient(asyncio.Protocol):
    """The host side of a connection to the socket of a space."""

    def __init__(self) -> None:
        self.host = RadioHost(sink=self)
        self._parser = PacketParser(self.host)
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, path: str, address: bytes | None = None) -> "HciClient":
        """Connect to the space that listens at ``path``.

        Args:
            address: public address, six bytes, most significant first; assigned by default.

        Raises:
            ReachError: ``radio_room`` when no space listens there.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, line = await loop.create_unix_connection(cls, path)
        except (OSError, TimeoutError) as error:
            raise ReachError(
                "radio_room",
                f"No virtual radio answers at {path}; is the virtual fleet running?",
                found=str(error),
            ) from error
        if address is not None:
            line.on_packet(struct.pack("<BHB", hci.HCI_COMMAND_PACKET, WRITE_BD_ADDR, 6))
            line.on_packet(address[::-1])
        return line

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.host.on_transport_lost()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except InvalidPacketError:
            self.close()

    def on_packet(self, packet: bytes) -> None:
        """Send an HCI packet of the host to the controller."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(packet)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
