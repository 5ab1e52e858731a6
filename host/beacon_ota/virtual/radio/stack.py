"""The host stack of bumble, configured for beacons and centrals."""

import struct
from collections.abc import Awaitable, Callable
from typing import Any

from bumble.att import ATT_PDU
from bumble.core import InvalidPacketError
from bumble.device import Connection, Device, DeviceConfiguration
from bumble.pairing import PairingConfig, PairingDelegate

from beacon_ota.virtual.radio.attributes import GattServer
from beacon_ota.virtual.radio.transport import RadioHost


class HostStack(Device):
    """A host stack without services, which pairs without asking anybody ("Just Works").

    Attributes:
        on_missing_key: called with the connection whose peer encrypts with the key of an earlier
            pairing; keys are not kept.
    """

    def __init__(self, host: RadioHost) -> None:
        config = DeviceConfiguration(
            gap_service_enabled=False, gatt_service_enabled=False, keystore=None
        )
        super().__init__(name="radio", config=config, host=host)
        self.on_missing_key: Callable[[Connection], Awaitable[object]] | None = None
        self.pairing_config_factory = lambda connection: PairingConfig(
            mitm=False, delegate=PairingDelegate()
        )

    async def get_long_term_key(
        self, connection_handle: int, rand: bytes, ediv: int
    ) -> bytes | None:
        """Return the key of the pairing that is going on."""
        key = await super().get_long_term_key(connection_handle, rand, ediv)
        connection = self.connections.get(connection_handle)
        if key is None and connection is not None and self.on_missing_key is not None:
            await self.on_missing_key(connection)
        return key

    def on_gatt_pdu(self, connection_handle: Any, pdu: bytes) -> None:
        """Handle a PDU; a beacon's server handles those of its peers in turn."""
        server = self.gatt_server
        connection = self.connections.get(connection_handle)
        if connection is not None and isinstance(server, GattServer):
            server.on_pdu(connection, pdu)
            return
        try:
            ATT_PDU.from_bytes(pdu)
        except (struct.error, IndexError, ValueError, InvalidPacketError):
            return
        super().on_gatt_pdu(connection_handle, pdu)
