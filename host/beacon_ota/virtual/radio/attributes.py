"""The attribute database of a beacon, with the semantics of MicroPython's `bluetooth` over NimBLE.

bumble's GATT server does the protocol. Here is what the beacon's code sees of it: values in
buffers that silently cut what is too long, access checked against the flags, and its handler asked
before a read and told of a write while the other side waits.
"""

import asyncio
import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bumble import att, gatt
from bumble.core import UUID
from bumble.device import Connection, Device
from bumble.gatt_server import Server

from beacon_ota.virtual.radio.controller import CREDITS
from beacon_ota.virtual.radio.events import (
    GATTS_INDICATE_DONE,
    GATTS_READ_REQUEST,
    GATTS_WRITE,
    IrqQueue,
)

DEFAULT_BUFFER = 20
MAX_SERVICES = 8

MAX_BUFFER = 0xFFFF
MBUFS = 36  # blocks of NimBLE's pools: 12 of 256 bytes and 24 of 320
MBUF_PAYLOAD = 292  # of a 320-byte block
NO_CONNECTION = 0xFFFF
STATUS_NOT_CONNECTED = 7  # BLE_HS_ENOTCONN
STATUS_TIMEOUT = 13  # BLE_HS_ETIMEOUT

FLAG_READ = 0x0002
FLAG_WRITE_NO_RESPONSE = 0x0004
FLAG_WRITE = 0x0008
FLAG_NOTIFY = 0x0010
FLAG_INDICATE = 0x0020
FLAGS_READ_SECURE = 0x0E00  # encrypted, authenticated, authorized
FLAGS_WRITE_SECURE = 0x7000
_PROPERTIES = 0x7F

CCCD = gatt.GATT_CLIENT_CHARACTERISTIC_CONFIGURATION_DESCRIPTOR
_ANY = att.Attribute.Permissions.READABLE | att.Attribute.Permissions.WRITEABLE  # checked here

_WRITES = (att.ATT_Write_Request, att.ATT_Write_Command, att.ATT_Prepare_Write_Request)

# What a service is registered from: UUIDs as little-endian bytes (2, 4 or 16), flags, descriptors.
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
        """A peer's write: what does not fit is cut off, and nobody learns of it."""
        start = self.data if self.append else b""
        self.data = (start + data)[: self.capacity]

    def read_by_beacon(self) -> bytes:
        """The beacon's own read, which empties a buffer that appends."""
        data = self.data
        if self.append:
            self.data = b""
        return data

    def write_by_beacon(self, data: bytes) -> None:
        """The beacon's own write, which makes room when it needs to."""
        self.capacity = max(self.capacity, len(data))
        self.data = data

    def reset_buffer(self, capacity: int, append: bool) -> None:
        """A new, empty buffer."""
        self.data, self.capacity, self.append = b"", capacity, append


class GattServer(Server):
    """The GATT server of one beacon.

    Args:
        device: the host stack it answers for.
        events: tells the beacon's code.
        name: returns the device name of the moment.
    """

    def __init__(self, device: Device, events: IrqQueue, name: Callable[[], bytes]) -> None:
        super().__init__(device)
        self.values: dict[int, AttributeValue] = {}
        self._flags: dict[int, int] = {}
        self._irq_queue = events
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
        """bumble's, and what peers may do: read declarations, read and write subscriptions."""
        super().add_attribute(attribute)
        writable = FLAG_WRITE if attribute.type == CCCD else 0
        self._flags[attribute.handle] = FLAG_READ | writable

    def _add_standard_services(self, name: Callable[[], bytes]) -> None:
        """The GAP and GATT services as NimBLE lays them out, handles 1 to 13."""

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
        client = fixed(gatt.GATT_CLIENT_SUPPORTED_FEATURES_CHARACTERISTIC, FLAG_READ, b"\0")
        self.add_services(
            [
                gatt.Service(gatt.GATT_GENERIC_ACCESS_SERVICE, [device_name, appearance]),
                gatt.Service(gatt.GATT_GENERIC_ATTRIBUTE_SERVICE, [changed, server, client]),
            ]
        )
        for characteristic in (device_name, appearance, changed, server, client):
            self.values[characteristic.handle] = (
                AttributeValue()
            )  # buffers nobody reads, as in the port

    # Access by peers

    def _make_access(self, attribute: att.Attribute) -> att.AttributeValueV2:
        async def read(bearer: Any) -> bytes:
            if error := self._access_error(attribute.handle, FLAG_READ, FLAGS_READ_SECURE):
                raise att.ATT_Error(att.ErrorCode(error), attribute.handle)
            answer = await self._irq_queue.call_handler(
                GATTS_READ_REQUEST, bearer.handle, attribute.handle
            )
            if isinstance(answer, int) and answer:
                raise att.ATT_Error(att.ErrorCode(answer & 0xFF), attribute.handle)
            return self.values[attribute.handle].data

        async def write(bearer: Any, data: bytes) -> None:
            value = self.values[attribute.handle]
            await self._irq_queue.call_handler(
                GATTS_WRITE,
                bearer.handle,
                attribute.handle,
                before=lambda: value.write_by_peer(data),
            )

        return att.AttributeValueV2(read, write)

    def _access_error(self, handle: int, wanted: int, secure: int) -> int:
        """The ATT error for an access that the flags do not allow, or 0."""
        flags = self._flags.get(handle)
        if flags is None:
            return 0  # bumble answers for handles that do not exist
        if not flags & wanted:
            reading = wanted == FLAG_READ
            return (
                att.ATT_READ_NOT_PERMITTED_ERROR if reading else att.ATT_WRITE_NOT_PERMITTED_ERROR
            )
        if flags & secure:  # no link in the room is ever encrypted
            return att.ATT_INSUFFICIENT_AUTHENTICATION_ERROR
        return 0

    def on_gatt_pdu(self, bearer: Any, att_pdu: att.ATT_PDU) -> None:
        """bumble checks no permissions, and would let a peer write to declarations."""
        if isinstance(att_pdu, _WRITES):
            handle = att_pdu.attribute_handle
            error = self._access_error(
                handle, FLAG_WRITE | FLAG_WRITE_NO_RESPONSE, FLAGS_WRITE_SECURE
            )
            if error:
                if att_pdu.op_code in att.ATT_REQUESTS:  # a command has no answer
                    self.send_error(bearer, att_pdu.op_code, handle, error)
                return
        super().on_gatt_pdu(bearer, att_pdu)

    def send_error(self, bearer: Any, op_code: int, handle: int, error: int) -> None:
        """Send an error response."""
        response = att.ATT_Error_Response(
            request_opcode_in_error=op_code, attribute_handle_in_error=handle, error_code=error
        )
        self.send_response(bearer, response)

    # The beacon's own access

    def buffer_of(self, handle: int) -> AttributeValue:
        """The buffer of a handle.

        Raises:
            OSError: EINVAL for a handle without one.
        """
        try:
            return self.values[handle]
        except KeyError:
            raise OSError(errno.EINVAL) from None

    def write_value(self, handle: int, data: bytes, send_update: bool) -> None:
        """Set a value, and tell subscribers if asked to.

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

    # What the beacon sends by itself

    def send_notification(self, connection: Connection, handle: int, data: bytes | None) -> None:
        """Send a notification, subscribed or not; what exceeds MTU - 3 is cut off.

        ``None`` sends the value of the handle.

        Raises:
            OSError: EINVAL; ENOMEM while too many wait to be sent.
        """
        data = self._payload_for(handle, data)
        queue = connection.data_packet_queue
        assert queue is not None
        # What the controller holds has left NimBLE's pools.
        blocks = max(0, queue.pending - CREDITS) + 1 + len(data) // MBUF_PAYLOAD
        if blocks > MBUFS:
            raise OSError(errno.ENOMEM)
        pdu = att.ATT_Handle_Value_Notification(
            attribute_handle=handle, attribute_value=data[: connection.att_mtu - 3]
        )
        connection.send_l2cap_pdu(att.ATT_CID, bytes(pdu))

    def send_indication(self, connection: Connection, handle: int, data: bytes | None) -> None:
        """Send an indication; an event tells when it was confirmed, or could not be.

        Raises:
            OSError: EINVAL.
        """
        data = self._payload_for(handle, data)
        attribute = self.get_attribute(handle)
        if attribute is None:
            raise OSError(errno.EINVAL)
        self._irq_queue.spawn_task(self._await_confirmation(connection, attribute, data))

    async def _await_confirmation(
        self, connection: Connection, attribute: Any, data: bytes
    ) -> None:
        gone = asyncio.Event()
        connection.once(Connection.EVENT_DISCONNECTION, lambda reason: gone.set())
        sending = self._irq_queue.spawn_task(
            self.indicate_subscriber(connection, attribute, data, True)
        )
        ending = self._irq_queue.spawn_task(_wait_for(gone))
        await asyncio.wait((sending, ending), return_when=asyncio.FIRST_COMPLETED)
        status = 0
        if gone.is_set():
            status = STATUS_NOT_CONNECTED
        elif sending.exception() is not None:
            status = STATUS_TIMEOUT
        sending.cancel()
        ending.cancel()
        await self._irq_queue.call_handler(
            GATTS_INDICATE_DONE, connection.handle, attribute.handle, status
        )

    def _payload_for(self, handle: int, data: bytes | None) -> bytes:
        if not 0 < handle <= 0xFFFF:
            raise OSError(errno.EINVAL)
        return self.buffer_of(handle).data if data is None else data


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()
