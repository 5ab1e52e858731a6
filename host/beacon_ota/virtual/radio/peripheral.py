"""A beacon's Bluetooth: what MicroPython's `bluetooth` does on an ESP32-C3, over a room's radio.

The calls and their errors are those of `extmod/modbluetooth.c` over NimBLE, as the `bluetooth`
stand-in forwards them; events go to the beacon's handler one at a time, and NimBLE's host waits for
each (the port runs handlers synchronously on NimBLE's task).
"""

import asyncio
import errno
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from bumble import hci
from bumble.device import AdvertisingType, Connection, LegacyAdvertiser
from bumble.hci import Role

from beacon_ota.virtual.radio.attributes import GattServer, ServiceSpec
from beacon_ota.virtual.radio.events import (
    CENTRAL_CONNECT,
    CENTRAL_DISCONNECT,
    CONNECTION_UPDATE,
    MTU_EXCHANGED,
    Handler,
    IrqQueue,
)
from beacon_ota.virtual.radio.observer import ScanObserver
from beacon_ota.virtual.radio.stack import HostStack
from beacon_ota.virtual.radio.transport import RadioHost

DEFAULT_NAME = b"MPY ESP32"
MAX_NAME = 31
DEFAULT_MTU = 256
MIN_MTU, MAX_MTU = 23, 527
MAX_CONNECTIONS = 4
MAX_ADV_DATA = 31
ADV_UNIT_US = 625
DEFAULT_INTERVALS = {True: 0x30, False: 0xA0}  # of 625 us: connectable, not connectable
DISCONNECT_TIMEOUT_S = 0.5

INVALID_HCI_PARAMETERS = 0x12

_USER = hci.HCI_ErrorCode.REMOTE_USER_TERMINATED_CONNECTION_ERROR


class ControllerSource(Protocol):
    """Gives a host stack its controller, and takes it away again."""

    async def open(self, address: bytes) -> RadioHost: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Advertising:
    """What a beacon advertises.

    Args:
        interval_us: between two events.
        data: AD structures of the advertisement; ``response``: of the scan response.
    """

    interval_us: int
    connectable: bool
    data: bytes
    response: bytes


class Peripheral:
    """The Bluetooth of one beacon. Every method runs in the event loop of its radio.

    Args:
        radio: where its controllers come from.
        address: public address, six bytes as they are written.
        handler: runs the beacon's IRQ handler and waits for it.
        changed: called when it goes on or off, or advertises something else.

    Attributes:
        advertising: what it advertises at the moment, if it does.
    """

    def __init__(
        self,
        radio: ControllerSource,
        address: bytes,
        handler: Handler,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.address = address
        self.name = DEFAULT_NAME
        self.mtu = DEFAULT_MTU
        self._radio = radio
        self._irq_queue = IrqQueue(handler)
        self._device: HostStack | None = None
        self._server: GattServer | None = None
        self._observer: ScanObserver | None = None
        self._own_address_type = hci.OwnAddressType.PUBLIC
        self.advertising: Advertising | None = None
        self._changed = changed
        self._terminating: set[int] = set()
        self._payloads = (b"", b"")
        self._power_cycles = 0  # grows with every loss of power

    # Life

    @property
    def active(self) -> bool:
        return self._device is not None

    async def set_active(self, on: bool) -> None:
        """Start the stack (again: a second start restarts it), or stop it."""
        await self._stop_stack()
        if on:
            await self._start_stack()

    async def _start_stack(self) -> None:
        life = self._power_cycles
        host = await self._radio.open(self.address)
        device = HostStack(host)
        await device.power_on()
        if self._power_cycles != life:  # the power has failed meanwhile
            self._radio.close()
            raise OSError(errno.ENODEV)
        device.on(HostStack.EVENT_CONNECTION, self._on_connection)
        self.mtu = DEFAULT_MTU
        self._own_address_type = hci.OwnAddressType.PUBLIC
        self._payloads = (b"", b"")
        self._device = device
        self._observer = ScanObserver(device, self._irq_queue)
        self._make_server()
        self._changed()

    async def _stop_stack(self) -> None:
        device = self._device
        if device is None:
            return
        if not self._is_reachable(device):
            self._clear_stack()
            return
        await self.stop_scan()
        await self.stop_advertising()
        gone = [
            self._end_connection(connection) for connection in tuple(device.connections.values())
        ]
        if gone:
            await asyncio.wait([asyncio.ensure_future(end) for end in gone])
        if self._device is device:
            self._clear_stack()
            self._changed()

    @staticmethod
    def _is_reachable(device: HostStack) -> bool:
        host = device.host
        assert isinstance(host, RadioHost)
        return not host.lost.is_set()

    def lose_power(self) -> None:
        """The chip has lost its power, or was reset: nobody is told anything."""
        self._power_cycles += 1
        self._clear_stack()
        self.name = DEFAULT_NAME
        self._irq_queue.cancel_all()

    def _clear_stack(self) -> None:
        self._device = self._server = self._observer = None
        self.advertising = None
        self._radio.close()

    def _require_active(self) -> HostStack:
        if self._device is None:
            raise OSError(errno.ENODEV)
        return self._device

    # Settings

    def get_config(self, name: str) -> Any:
        """The value of a setting.

        Raises:
            ValueError: there is no such setting (`rxbuf` among them: events are synchronous).
            OSError: ENODEV while the stack is off.
        """
        if name == "gap_name":
            return self.name
        if name not in ("mac", "mtu"):
            raise ValueError("unknown config param")
        device = self._require_active()
        if name == "mtu":
            return self.mtu
        if self._own_address_type == hci.OwnAddressType.PUBLIC:
            return 0, self.address
        return 1, bytes(device.random_address)[::-1]

    async def set_config(self, name: str, value: Any) -> None:
        """Change a setting; errors as :meth:`config`, and EINVAL for a value out of range."""
        if name == "gap_name":
            if len(value) > MAX_NAME:
                raise OSError(errno.EINVAL)
            self.name = bytes(value).partition(b"\0")[0]
        elif name == "mtu":
            self._require_active()
            if not MIN_MTU <= value <= MAX_MTU:
                raise OSError(errno.EINVAL)
            self.mtu = value
            if self._server is not None:
                self._server.max_mtu = value
        elif name == "addr_mode":
            await self._set_address_mode(value)
        elif name not in ("bond", "mitm", "io", "le_secure"):  # accepted: pairing never happens
            raise ValueError("unknown config param")

    async def _set_address_mode(self, mode: int) -> None:
        device = self._require_active()
        if mode == 0:
            self._own_address_type = hci.OwnAddressType.PUBLIC
            return
        raw = bytearray(secrets.token_bytes(6))
        top = {1: 0xC0, 2: 0x40}.get(mode, 0x00)  # static, resolvable, non-resolvable
        raw[5] = raw[5] & 0x3F | top
        device.random_address = hci.Address(bytes(raw), hci.Address.RANDOM_DEVICE_ADDRESS)
        await device.send_sync_command(
            hci.HCI_LE_Set_Random_Address_Command(random_address=device.random_address)
        )
        self._own_address_type = hci.OwnAddressType.RANDOM

    # Advertising

    async def start_advertising(
        self,
        interval_us: int,
        data: bytes | None,
        response: bytes | None,
        connectable: bool,
    ) -> None:
        """Advertise every ``interval_us`` (rounded down to 625); ``None`` reuses the last payload.

        Raises:
            OSError: ENODEV; -18 for more than 31 bytes; EINVAL outside 20 ms to 10.24 s;
                ENOMEM connectable with four connections. Advertising has stopped then.
        """
        device = self._require_active()
        await self.stop_advertising()
        if data is not None:
            _check_payload(data)
            self._payloads = (data, self._payloads[1])
            await device.send_sync_command(
                hci.HCI_LE_Set_Advertising_Data_Command(advertising_data=data)
            )
        if response is not None:
            _check_payload(response)
            self._payloads = (self._payloads[0], response)
            await device.send_sync_command(
                hci.HCI_LE_Set_Scan_Response_Data_Command(scan_response_data=response)
            )
        interval = interval_us // ADV_UNIT_US
        if interval and not 0x20 <= interval <= 0x4000:
            raise OSError(errno.EINVAL)
        if connectable and len(device.connections) >= MAX_CONNECTIONS:
            raise OSError(errno.ENOMEM)
        interval = interval or DEFAULT_INTERVALS[connectable]
        await device.send_sync_command(
            hci.HCI_LE_Set_Advertising_Parameters_Command(
                advertising_interval_min=interval,
                advertising_interval_max=interval,
                # general discoverable and not connectable is scannable to NimBLE
                advertising_type=0 if connectable else 2,
                own_address_type=self._own_address_type,
                peer_address_type=hci.AddressType.PUBLIC_DEVICE,
                peer_address=hci.Address.ANY,
                advertising_channel_map=7,
                advertising_filter_policy=0,
            )
        )
        await self._enable_advertising(device, True)
        if self._device is device:
            self.advertising = Advertising(interval * ADV_UNIT_US, connectable, *self._payloads)
            self._changed()

    async def stop_advertising(self) -> None:
        """Stop, if it runs and the stack does."""
        device = self._device
        if device is not None and self.advertising is not None:
            await self._enable_advertising(device, False)
            self.advertising = None
            self._changed()

    async def _enable_advertising(self, device: HostStack, on: bool) -> None:
        await device.send_sync_command(
            hci.HCI_LE_Set_Advertising_Enable_Command(advertising_enable=int(on))
        )
        device.legacy_advertiser = LegacyAdvertiser(  # tells bumble the address of a connection
            device=device,
            advertising_type=AdvertisingType.UNDIRECTED_CONNECTABLE_SCANNABLE,
            own_address_type=self._own_address_type,
            peer_address=hci.Address.ANY,
            auto_restart=False,
        )

    # Connections

    def _on_connection(self, connection: Connection) -> None:
        if connection.role != Role.PERIPHERAL:
            return
        if self.advertising is not None and self.advertising.connectable:
            self.advertising = None
            self._changed()
        handle = connection.handle
        peer = (int(not connection.peer_address.is_public), bytes(connection.peer_address)[::-1])
        connection.on(
            Connection.EVENT_DISCONNECTION, lambda reason: self._on_disconnection(handle, peer)
        )
        connection.on(
            Connection.EVENT_CONNECTION_ATT_MTU_UPDATE,
            lambda: self._irq_queue.post_event(MTU_EXCHANGED, handle, connection.att_mtu),
        )
        connection.on(
            Connection.EVENT_CONNECTION_PARAMETERS_UPDATE,
            lambda: self._irq_queue.post_event(
                CONNECTION_UPDATE, handle, *_connection_parameters(connection), 0
            ),
        )
        self._irq_queue.post_event(CENTRAL_CONNECT, handle, *peer)

    def _on_disconnection(self, handle: int, peer: tuple[int, bytes]) -> None:
        self._terminating.discard(handle)
        self._irq_queue.post_event(CENTRAL_DISCONNECT, handle, *peer)

    def _find_connection(self, handle: int) -> Connection:
        connection = self._require_active().connections.get(handle)
        if connection is None:
            raise OSError(errno.ENOTCONN)
        return connection

    def disconnect(self, handle: int) -> bool:
        """Begin to end a connection; whether there was one.

        Raises:
            OSError: ENODEV; EALREADY when it is about to end.
        """
        connection = self._require_active().connections.get(handle)
        if connection is None:
            return False
        if handle in self._terminating:
            raise OSError(errno.EALREADY)
        self._terminating.add(handle)
        self._irq_queue.spawn_task(self._end_connection(connection))
        return True

    async def _end_connection(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(DISCONNECT_TIMEOUT_S):
                await connection.disconnect(_USER)
        except (TimeoutError, hci.HCI_Error):
            pass  # gone already, or out of reach: the supervision timeout ends it

    # Attributes

    def _make_server(self) -> GattServer:
        device = self._require_active()
        attributes = GattServer(device, self._irq_queue, lambda: self.name)
        attributes.max_mtu = self.mtu
        device.gatt_server = self._server = attributes
        return attributes

    def register_services(self, services: list[ServiceSpec]) -> list[list[int]]:
        """Replace all services; the handles of each one's values and descriptors.

        Raises:
            OSError: ENODEV; EBUSY while advertising, scanning or connected; E2BIG.
        """
        device = self._require_active()
        if self.advertising or device.connections or (self._observer and self._observer.active):
            raise OSError(errno.EBUSY)
        attributes = self._make_server()
        return [attributes.register_service(service) for service in services]

    def read_value(self, handle: int) -> bytes:
        """The value of a handle; empty when there is none, as the port has it."""
        if self._server is None or handle not in self._server.values:
            return b""
        return self._server.values[handle].read_by_beacon()

    def write_value(self, handle: int, data: bytes, send_update: bool) -> None:
        """Set the value of a handle; errors as :meth:`.Attributes.write`, and ENODEV."""
        self._require_server().write_value(handle, data, send_update)

    def set_buffer(self, handle: int, capacity: int, append: bool) -> None:
        """Give a value a buffer; errors as :meth:`.Attributes.resize`, and ENODEV."""
        self._require_server().set_buffer(handle, capacity, append)

    def send_notification(self, conn: int, handle: int, data: bytes | None) -> None:
        """Send a notification; errors as :meth:`.Attributes.notify`, ENODEV and ENOTCONN."""
        self._require_server().send_notification(self._find_connection(conn), handle, data)

    def send_indication(self, conn: int, handle: int, data: bytes | None) -> None:
        """Send an indication; errors as :meth:`notify`."""
        self._require_server().send_indication(self._find_connection(conn), handle, data)

    def _require_server(self) -> GattServer:
        self._require_active()
        assert self._server is not None
        return self._server

    # Scanning

    async def start_scan(
        self, duration_ms: int, interval_us: int, window_us: int, active: bool
    ) -> None:
        """Scan; errors as :meth:`.Observer.start`, and ENODEV."""
        self._require_active()
        assert self._observer is not None
        await self._observer.start(
            duration_ms, interval_us, window_us, active, self._own_address_type
        )

    async def stop_scan(self) -> None:
        """Stop scanning, if it runs."""
        if self._observer is not None:
            await self._observer.stop()


def _connection_parameters(connection: Connection) -> tuple[int, int, int]:
    """Connection parameters in the units of the air: 1.25 ms, events, 10 ms."""
    parameters = connection.parameters
    return (
        round(parameters.connection_interval / 1.25),
        parameters.peripheral_latency,
        round(parameters.supervision_timeout / 10),
    )


def _check_payload(data: bytes) -> None:
    if len(data) > MAX_ADV_DATA:
        raise OSError(-INVALID_HCI_PARAMETERS)
