"""bumble's host stack, set up as a beacon's or a central's."""

import struct
from typing import Any

from bumble.att import ATT_INVALID_PDU_ERROR, ATT_PDU, ATT_REQUESTS
from bumble.core import InvalidPacketError
from bumble.device import Device, DeviceConfiguration
from bumble.pairing import PairingConfig, PairingDelegate

from beacon_ota.virtual.radio.attributes import GattServer
from beacon_ota.virtual.radio.transport import RadioHost


class HostStack(Device):
    """A host stack without services of its own; it never pairs."""

    def __init__(self, host: RadioHost) -> None:
        config = DeviceConfiguration(
            gap_service_enabled=False, gatt_service_enabled=False, keystore=None
        )
        super().__init__(name="radio", config=config, host=host)
        self.pairing_config_factory = lambda connection: PairingConfig(delegate=_NoPairing())

    def on_gatt_pdu(self, connection_handle: Any, pdu: bytes) -> None:
        """bumble's, but a request that cannot be parsed is answered, as by NimBLE."""
        try:
            ATT_PDU.from_bytes(pdu)
        except (struct.error, IndexError, ValueError, InvalidPacketError):
            connection = self.connections.get(connection_handle)
            if connection is not None and pdu and pdu[0] in ATT_REQUESTS:
                attributes = self.gatt_server
                assert isinstance(attributes, GattServer)
                attributes.send_error(connection, pdu[0], 0, ATT_INVALID_PDU_ERROR)
            return
        super().on_gatt_pdu(connection_handle, pdu)


class _NoPairing(PairingDelegate):
    """No link in the room is encrypted, so pairing would promise what it cannot keep."""

    async def accept(self) -> bool:
        return False
