"""The Bluetooth of a beacon: MicroPython's `bluetooth` of an ESP32-C3 over a simulated radio.

The calls and their errors are those of `extmod/modbluetooth.c` over NimBLE, as the `bluetooth`
stub forwards them. Events go to the IRQ handler one at a time, and the host waits for each: the
port runs handlers synchronously on the task of NimBLE.
"""

import asyncio
import errno
from collections.abc import Callable
from typing import Any, Protocol

from bumble import hci
from bumble.core import BaseBumbleError
from bumble.device import Connection
from bumble.hci import Role

from beacon_ota.virtual.radio.attributes import GattServer, ServiceSpec
from beacon_ota.virtual.radio.events import (
    CENTRAL_CONNECT,
    CENTRAL_DISCONNECT,
    CONNECTION_UPDATE,
    Handler,
    IrqQueue,
)
from beacon_ota.virtual.radio.gap_advertising import Advertising, GapAdvertiser
from beacon_ota.virtual.radio.observer import ScanObserver
from beacon_ota.virtual.radio.pairing import Pairing
from beacon_ota.virtual.radio.stack import HostStack
from beacon_ota.virtual.radio.transport import RadioHost

DEFAULT_NAME = b"MPY ESP32"
MAX_NAME = 31
DEFAULT_MTU = 256
MIN_MTU, MAX_MTU = 23, 527
DISCONNECT_TIMEOUT_S = 0.5

_FAILED = hci.HCI_ErrorCode.CONNECTION_FAILED_TO_BE_ESTABLISHED_ERROR
_USER = hci.HCI_ErrorCode.REMOTE_USER_TERMINATED_CONNECTION_ERROR


class ControllerSource(Protocol):
    """Gives a host stack its controller, and removes it."""

    async def open(self, address: bytes) -> RadioHost: ...

    def close(self) -> None: ...


class Peripheral:
    """The Bluetooth of one beacon. Every method runs in the event loop of its radio.

    Args:
        radio: source of its controllers.
        address: public address, six bytes, most significant first.
        handler: runs the IRQ handler of beacon code and waits for it.
        changed: called when the stack starts or stops, or the advertisement changes.
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
        self._advertiser: GapAdvertiser | None = None
        self._changed = changed
        self._terminating: set[int] = set()
        self._power_cycles = 0  # number of losses of power and resets
        self._pairing = Pairing(self._irq_queue)
        self._leftovers = False  # definitions of services of a registration that failed

    # Start and stop

    @property
    def active(self) -> bool:
        return self._device is not None

    async def set_active(self, on: bool) -> None:
        """Start or restart the stack, or stop it."""
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
        self._pairing.attach(device)
        device.on(HostStack.EVENT_CONNECTION, self._on_connection)
        self._leftovers = False
        self.mtu = DEFAULT_MTU
        self._device = device
        self._advertiser = GapAdvertiser(device, self._changed)
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
        """Silence the radio without ending links: the chip lost its power or was reset."""
        self._power_cycles += 1
        self._clear_stack()
        self.name = DEFAULT_NAME
        self._pairing = Pairing(self._irq_queue)
        self._irq_queue.cancel_all()

    async def reset_host(self) -> None:
        """Reset the host, as NimBLE does when it loses its controller's answers.

        Links are reported as ended, advertising ends without a word, and services remain.
        """
        device = self._require_active()
        assert self._advertiser is not None
        ended = list(device.connections)
        await device.send_sync_command(hci.HCI_Reset_Command())
        for handle in ended:
            device.host.on_hci_disconnection_complete_event(
                hci.HCI_Disconnection_Complete_Event(
                    status=0,
                    connection_handle=handle,
                    reason=hci.HCI_ErrorCode.HARDWARE_FAILURE_ERROR,
                )
            )
        self._advertiser.forget()

    def _clear_stack(self) -> None:
        if self._server is not None:
            self._server.stop_timers()
        self._device = self._server = self._advertiser = self._observer = None
        self._radio.close()

    def _require_active(self) -> HostStack:
        if self._device is None:
            raise OSError(errno.ENODEV)
        return self._device

    # Settings

    def get_config(self, name: str) -> Any:
        """Return the value of a setting.

        Raises:
            ValueError: unknown setting (`rxbuf` among them: events are synchronous).
            OSError: ENODEV while the stack is off.
        """
        if name == "gap_name":
            return self.name
        if name not in ("mac", "mtu"):
            raise ValueError("unknown config param")
        device = self._require_active()
        if name == "mtu":
            return self.mtu
        assert self._advertiser is not None
        if self._advertiser.own_address_type == hci.OwnAddressType.PUBLIC:
            return 0, self.address
        return 1, bytes(device.random_address)[::-1]

    async def set_config(self, name: str, value: Any) -> None:
        """Change a setting; errors as of :meth:`get_config`, and EINVAL out of range."""
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
            self._require_active()
            assert self._advertiser is not None
            await self._advertiser.set_address_mode(value)
        elif name in self._pairing.settings:
            self._pairing.settings[name] = value
        else:
            raise ValueError("unknown config param")

    # Advertising

    @property
    def advertising(self) -> Advertising | None:
        """The current advertisement, None while there is none."""
        return self._advertiser.advertising if self._advertiser is not None else None

    async def start_advertising(
        self, interval_us: int, data: bytes | None, response: bytes | None, connectable: bool
    ) -> None:
        """Advertise; arguments and errors as of :meth:`.GapAdvertiser.start`, and ENODEV."""
        self._require_active()
        assert self._advertiser is not None
        await self._advertiser.start(interval_us, data, response, connectable)

    async def stop_advertising(self) -> None:
        """Stop advertising, if it runs and the stack does."""
        if self._advertiser is not None:
            await self._advertiser.stop()

    # Connections

    def _on_connection(self, connection: Connection) -> None:
        if connection.role != Role.PERIPHERAL:
            return
        if self._advertiser is not None and self.advertising and self.advertising.connectable:
            self._advertiser.end()
        handle = connection.handle
        peer = (int(not connection.peer_address.is_public), bytes(connection.peer_address)[::-1])
        connection.on(
            Connection.EVENT_DISCONNECTION,
            lambda reason: self._on_disconnection(connection, reason, peer),
        )
        self._pairing.watch(connection)
        connection.on(
            Connection.EVENT_CONNECTION_PARAMETERS_UPDATE,
            lambda: self._irq_queue.post_event(
                CONNECTION_UPDATE, handle, *_connection_parameters(connection), 0
            ),
        )
        self._irq_queue.post_event(CENTRAL_CONNECT, handle, *peer)

    def _on_disconnection(
        self, connection: Connection, reason: int, peer: tuple[int, bytes]
    ) -> None:
        handle = connection.handle
        self._terminating.discard(handle)
        if self._server is not None:
            self._server.indications.fail_all(connection)
        if reason == _FAILED:
            self._irq_queue.run_in_turn(self._resume_advertising)
        else:
            self._irq_queue.post_event(CENTRAL_DISCONNECT, handle, *peer)

    async def _resume_advertising(self) -> None:
        """Do what esp-nimble does after a connection that failed to be established: no event."""
        if self._advertiser is not None:
            try:
                await self._advertiser.resume_empty()
            except (OSError, BaseBumbleError):
                pass  # it logs that, and advertises no more

    def _find_connection(self, handle: int) -> Connection:
        connection = self._require_active().connections.get(handle)
        if connection is None:
            raise OSError(errno.ENOTCONN)
        return connection

    def disconnect(self, handle: int) -> bool:
        """Begin to end a connection; return whether it existed.

        Raises:
            OSError: ENODEV; EALREADY when it is already ending.
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
            pass  # ended already, or out of range: the supervision timeout ends it

    # Attributes

    def _make_server(self) -> GattServer:
        device = self._require_active()
        attributes = GattServer(device, self._irq_queue, lambda: self.name)
        attributes.max_mtu = self.mtu
        device.gatt_server = self._server = attributes
        return attributes

    def register_services(self, services: list[ServiceSpec]) -> list[list[int]]:
        """Replace all services; return, per service, the handles of values and descriptors.

        Raises:
            OSError: ENODEV; EBUSY while advertising, scanning or connected; E2BIG; ENOMEM once
                after a registration that failed, whose definitions NimBLE has kept.
        """
        attributes = self._begin_registration()
        try:
            if self._leftovers:
                raise OSError(errno.ENOMEM)
            found = [attributes.register_service(service) for service in services]
        except OSError as error:
            self._leftovers = error.args[0] != errno.ENOMEM
            self._make_server()
            raise
        return found

    def fail_registration(self) -> None:
        """Note that the definitions of services could not be read; errors as those above."""
        self._begin_registration()
        self._leftovers = True

    def _begin_registration(self) -> GattServer:
        device = self._require_active()
        if self.advertising or device.connections or (self._observer and self._observer.active):
            raise OSError(errno.EBUSY)
        return self._make_server()

    def read_value(self, handle: int) -> bytes:
        """Return the value of a handle; empty for an unknown handle, as in the port."""
        if self._server is None or handle not in self._server.values:
            return b""
        return self._server.values[handle].read_by_beacon()

    def write_value(self, handle: int, data: bytes, send_update: bool) -> None:
        """Set the value of a handle; errors as of :meth:`.GattServer.write_value`, and ENODEV."""
        self._require_server().write_value(handle, data, send_update)

    def set_buffer(self, handle: int, capacity: int, append: bool) -> None:
        """Give a value a buffer; errors as of :meth:`.GattServer.set_buffer`, and ENODEV."""
        self._require_server().set_buffer(handle, capacity, append)

    def send_notification(self, conn: int, handle: int, data: bytes | None) -> None:
        """Send a notification; errors as of :class:`.GattServer`, ENODEV and ENOTCONN."""
        self._require_server().send_notification(self._find_connection(conn), handle, data)

    def send_indication(self, conn: int, handle: int, data: bytes | None) -> None:
        """Send an indication; errors as of :meth:`send_notification`."""
        self._require_server().send_indication(self._find_connection(conn), handle, data)

    def _require_server(self) -> GattServer:
        self._require_active()
        assert self._server is not None
        return self._server

    # Scanning

    async def start_scan(
        self, duration_ms: int, interval_us: int, window_us: int, active: bool
    ) -> None:
        """Scan; errors as of :meth:`.ScanObserver.start`, and ENODEV."""
        self._require_active()
        assert self._observer is not None and self._advertiser is not None
        await self._observer.start(
            duration_ms, interval_us, window_us, active, self._advertiser.own_address_type
        )

    async def stop_scan(self) -> None:
        """Stop scanning, if it runs."""
        if self._observer is not None:
            await self._observer.stop()


def _connection_parameters(connection: Connection) -> tuple[int, int, int]:
    """Return interval (1.25 ms), latency (events) and timeout (10 ms) of a connection."""
    parameters = connection.parameters
    return (
        round(parameters.connection_interval / 1.25),
        parameters.peripheral_latency,
        round(parameters.supervision_timeout / 10),
    )
