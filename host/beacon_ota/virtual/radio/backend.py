"""The Bluetooth backend of a virtual beacon: from its `bluetooth` stub to a radio space.

The stub calls operations by name (:mod:`beacon_ota.virtual.radio.vhci`); errors are the exceptions
that the MicroPython port raises.
"""

import errno
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from bumble.core import BaseBumbleError

from beacon_ota.errors import ReachError
from beacon_ota.virtual.radio.attributes import CharacteristicSpec, ServiceSpec
from beacon_ota.virtual.radio.peripheral import Advertising, ControllerSource, Peripheral
from beacon_ota.virtual.radio.vhci import BluetoothPort

SCAN_INTERVAL_US, SCAN_WINDOW_US = 1_280_000, 11_250  # NimBLE's background scan


class SpaceBackend:
    """The backend of one beacon; all methods run in the event loop of the reactor.

    Args:
        radio: from :meth:`.space.RadioSpace.make_radio`; a :class:`.transport.RemoteRadio` for a
            space in another process.
    """

    def __init__(self, radio: ControllerSource) -> None:
        self._radio = radio
        self._peripheral: Peripheral | None = None
        self._operations: dict[str, Callable[..., Any]] = {}

    def attach(self, port: BluetoothPort) -> None:
        """Attach the port of the beacon, which has its address."""

        async def handler(event: int, data: tuple[Any, ...]) -> object:
            return await port.call_handler(event, *data)

        peripheral = Peripheral(self._radio, port.address, handler, port.changed)
        self._peripheral = peripheral
        self._operations = {
            "active": self._set_active,
            "config_get": peripheral.get_config,
            "config_set": peripheral.set_config,
            "gap_advertise": self._set_advertising,
            "gap_disconnect": peripheral.disconnect,
            "gap_scan": self._set_scanning,
            "gatts_register_services": self._register_services,
            "gatts_register_failed": peripheral.fail_registration,
            "gatts_read": peripheral.read_value,
            "gatts_write": peripheral.write_value,
            "gatts_notify": peripheral.send_notification,
            "gatts_indicate": peripheral.send_indication,
            "gatts_set_buffer": peripheral.set_buffer,
        }

    @property
    def peripheral(self) -> Peripheral:
        assert self._peripheral is not None, "the backend has no beacon yet"
        return self._peripheral

    @property
    def advertising(self) -> Advertising | None:
        """The current advertisement, None while there is none."""
        return self.peripheral.advertising

    def call(self, name: str, *args: Any) -> Any:
        """Run an operation of the stub; return the result, or an awaitable of it.

        Raises:
            OSError: as the port does; EOPNOTSUPP for operations that the virtual radio lacks (GATT
                client, pairing, L2CAP channels); EIO, ETIMEDOUT after the end of the space.
        """
        operation = self._operations.get(name)
        if operation is None:
            raise OSError(errno.EOPNOTSUPP)
        result = operation(*args)
        return _translate_errors(result) if inspect.isawaitable(result) else result

    def reset(self) -> None:
        """Silence the radio: the chip was reset or lost its power."""
        if self._peripheral is not None:
            self._peripheral.lose_power()

    def close(self) -> None:
        """Silence the radio for good."""
        self.reset()

    def _set_active(self, on: bool | None) -> bool | Awaitable[bool]:
        if on is None:
            return self.peripheral.active

        async def switch() -> bool:
            await self.peripheral.set_active(on)
            return self.peripheral.active

        return switch()

    def _set_advertising(
        self, interval_us: int | None, data: bytes | None, response: bytes | None, connectable: bool
    ) -> Awaitable[None]:
        if interval_us is None:
            return self.peripheral.stop_advertising()
        return self.peripheral.start_advertising(interval_us, data, response, connectable)

    def _set_scanning(
        self,
        duration_ms: int | None = 0,
        interval_us: int = SCAN_INTERVAL_US,
        window_us: int = SCAN_WINDOW_US,
        active: bool = False,
    ) -> Awaitable[None]:
        if duration_ms is None:
            return self.peripheral.stop_scan()
        return self.peripheral.start_scan(duration_ms, interval_us, window_us, active)

    def _register_services(self, services: tuple[Any, ...]) -> tuple[tuple[int, ...], ...]:
        handles = self.peripheral.register_services(
            [_parse_service(service) for service in services]
        )
        return tuple(map(tuple, handles))


async def _translate_errors(operation: Awaitable[Any]) -> Any:
    """Raise the errors of the port for errors below the stack."""
    try:
        return await operation
    except ReachError as error:
        raise OSError(errno.ETIMEDOUT) from error  # NimBLE waits for its controller in vain
    except BaseBumbleError as error:
        raise OSError(errno.EIO) from error


def _parse_service(raw: tuple[Any, ...]) -> ServiceSpec:
    uuid, characteristics = raw
    return uuid, [_parse_characteristic(*characteristic) for characteristic in characteristics]


def _parse_characteristic(
    uuid: bytes, flags: int, descriptors: tuple[tuple[bytes, int], ...] = ()
) -> CharacteristicSpec:
    return uuid, flags, [(descriptor, access) for descriptor, access in descriptors]
