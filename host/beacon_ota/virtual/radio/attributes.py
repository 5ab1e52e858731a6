"""The GATT server of a beacon, with the semantics of MicroPython's `bluetooth` over NimBLE.

This is the view of beacon code: values in buffers that silently cut longer data, access checks by
the flags, and a handler that is called before a read and after a write while the peer waits.
:mod:`.packets` handles the packets of peers.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bumble import att, gatt
from bumble.core import UUID
from bumble.device import Connection, Device

from beacon_ota.virtual.radio.events import (
    GATTS_READ_REQUEST,
    GATTS_WRITE,
    GET_SECRET,
    IrqQueue,
)
from beacon_ota.virtual.radio.packets import PacketServer
from beacon_ota.virtual.radio.pairing import PEER_SECRET, secret_key

DEFAULT_BUFFER = 20
MAX_SERVICES = 8

MAX_BUFFER = 0xFFFF
NO_CONNECTION = 0xFFFF
CLIENT_FEATURES = 0x07  # robust caching, EATT, multiple notifications

FLAG_READ = 0x0002
FLAG_WRITE_NO_RESPONSE = 0x0004
FLAG_WRITE = 0x0008
FLAG_NOTIFY = 0x0010
FLAG_INDICATE = 0x0020
# Encrypted, authenticated; what has to be authorized is: the port never refuses it.
FLAGS_READ_SECURE = (0x0200, 0x0400)
FLAGS_WRITE_SECURE = (0x1000, 0x2000)
_PROPERTIES = 0x7F

CCCD = gatt.GATT_CLIENT_CHARACTERISTIC_CONFIGURATION_DESCRIPTOR
_ANY = att.Attribute.Permissions.READABLE | att.Attribute.Permissions.WRITEABLE  # checked here

# The definition of a service: UUIDs as little-endian bytes (2, 4 or 16), flags, descriptors.
DescriptorSpec = tuple[bytes, int]
CharacteristicSpec = tuple[bytes, int, list[DescriptorSpec]]
ServiceSpec = tuple[bytes, list[CharacteristicSpec]]


@dataclass
class AttributeValue:
    """The buffer of one attribute."""

    data: bytes = b""
    capacity: int = DEFAULT_BUFFER
    append: bool = False

    def write_by_peer(self, data: bytes) -> None:
        """Store data that a peer wrote; data beyond the capacity is cut off without an error."""
        start = self.data if self.append else b""
        self.data = (start + data)[: self.capacity]

    def read_by_beacon(self) -> bytes:
        """Return the data to beacon code, and empty a buffer that appends."""
        data = self.data
        if self.append:
            self.data = b""
        return data

    def write_by_beacon(self, data: bytes) -> None:
        """Store data of beacon code, which may enlarge the buffer."""
        self.capacity = max(self.capacity, len(data))
        self.data = data

    def reset_buffer(self, capacity: int, append: bool) -> None:
        """Replace the buffer by an empty one."""
        self.data, self.capacity, self.append = b"", capacity, append


class GattServer(PacketServer):
    """The GATT server of one beacon.

    Args:
        device: the host stack.
        events: the queue of calls to the IRQ handler of beacon code.
        name: returns the current device name.
    """

    def __init__(self, device: Device, events: IrqQueue, name: Callable[[], bytes]) -> None:
        super().__init__(device, events)
        self.values: dict[int, AttributeValue] = {}
        self._flags: dict[int, int] = {}
        self._client_features: dict[Any, int] = {}
        self._add_standard_services(name)

    # Building

    def register_service(self, service: ServiceSpec) -> list[int]:
        """Add a service; return the handles of its values and descriptors, in the order given.

        Raises:
            OSError: E2BIG after eight services.
        """
        if len(self.services) >= MAX_SERVICES + 2:
            raise OSError(errno.E2BIG)
        uuid, specs = service
        characteristics = []
        handles: list[tuple[att.Attribute, int]] = []
        for characteristic_uuid, flags, descriptors in specs:
            characteristic = self._make_characteristic(characteristic_uuid, flags)
            characteristics.append(characteristic)
            handles.append((characteristic, flags))
            for descriptor_uuid, descriptor_flags in descriptors:
                descriptor = gatt.Descriptor(UUID.from_bytes(descriptor_uuid), _ANY)
                descriptor.value = self._make_access(descriptor)
                characteristic.descriptors = [*characteristic.descriptors, descriptor]
                handles.append((descriptor, descriptor_flags & _PROPERTIES))
        self.add_service(gatt.Service(UUID.from_bytes(uuid), characteristics))
        for attribute, flags in handles:
            self._flags[attribute.handle] = flags
            self.values[attribute.handle] = AttributeValue()
        return [attribute.handle for attribute, _ in handles]

    def _make_characteristic(self, uuid: bytes, flags: int) -> gatt.Characteristic:
        properties = gatt.Characteristic.Properties(flags & _PROPERTIES)
        characteristic = gatt.Characteristic(UUID.from_bytes(uuid), properties, _ANY)
        characteristic.value = self._make_access(characteristic)
        if flags & (FLAG_NOTIFY | FLAG_INDICATE):
            # NimBLE puts it right behind the value, before the application's own descriptors.
            subscription = self.make_descriptor_value(characteristic)
            characteristic.descriptors = [gatt.Descriptor(CCCD, _ANY, subscription)]
        return characteristic

    def add_attribute(self, attribute: att.Attribute) -> None:
        """Add an attribute; peers may read declarations, and read and write subscriptions."""
        super().add_attribute(attribute)
        writable = FLAG_WRITE if attribute.type == CCCD else 0
        self._flags[attribute.handle] = FLAG_READ | writable

    def _add_standard_services(self, name: Callable[[], bytes]) -> None:
        """Add the GAP and GATT services as NimBLE lays them out, handles 1 to 13."""

        def fixed(uuid: UUID, flags: int, value: bytes) -> gatt.Characteristic:
            return gatt.Characteristic(uuid, gatt.Characteristic.Properties(flags), _ANY, value)

        def hidden(bearer: att.Bearer) -> bytes:
            raise att.ATT_Error(att.ATT_READ_NOT_PERMITTED_ERROR)

        device_name = fixed(gatt.GATT_DEVICE_NAME_CHARACTERISTIC, FLAG_READ, b"")
        device_name.value = att.AttributeValueV2(lambda bearer: name())
        appearance = fixed(gatt.GATT_APPEARANCE_CHARACTERISTIC, FLAG_READ, b"\0\0")
        changed = fixed(gatt.GATT_SERVICE_CHANGED_CHARACTERISTIC, FLAG_INDICATE, b"")
        changed.value = att.AttributeValueV2(hidden)
        server = fixed(gatt.GATT_SERVER_SUPPORTED_FEATURES_CHARACTERISTIC, FLAG_READ, b"\0")
        both = FLAG_READ | FLAG_WRITE
        client = fixed(gatt.GATT_CLIENT_SUPPORTED_FEATURES_CHARACTERISTIC, both, b"")
        client.value = att.AttributeValueV2(
            lambda bearer: bytes([self._client_features.get(bearer, 0)]),
            self._write_client_features,
        )
        self.add_services(
            [
                gatt.Service(gatt.GATT_GENERIC_ACCESS_SERVICE, [device_name, appearance]),
                gatt.Service(gatt.GATT_GENERIC_ATTRIBUTE_SERVICE, [changed, server, client]),
            ]
        )
        self._flags[client.handle] = both
        for characteristic in (device_name, appearance, changed, server, client):
            self.values[characteristic.handle] = AttributeValue()  # unused buffers, as in the port

    def on_disconnection(self, bearer: att.Bearer) -> None:
        """Forget a peer that has gone."""
        super().on_disconnection(bearer)
        self._client_features.pop(bearer, None)

    # Access by peers

    def _make_access(self, attribute: att.Attribute) -> att.AttributeValueV2:
        async def read(bearer: Any) -> bytes:
            await self._check_access(bearer, attribute.handle, FLAG_READ, FLAGS_READ_SECURE)
            answer = await self._irq_queue.call_in_turn(
                GATTS_READ_REQUEST, bearer.handle, attribute.handle
            )
            if isinstance(answer, int) and answer:
                raise att.ATT_Error(att.ErrorCode(answer & 0xFF), attribute.handle)
            return self.values[attribute.handle].data

        async def write(bearer: Any, data: bytes) -> None:
            self.values[attribute.handle].write_by_peer(data)
            await self._irq_queue.call_in_turn(GATTS_WRITE, bearer.handle, attribute.handle)

        return att.AttributeValueV2(read, write)

    async def _check_write(self, bearer: Connection, pdu: Any) -> None:
        """Check permissions of a write: bumble would let a peer write to declarations."""
        await self._check_access(
            bearer, pdu.attribute_handle, FLAG_WRITE | FLAG_WRITE_NO_RESPONSE, FLAGS_WRITE_SECURE
        )

    async def _check_access(
        self, bearer: Connection, handle: int, access: int, secure: tuple[int, int]
    ) -> None:
        """Raise the ATT error for an access that the flags forbid."""
        flags = self._flags.get(handle)
        if flags is None:
            return  # bumble answers for handles that do not exist
        if not flags & access:
            reading = access == FLAG_READ
            error = att.ATT_WRITE_NOT_PERMITTED_ERROR
            raise att.ATT_Error(att.ATT_READ_NOT_PERMITTED_ERROR if reading else error, handle)
        encrypted, authenticated = secure
        if flags & (encrypted | authenticated) and not bearer.is_encrypted:
            await self._irq_queue.call_in_turn(GET_SECRET, PEER_SECRET, 0, secret_key(bearer))
            raise att.ATT_Error(att.ATT_INSUFFICIENT_AUTHENTICATION_ERROR, handle)
        if flags & authenticated:  # no pairing here authenticates anybody
            raise att.ATT_Error(att.ATT_INSUFFICIENT_AUTHENTICATION_ERROR, handle)

    def write_cccd(
        self, bearer: att.Bearer, characteristic: gatt.Characteristic, value: bytes
    ) -> None:
        """Subscribe a peer, to what the characteristic has only."""
        if len(value) != 2:
            raise att.ATT_Error(att.ErrorCode.INVALID_ATTRIBUTE_LENGTH)
        properties = int(characteristic.properties)
        allowed = bool(properties & FLAG_NOTIFY) | bool(properties & FLAG_INDICATE) << 1
        if int.from_bytes(value, "little") & ~allowed:
            raise att.ATT_Error(att.ATT_REQUEST_NOT_SUPPORTED_ERROR)
        super().write_cccd(bearer, characteristic, value)

    def _write_client_features(self, bearer: Any, value: bytes) -> None:
        features = (value[0] if value else 0) & CLIENT_FEATURES
        held = self._client_features.get(bearer, 0)
        if held & ~features:
            raise att.ATT_Error(att.ErrorCode.VALUE_NOT_ALLOWED)
        self._client_features[bearer] = features

    # Access by beacon code

    def buffer_of(self, handle: int) -> AttributeValue:
        """Return the buffer of a handle.

        Raises:
            OSError: EINVAL for a handle without one.
        """
        try:
            return self.values[handle]
        except KeyError:
            raise OSError(errno.EINVAL) from None

    def write_value(self, handle: int, data: bytes, send_update: bool) -> None:
        """Set a value, and notify subscribers when ``send_update`` is true.

        Raises:
            OSError: EINVAL for a handle without a value.
        """
        self.buffer_of(handle).write_by_beacon(data)
        if send_update:
            self._irq_queue.spawn_task(self._notify_subscribers(handle))

    async def _notify_subscribers(self, handle: int) -> None:
        for bearer, subscriptions in tuple(self.subscribers.items()):
            assert isinstance(bearer, Connection)
            wanted = subscriptions.get(handle, b"\0\0")[0]
            if not wanted:
                continue
            await self._irq_queue.call_handler(GATTS_READ_REQUEST, NO_CONNECTION, handle)
            send = self.send_notification if wanted & 1 else self.send_indication
            try:
                send(bearer, handle, None)
            except OSError:
                pass  # NimBLE drops an update that it has no memory for

    def set_buffer(self, handle: int, capacity: int, append: bool) -> None:
        """Give a value a new, empty buffer.

        Raises:
            OSError: EINVAL for a handle without a value; ENOMEM for no possible size.
        """
        value = self.buffer_of(handle)
        if not 0 <= capacity <= MAX_BUFFER:
            raise OSError(errno.ENOMEM)
        value.reset_buffer(capacity, append)

    # Notifications and indications

    def send_notification(self, connection: Connection, handle: int, data: bytes | None) -> None:
        """Send a notification, subscribed or not; data beyond MTU - 3 bytes is cut off.

        ``None`` sends the value of the handle.

        Raises:
            OSError: EINVAL; ENOMEM while too many are queued.
        """
        self._send_value(att.ATT_Handle_Value_Notification, connection, handle, data)

    def send_indication(self, connection: Connection, handle: int, data: bytes | None) -> None:
        """Send an indication; an event reports its confirmation or its failure.

        Raises:
            OSError: EINVAL; ENOMEM while too many are queued or not confirmed.
        """
        self.indications.check_room()
        self._send_value(att.ATT_Handle_Value_Indication, connection, handle, data)
        self.indications.add(connection, handle)

    def _send_value(
        self, kind: Any, connection: Connection, handle: int, data: bytes | None
    ) -> None:
        if not 0 < handle <= 0xFFFF:
            raise OSError(errno.EINVAL)
        data = self.buffer_of(handle).data if data is None else data
        pdu = bytes(kind(attribute_handle=handle, attribute_value=data[: connection.att_mtu - 3]))
        queue = connection.data_packet_queue
        if queue is None or not self._outbox.take_blocks(queue, data, len(pdu)):
            raise OSError(errno.ENOMEM)
        connection.send_l2cap_pdu(att.ATT_CID, pdu)
