"""A simulated Bluetooth LE controller: HCI above, the radio medium below.

The controller of bumble answers the commands that only ask for information. Commands that use the
medium are implemented here, because the model of bumble is rough: it reports advertising data as
scan responses, has neither non-connectable advertising nor RSSI, and never loses a connection.

The features are those of an ESP32-C3 or a plain USB adapter: legacy advertising, 251-byte packets,
encryption (its procedure and its end: frames on the air stay readable).
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

from bumble import hci
from bumble.controller import Controller
from bumble.transport.common import TransportSink

from beacon_ota.virtual.radio.advertiser import TYPES, Advertiser
from beacon_ota.virtual.radio.interfaces import Broadcast, Position
from beacon_ota.virtual.radio.link import RadioLink
from beacon_ota.virtual.radio.medium import RadioMedium

ADV_UNIT_S = 0.000625
CREDITS = 12  # ACL packets a host may have under way
PACKET_LENGTH = 251

# The vendor command of Zephyr's and other controllers that gives a radio its public address.
WRITE_BD_ADDR = hci.hci_vendor_command_op_code(0x0006)

_SCAN_RSP = 4
_OK = hci.HCI_ErrorCode.SUCCESS

_Status = hci.HCI_StatusReturnParameters


class SimulatedController(Controller):
    """One radio of the space.

    Args:
        medium: shared by all radios of the space.
        address: the public address.
        position: in the space; the origin by default.
        sink: takes HCI packets for the host.
    """

    le_features = (
        hci.LeFeatureMask.LE_ENCRYPTION | hci.LeFeatureMask.LE_DATA_PACKET_LENGTH_EXTENSION
    )
    le_acl_data_packet_length = PACKET_LENGTH
    total_num_le_acl_data_packets = CREDITS
    supported_max_tx_octets = PACKET_LENGTH
    supported_max_rx_octets = PACKET_LENGTH
    suggested_max_tx_octets = PACKET_LENGTH
    suggested_max_tx_time = 2120

    def __init__(
        self,
        medium: RadioMedium,
        address: hci.Address,
        position: Position | None = None,
        sink: TransportSink | None = None,
    ) -> None:
        super().__init__(str(address), host_sink=sink, public_address=address)
        self.medium = self.link = medium
        self.position = position or Position()
        self.advertiser = Advertiser(self)
        self.scanning = False
        self.can_take_reports: Callable[[], bool] = lambda: True
        self.on_address_change: Callable[[hci.Address], None] = lambda address: None
        self.on_garbage: Callable[[Exception], None] = _raise
        self._active = False
        self._duty = 1.0
        self._unique = False
        self._reported: set[tuple[hci.Address, int]] = set()
        self._initiating: hci.HCI_LE_Create_Connection_Command | None = None
        self._links: dict[int, RadioLink] = {}
        self._partial: dict[int, tuple[bytearray, int]] = {}
        medium.add_controller(self)

    # Host side

    def on_packet(self, packet: bytes) -> None:
        if packet[0] == hci.HCI_ACL_DATA_PACKET:
            self._on_acl(packet)
            return
        try:
            command = hci.HCI_Packet.from_bytes(packet)
        except Exception as error:  # bumble's parsers raise all kinds of them
            self.on_garbage(error)
            return
        if isinstance(command, hci.HCI_Command):
            self.on_hci_command_packet(command)

    def on_hci_command_packet(self, command: hci.HCI_Command) -> None:
        if command.op_code == WRITE_BD_ADDR:
            self._complete_command(WRITE_BD_ADDR, bytes([self._write_address(command.parameters)]))
        else:
            super().on_hci_command_packet(command)

    def on_hci_command(self, command: hci.HCI_Command) -> Any:
        unknown = bytes([hci.HCI_ErrorCode.UNKNOWN_HCI_COMMAND_ERROR])
        self._complete_command(command.op_code, unknown)

    def send_hci_packet(self, packet: hci.HCI_Packet) -> None:
        self._send_to_host(bytes(packet))

    def _send_to_host(self, packet: bytes) -> None:
        if self.host:
            asyncio.get_running_loop().call_soon(self.host.on_packet, packet)

    def _complete_command(self, op_code: int, parameters: bytes) -> None:
        body = struct.pack("<BH", 1, op_code) + parameters
        self._send_to_host(bytes([hci.HCI_EVENT_PACKET, 0x0E, len(body)]) + body)

    def _write_address(self, parameters: bytes) -> int:
        if len(parameters) != 6 or self.advertiser.enabled or self._links:
            return hci.HCI_ErrorCode.COMMAND_DISALLOWED_ERROR
        self.public_address = hci.Address(parameters, hci.Address.PUBLIC_DEVICE_ADDRESS)
        self.on_address_change(self.public_address)
        return _OK

    def _own_address(self, address_type: int) -> hci.Address:
        return self.random_address if address_type & 1 else self.public_address

    def on_hci_reset_command(self, _command: hci.HCI_Reset_Command) -> _Status:
        self.advertiser.stop()
        self.advertiser.data = self.advertiser.response = b""
        self._stop_listening()
        for link in set(self._links.values()):
            link.silence_end(self)
        self._links.clear()
        self._partial.clear()
        return _Status(_OK)

    # Advertising (bumble's synchronous commands are not typed)

    def on_hci_le_set_advertising_parameters_command(self, command: Any) -> _Status:
        if self.advertiser.enabled:
            return _Status(hci.HCI_ErrorCode.COMMAND_DISALLOWED_ERROR)
        if command.advertising_type not in TYPES:
            return _Status(hci.HCI_ErrorCode.UNSUPPORTED_FEATURE_OR_PARAMETER_VALUE_ERROR)
        if not 0x20 <= command.advertising_interval_min <= 0x4000:
            return _Status(hci.HCI_ErrorCode.INVALID_COMMAND_PARAMETERS_ERROR)
        self.advertiser.adv_type = command.advertising_type
        self.advertiser.interval = command.advertising_interval_min * ADV_UNIT_S
        self.advertiser.address = self._own_address(command.own_address_type)
        return _Status(_OK)

    def on_hci_le_set_advertising_data_command(self, command: Any) -> _Status:
        self.advertiser.data = command.advertising_data
        return _Status(_OK)

    def on_hci_le_set_scan_response_data_command(self, command: Any) -> _Status:
        self.advertiser.response = command.scan_response_data
        return _Status(_OK)

    def on_hci_le_set_advertising_enable_command(self, command: Any) -> _Status:
        if command.advertising_enable:
            self.advertiser.start()
        else:
            self.advertiser.stop()
        return _Status(_OK)

    # Listening

    def on_hci_le_set_scan_parameters_command(self, command: Any) -> _Status:
        if self.scanning:
            return _Status(hci.HCI_ErrorCode.COMMAND_DISALLOWED_ERROR)
        if not 4 <= command.le_scan_window <= command.le_scan_interval <= 0x4000:
            return _Status(hci.HCI_ErrorCode.INVALID_COMMAND_PARAMETERS_ERROR)
        self._active = command.le_scan_type == 1
        self._duty = command.le_scan_window / command.le_scan_interval
        return _Status(_OK)

    def on_hci_le_set_scan_enable_command(self, command: Any) -> _Status:
        self.scanning = bool(command.le_scan_enable)
        self._unique = bool(command.filter_duplicates)
        self._reported.clear()
        self._update_listening()
        return _Status(_OK)

    def on_hci_le_create_connection_command(
        self, command: hci.HCI_LE_Create_Connection_Command
    ) -> None:
        if self._initiating is not None:
            disallowed = hci.HCI_ErrorCode.COMMAND_DISALLOWED_ERROR
            self._send_hci_command_status(disallowed, command.op_code)
            return
        self._send_hci_command_status(hci.HCI_COMMAND_STATUS_PENDING, command.op_code)
        self._initiating = command
        self._update_listening()

    def on_hci_le_create_connection_cancel_command(
        self, _command: hci.HCI_LE_Create_Connection_Cancel_Command
    ) -> _Status:
        command, self._initiating = self._initiating, None
        if command is None:
            return _Status(hci.HCI_ErrorCode.COMMAND_DISALLOWED_ERROR)
        self._update_listening()
        unknown = hci.HCI_ErrorCode.UNKNOWN_CONNECTION_IDENTIFIER_ERROR
        asyncio.get_running_loop().call_soon(
            self._connection_complete, unknown, 0, hci.Role.CENTRAL, command.peer_address, 0, 0, 0
        )
        return _Status(_OK)

    def _update_listening(self) -> None:
        self.medium.set_listening(self, self.scanning or self._initiating is not None)

    def _stop_listening(self) -> None:
        self.scanning = False
        self._initiating = None
        self._update_listening()

    def receive_advertisement(self, advertiser: Broadcast, rssi: int) -> None:
        """Report an advertisement, or connect to its advertiser when the host has asked for it."""
        command = self._initiating
        if command and advertiser.connectable and command.peer_address == advertiser.address:
            self._initiating = None
            self._update_listening()
            self.medium.open_link(
                self,
                self._own_address(command.own_address_type),
                advertiser,
                command.connection_interval_min,
                command.max_latency,
                command.supervision_timeout,
            )
        elif self.scanning and (self._duty >= 1 or self.medium.random.random() < self._duty):
            self._send_report(advertiser.adv_type, advertiser, advertiser.data, rssi)
            if self._active and advertiser.scannable:
                self._request_scan_response(advertiser, rssi)

    def _request_scan_response(self, advertiser: Broadcast, rssi: int) -> None:
        """Send a scan request, and report the scan response."""
        me = self.public_address
        self.medium.log_frame("SCAN_REQ", self, me, advertiser.address, payload=b"")
        if self.medium.draw_loss(self, advertiser.controller):
            return
        self.medium.log_frame(
            "SCAN_RSP", advertiser.controller, advertiser.address, payload=advertiser.response
        )
        if not self.medium.draw_loss(advertiser.controller, self):
            self._send_report(_SCAN_RSP, advertiser, advertiser.response, rssi)

    def _send_report(self, kind: int, advertiser: Broadcast, data: bytes, rssi: int) -> None:
        if self._unique:
            if (advertiser.address, kind) in self._reported:
                return
            self._reported.add((advertiser.address, kind))
        if not self.can_take_reports():  # a host that reads too slowly misses some, as on hardware
            return
        address = advertiser.address
        body = struct.pack("<BBBB", 0x02, 1, kind, not address.is_public)
        body += bytes(address) + bytes([len(data)]) + data + struct.pack("b", rssi)
        self._send_to_host(bytes([hci.HCI_EVENT_PACKET, hci.HCI_LE_META_EVENT, len(body)]) + body)

    # Connections

    def free_handle(self) -> int:
        """Return the lowest free handle; the first connection has 0, as on the ESP32."""
        return next(handle for handle in range(0xF00) if handle not in self._links)

    def on_link(self, link: RadioLink) -> None:
        """Tell the host of a new connection."""
        end, peer = link.ends[self], link.peer_of(self)
        self._links[end.handle] = link
        self._connection_complete(
            _OK, end.handle, end.role, peer.address, link.interval, link.latency, link.timeout
        )

    def _connection_complete(
        self,
        status: int,
        handle: int,
        role: int,
        peer: hci.Address,
        interval: int,
        latency: int,
        timeout: int,
    ) -> None:
        body = struct.pack("<BBHBB", 0x01, status, handle, role, not peer.is_public)
        body += bytes(peer) + struct.pack("<HHHB", interval, latency, timeout, 0)
        self._send_to_host(bytes([hci.HCI_EVENT_PACKET, hci.HCI_LE_META_EVENT, len(body)]) + body)

    def on_unlinked(self, handle: int, reason: int) -> None:
        """Tell the host that a connection has ended."""
        self._links.pop(handle, None)
        self._partial.pop(handle, None)
        body = struct.pack("<BHB", _OK, handle, reason)
        self._send_to_host(bytes([hci.HCI_EVENT_PACKET, 0x05, len(body)]) + body)

    def on_parameters(self, handle: int, link: RadioLink) -> None:
        """Tell the host of new connection parameters."""
        body = struct.pack("<BBHHHH", 0x03, _OK, handle, link.interval, link.latency, link.timeout)
        self._send_to_host(bytes([hci.HCI_EVENT_PACKET, hci.HCI_LE_META_EVENT, len(body)]) + body)

    def _on_acl(self, packet: bytes) -> None:
        """Collect the fragments of an L2CAP PDU and send it when it is whole."""
        if len(packet) < 5:
            return
        header, length = struct.unpack_from("<HH", packet, 1)
        handle, first = header & 0xFFF, header >> 12 & 3 != 1
        link = self._links.get(handle)
        if link is None or length != len(packet) - 5:
            return
        if first:
            self._partial[handle] = (bytearray(), 0)
        elif handle not in self._partial:
            return
        pdu, packets = self._partial[handle]
        pdu += packet[5:]
        self._partial[handle] = (pdu, packets + 1)
        if len(pdu) < 4:
            return
        whole = 4 + int.from_bytes(pdu[:2], "little")
        if len(pdu) >= whole:
            del self._partial[handle]
            link.send_pdu(self, bytes(pdu[:whole]), packets + 1)

    def on_sent(self, handle: int, credits: int) -> None:
        """Return credits to the host: so many of its packets have arrived."""
        self._send_to_host(
            struct.pack("<BBBBHH", hci.HCI_EVENT_PACKET, 0x13, 5, 1, handle, credits)
        )

    def on_received(self, handle: int, pdu: bytes) -> None:
        """Hand an L2CAP PDU to the host, in packets as long as those of the link layer."""
        for start in range(0, len(pdu), PACKET_LENGTH):
            piece = pdu[start : start + PACKET_LENGTH]
            flags = 1 if start else 2  # a continuation, or the first packet
            head = struct.pack("<BHH", hci.HCI_ACL_DATA_PACKET, handle | flags << 12, len(piece))
            self._send_to_host(head + piece)

    def on_hci_disconnect_command(self, command: hci.HCI_Disconnect_Command) -> None:
        link = self._links.get(command.connection_handle)
        if link is None:
            unknown = hci.HCI_ErrorCode.UNKNOWN_CONNECTION_IDENTIFIER_ERROR
            self._send_hci_command_status(unknown, command.op_code)
            return
        self._send_hci_command_status(hci.HCI_COMMAND_STATUS_PENDING, command.op_code)
        link.terminate(self, command.reason)

    def on_hci_le_connection_update_command(
        self, command: hci.HCI_LE_Connection_Update_Command
    ) -> None:
        link = self._links.get(command.connection_handle)
        if link is None:
            unknown = hci.HCI_ErrorCode.UNKNOWN_CONNECTION_IDENTIFIER_ERROR
            self._send_hci_command_status(unknown, command.op_code)
            return
        self._send_hci_command_status(hci.HCI_COMMAND_STATUS_PENDING, command.op_code)
        link.update_parameters(
            command.connection_interval_max, command.max_latency, command.supervision_timeout
        )

    def on_hci_le_read_remote_features_command(
        self, command: hci.HCI_LE_Read_Remote_Features_Command
    ) -> None:
        """Tell what the peer can do, which is what every radio here can do; Linux insists."""
        if command.connection_handle not in self._links:
            unknown = hci.HCI_ErrorCode.UNKNOWN_CONNECTION_IDENTIFIER_ERROR
            self._send_hci_command_status(unknown, command.op_code)
            return
        self._send_hci_command_status(hci.HCI_COMMAND_STATUS_PENDING, command.op_code)
        body = struct.pack("<BBHQ", 0x04, _OK, command.connection_handle, int(self.le_features))
        self._send_to_host(bytes([hci.HCI_EVENT_PACKET, hci.HCI_LE_META_EVENT, len(body)]) + body)

    def on_hci_read_rssi_command(self, command: Any) -> hci.HCI_Read_RSSI_ReturnParameters:
        link = self._links.get(command.handle)
        unknown = hci.HCI_ErrorCode.UNKNOWN_CONNECTION_IDENTIFIER_ERROR
        return hci.HCI_Read_RSSI_ReturnParameters(
            status=_OK if link else unknown,
            handle=command.handle,
            rssi=self.medium.rssi(link.peer_of(self).controller, self) if link else 127,
        )

    def on_hci_le_enable_encryption_command(
        self, command: hci.HCI_LE_Enable_Encryption_Command
    ) -> None:
        link = self._links.get(command.connection_handle)
        if link is None:
            unknown = hci.HCI_ErrorCode.UNKNOWN_CONNECTION_IDENTIFIER_ERROR
            self._send_hci_command_status(unknown, command.op_code)
            return
        self._send_hci_command_status(hci.HCI_COMMAND_STATUS_PENDING, command.op_code)
        link.request_key(
            self, command.random_number, command.encrypted_diversifier, command.long_term_key
        )

    def on_key_request(self, handle: int, random: bytes, diversifier: int) -> None:
        """Ask the host for the key of a link that its peer encrypts."""
        body = struct.pack("<BH8sH", 0x05, handle, random, diversifier)
        self._send_to_host(bytes([hci.HCI_EVENT_PACKET, hci.HCI_LE_META_EVENT, len(body)]) + body)

    def on_hci_le_long_term_key_request_reply_command(self, command: Any) -> Any:
        return self._answer_key_request(command.connection_handle, command.long_term_key)

    def on_hci_le_long_term_key_request_negative_reply_command(self, command: Any) -> Any:
        return self._answer_key_request(command.connection_handle, None)

    def _answer_key_request(self, handle: int, key: bytes | None) -> Any:
        link = self._links.get(handle)
        if link is not None:
            asyncio.get_running_loop().call_soon(link.answer_key, key)
        unknown = hci.HCI_ErrorCode.UNKNOWN_CONNECTION_IDENTIFIER_ERROR
        return hci.HCI_StatusAndConnectionHandleReturnParameters(
            status=_OK if link else unknown, connection_handle=handle
        )

    def on_encryption(self, handle: int, status: int) -> None:
        """Tell the host that a link is encrypted now, or why not."""
        body = struct.pack("<BHB", status, handle, status == _OK)
        self._send_to_host(bytes([hci.HCI_EVENT_PACKET, 0x08, len(body)]) + body)


def _raise(error: Exception) -> None:
    raise error
