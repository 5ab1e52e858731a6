"""Pairing with a beacon: "Just Works" always succeeds, and is not kept."""

from typing import Any

from bumble.device import Connection, Device
from bumble.pairing import PairingConfig, PairingDelegate

from beacon_ota.virtual.radio.events import ENCRYPTION_UPDATE, GET_SECRET, SET_SECRET, IrqQueue

OUR_SECRET, PEER_SECRET = 1, 2  # types of keys
SECRET_SIZE = 80  # bytes that NimBLE keeps of one, which beacon code does not look into
NO_INPUT_OUTPUT = 3  # of setting `io`: what the port begins with


def secret_key(connection: Connection) -> bytes:
    """Return the key under which NimBLE looks for the keys of a peer: kind, address."""
    address = connection.peer_address
    return bytes([not address.is_public]) + bytes(address)


class Pairing:
    """The settings of a beacon for pairing, and the events that tell of it.

    Args:
        events: the queue of calls to the handler.

    Attributes:
        settings: by the names that beacon code configures.
    """

    def __init__(self, events: IrqQueue) -> None:
        self._irq_queue = events
        self.settings: dict[str, Any] = {
            "bond": False,
            "mitm": False,
            "io": NO_INPUT_OUTPUT,
            "le_secure": True,
        }

    def attach(self, device: Device) -> None:
        """Answer the peers of a host stack."""
        device.keystore = None  # keys are beacon code's to keep, by its handler
        device.pairing_config_factory = self._make_config
        device.on_missing_key = self._ask_for_key  # type: ignore[attr-defined]

    def watch(self, connection: Connection) -> None:
        """Tell beacon code of the encryption of a connection, and offer it the keys."""
        connection.on(
            Connection.EVENT_CONNECTION_ENCRYPTION_CHANGE, lambda: self._tell_encryption(connection)
        )
        connection.on(Connection.EVENT_PAIRING, lambda keys: self._offer_keys(connection))

    def _make_config(self, connection: Connection) -> PairingConfig:
        return PairingConfig(
            sc=bool(self.settings["le_secure"]),
            mitm=bool(self.settings["mitm"]),
            bonding=bool(self.settings["bond"]),
            delegate=PairingDelegate(),
        )

    def _tell_encryption(self, connection: Connection) -> None:
        encrypted = connection.is_encrypted
        self._irq_queue.post_event(
            ENCRYPTION_UPDATE,
            connection.handle,
            int(encrypted),
            0,  # "Just Works" authenticates nobody
            int(encrypted and bool(self.settings["bond"])),
            connection.encryption_key_size or 16,
        )

    def _offer_keys(self, connection: Connection) -> None:
        if self.settings["bond"]:
            key = secret_key(connection)
            for kind in (OUR_SECRET, PEER_SECRET):
                self._irq_queue.post_event(SET_SECRET, kind, key, key.ljust(SECRET_SIZE, b"\0"))

    async def _ask_for_key(self, connection: Connection) -> None:
        await self._irq_queue.call_handler(GET_SECRET, OUR_SECRET, 0, secret_key(connection))
