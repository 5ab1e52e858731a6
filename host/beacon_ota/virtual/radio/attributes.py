"""The attribute database of a beacon, with the semantics of MicroPython's `bluetooth` over NimBLE.

bumble's GATT server does the protocol. Here is what the beacon's code sees of it: values in
buffers that silently cut what is too long, access checked against the flags, and its handler asked
before a read and told of a write while the other side waits.
"""

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from bumble import att, gatt
from bumble.core import UUID
from bumble.device import Device
from bumble.gatt_server import Server

DEFAULT_BUFFER = 20
MAX_SERVICES = 8

IRQ_GATTS_WRITE = 3
IRQ_GATTS_READ_REQUEST = 4

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


class Irq(Protocol):
    """Calls the beacon's handler, one event at a time, and waits until it has returned.

    Args:
        event: number of the event.
        data: its tuple.
        before: done when the event's turn has come, before the handler sees it.

    Returns what the handler returned; ``None`` when there is none or it failed.
    """

    def __call__(
        self, event: int, *data: Any, before: Callable[[], None] | None = None
    ) -> Awaitable[object]: ...


@dataclass
class Value:
    """The buffer of one attribute."""

    data: bytes = b""
    room: int = DEFAULT_BUFFER
    append: bool = False

    def receive(self, data: bytes) -> None:
        """A peer's write: what does not fit is cut off, and nobody learns of it."""
        start = self.data if self.append else b""
        self.data = (start + data)[: self.room]

    def read(self) -> bytes:
        """The beacon's own read, which empties a buffer that appends."""
        data = self.data
        if self.append:
            self.data = b""
        return data

    def write(self, data: bytes) -> None:
        """The beacon's own write, which makes room when it needs to."""
        self.room = max(self.room, len(data))
        self.data = data

    def resize(self, room: int, append: bool) -> None:
        """A new, empty buffer."""
        self.data, self.room, self.append = b"", room, append


class Attributes(Server):
    """The GATT server of one beacon.

    Args:
        device: the host stack it answers for.
        irq: tells the beacon's code.
        name: returns the device name of the moment.
    """

    def __init__(self, device: Device, irq: Irq, name: Callable[[], bytes]) -> None:
        super().__init__(device)
        self.values: dict[int, Value] = {}
        self._flags: dict[int, int] = {}
        self._irq = irq
        self._add_standard_services(name)

    # Building

    def register(self, service: ServiceSpec) -> list[int]:
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
            characteristic = self._characteristic(characteristic_uuid, flags)
            characteristics.append(characteristic)
            handles.append((characteristic, flags))
            for descriptor_uuid, descriptor_flags in descriptors:
                descriptor = gatt.Descriptor(UUID.from_bytes(descriptor_uuid), _ANY)
                descriptor.value = self._access(descriptor)
                characteristic.descriptors = [*characteristic.descriptors, descriptor]
                handles.append((descriptor, descriptor_flags & _PROPERTIES))
        self.add_service(gatt.Service(UUID.from_bytes(uuid), characteristics))
        for attribute, flags in handles:
            self._flags[attribute.handle] = flags
            self.values[attribute.handle] = Value()
        return [attribute.handle for attribute, _ in handles]

    def _characteristic(self, uuid: bytes, flags: int) -> gatt.Characteristic:
        properties = gatt.Characteristic.Properties(flags & _PROPERTIES)
        characteristic = gatt.Characteristic(UUID.from_bytes(uuid), properties, _ANY)
        characteristic.value = self._access(characteristic)
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
            self.values[characteristic.handle] = Value()  # buffers nobody reads, as in the port

    # Access by peers

    def _access(self, attribute: att.Attribute) -> att.AttributeValueV2:
        async def read(bearer: Any) -> bytes:
            if error := self._refusal(attribute.handle, FLAG_READ, FLAGS_READ_SECURE):
                raise att.ATT_Error(att.ErrorCode(error), attribute.handle)
            answer = await self._irq(IRQ_GATTS_READ_REQUEST, bearer.handle, attribute.handle)
            if isinstance(answer, int) and answer:
                raise att.ATT_Error(att.ErrorCode(answer & 0xFF), attribute.handle)
            return self.values[attribute.handle].data

        async def write(bearer: Any, data: bytes) -> None:
            value = self.values[attribute.handle]
            await self._irq(
                IRQ_GATTS_WRITE,
                bearer.handle,
                attribute.handle,
                before=lambda: value.receive(data),
            )

        return att.AttributeValueV2(read, write)

    def _refusal(self, handle: int, wanted: int, secure: int) -> int:
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
            error = self._refusal(handle, FLAG_WRITE | FLAG_WRITE_NO_RESPONSE, FLAGS_WRITE_SECURE)
            if error:
                if att_pdu.op_code in att.ATT_REQUESTS:  # a command has no answer
                    self.refuse(bearer, att_pdu.op_code, handle, error)
                return
        super().on_gatt_pdu(bearer, att_pdu)

    def refuse(self, bearer: Any, op_code: int, handle: int, error: int) -> None:
        """Send an error response."""
        response = att.ATT_Error_Response(
            request_opcode_in_error=op_code, attribute_handle_in_error=handle, error_code=error
        )
        self.send_response(bearer, response)

    # The beacon's own access

    def value(self, handle: int) -> Value:
        """The buffer of a handle.

        Raises:
            OSError: EINVAL for a handle without one.
        """
        try:
            return self.values[handle]
        except KeyError:
            raise OSError(errno.EINVAL) from None
