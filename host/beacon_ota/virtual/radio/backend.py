"""The Bluetooth of a virtual beacon: between its `bluetooth` stand-in and a room.

The stand-in calls by name; what it calls is in :class:`Bluetooth`. Errors travel as the exceptions
that the port raises.
"""

import errno
from collections.abc import Awaitable, Callable
from typing import Any

from beacon_ota.virtual.radio.attributes import CharacteristicSpec, ServiceSpec
from beacon_ota.virtual.radio.peripheral import Handler, Peripheral, Radio

SCAN_INTERVAL_US, SCAN_WINDOW_US = 1_280_000, 11_250  # NimBLE's background scan


class Bluetooth:
    """One beacon's backend. It runs in the room's event loop.

    Args:
        radio: :meth:`.room.Room.radio`, or :class:`.transport.Remote` for another process's room.
        address: public address, six bytes as they are written.
        handler: hands an event to the stand-in and waits for what the beacon's handler returns.
    """

    def __init__(self, radio: Radio, address: bytes, handler: Handler) -> None:
        self.peripheral = Peripheral(radio, address, handler)
        self._operations: dict[str, Callable[..., Any]] = {
            "active": self._active,
            "config_get": self.peripheral.config,
            "config_set": self.peripheral.set_config,
            "gap_advertise": self._advertise,
            "gap_disconnect": self.peripheral.disconnect,
            "gap_scan": self._scan,
            "gatts_register_services": self._register,
            "gatts_read": self.peripheral.read,
            "gatts_write": self.peripheral.write,
            "gatts_notify": self.peripheral.notify,
            "gatts_indicate": self.peripheral.indicate,
            "gatts_set_buffer": self.peripheral.resize,
        }

    def call(self, name: str, *args: Any) -> Any:
        """Do what the stand-in asks; the result, or an awaitable of it.

        Raises:
            OSError: as the port does; EOPNOTSUPP for what the virtual radio does not do
                (the GATT client, pairing, L2CAP channels).
        """
        operation = self._operations.get(name)
        if operation is None:
            raise OSError(errno.EOPNOTSUPP)
        return operation(*args)

    async def vanish(self) -> None:
        """The chip was reset or lost its power: its radio falls silent."""
        await self.peripheral.vanish()

    def _active(self, on: bool | None) -> bool | Awaitable[bool]:
        if on is None:
            return self.peripheral.active

        async def switch() -> bool:
            await self.peripheral.set_active(on)
            return self.peripheral.active

        return switch()

    def _advertise(
        self, interval_us: int | None, data: bytes | None, response: bytes | None, connectable: bool
    ) -> Awaitable[None]:
        if interval_us is None:
            return self.peripheral.stop_advertising()
        return self.peripheral.advertise(interval_us, data, response, connectable)

    def _scan(
        self,
        duration_ms: int | None = 0,
        interval_us: int = SCAN_INTERVAL_US,
        window_us: int = SCAN_WINDOW_US,
        active: bool = False,
    ) -> Awaitable[None]:
        if duration_ms is None:
            return self.peripheral.stop_scan()
        return self.peripheral.scan(duration_ms, interval_us, window_us, active)

    def _register(self, services: tuple[Any, ...]) -> tuple[tuple[int, ...], ...]:
        handles = self.peripheral.register([_service(service) for service in services])
        return tuple(map(tuple, handles))


def _service(raw: tuple[Any, ...]) -> ServiceSpec:
    uuid, characteristics = raw
    return uuid, [_characteristic(*characteristic) for characteristic in characteristics]


def _characteristic(
    uuid: bytes, flags: int, descriptors: tuple[tuple[bytes, int], ...] = ()
) -> CharacteristicSpec:
    return uuid, flags, [(descriptor, access) for descriptor, access in descriptors]
