"""The interface of Bluetooth backends, which the ``bluetooth`` stub calls.

The stub forwards every call by name: ``active`` (None or bool), ``config_get`` (name),
``config_set`` (name, value), ``gap_advertise`` (interval in µs or None, data, response data,
connectable), ``gap_disconnect``, ``gatts_register_services`` (nested tuples, UUIDs as little-endian
bytes), ``gatts_register_failed`` (of definitions that cannot be read), ``gatts_read``,
``gatts_write`` (handle, data, update), ``gatts_notify``,
``gatts_indicate`` (connection, handle, data or None), ``gatts_set_buffer`` (handle, size, append),
``gattc_exchange_mtu``, ``gap_scan``. A backend returns the result of the
call, or an awaitable of it; OSError and ValueError reach beacon code.

Events go the other way through :class:`BluetoothPort`: they arrive between any two bytecodes, and
``call_handler`` returns the result of the handler, for which a GATT server may have to wait.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from beacon_ota.virtual.process.channel import InterpreterChannel, Value

ENODEV = 19
EINVAL = 22
ADVERTISEMENT_MAX = 31
BUFFER = 20  # default size of an attribute's value
MTU = (23, 527)


class BluetoothPort:
    """The connection between the interpreter of one beacon and its backend.

    Attributes:
        address: the Bluetooth address, 6 bytes, most significant first.
        name: of the beacon, for logs.
    """

    def __init__(self, address: bytes, name: str, changed: Callable[[], None]):
        self.address = address
        self.name = name
        self.changed = changed
        self.channel: InterpreterChannel | None = None

    def send_event(self, event: int, *data: Value) -> bool:
        """Deliver an event; return False when no interpreter runs."""
        return self.channel is not None and self.channel.queue_event("ble", event, data)

    async def call_handler(self, event: int, *data: Value) -> Value:
        """Deliver an event and return the result of the handler (None without a handler)."""
        if self.channel is None:
            return None
        return await self.channel.call_handler("ble", event, data)


class BluetoothBackend(Protocol):
    """A Bluetooth controller and host for one beacon. All methods run in the reactor's loop."""

    def attach(self, port: BluetoothPort) -> None:
        """Attach the port of the beacon; called once, before every other method."""

    def call(self, name: str, *args: Value) -> "Value | asyncio.Future":
        """Run an operation of the stub."""

    def reset(self) -> None:
        """Return to the initial state: the chip or its interpreter was reset."""

    def close(self) -> None:
        """Release everything; no call follows."""


class RadiolessBackend:
    """A backend without a radio: it stores the settings of beacon code, and no central connects.

    Attributes:
        advertising: interval in µs, None while advertising is off.
        data: advertising data; ``response``: scan response data.
    """

    def __init__(self) -> None:
        self._port: BluetoothPort | None = None
        self.reset()

    def attach(self, port: BluetoothPort) -> None:
        self._port = port

    def reset(self) -> None:
        self.on = False
        self.advertising: int | None = None
        self.connectable = False
        self.data = b""
        self.response = b""
        self.values: dict[int, bytes] = {}
        self._sizes: dict[int, tuple[int, bool]] = {}
        self._settings: dict[str, Value] = {"gap_name": b"MPY ESP32", "mtu": 256}
        self._changed()

    def close(self) -> None:
        pass

    def call(self, name: str, *args):
        operation = getattr(self, f"_{name}", None)
        if operation is None:
            raise OSError(95, "EOPNOTSUPP")
        if not self.on and name not in ("active", "config_get", "config_set"):
            raise OSError(ENODEV)
        return operation(*args)

    def _active(self, on: bool | None) -> bool:
        if on is not None and on != self.on:
            self.reset()
            self.on = on
        return self.on

    def _config_get(self, name: str) -> Value:
        if name == "mac":
            if not self.on or self._port is None:
                raise OSError(ENODEV)
            return (0, self._port.address)
        if name not in self._settings:
            raise ValueError("unknown config param")
        return self._settings[name]

    def _config_set(self, name: str, value: Value) -> None:
        if name == "mtu":
            if not self.on:
                raise OSError(ENODEV)
            if not isinstance(value, int) or not MTU[0] <= value <= MTU[1]:
                raise OSError(EINVAL)
        elif name == "gap_name":
            value = value.encode() if isinstance(value, str) else value
        elif name not in ("addr_mode", "bond", "mitm", "io", "le_secure"):
            raise ValueError("unknown config param")
        self._settings[name] = value

    def _gap_advertise(
        self, interval: int | None, data: bytes | None, response: bytes | None, connectable: bool
    ) -> None:
        if data is not None and len(data) > ADVERTISEMENT_MAX:
            raise OSError(-18)
        if response is not None and len(response) > ADVERTISEMENT_MAX:
            raise OSError(EINVAL)
        if interval is not None:
            self.data = self.data if data is None else data
            self.response = self.response if response is None else response
            self.connectable = connectable
        self.advertising = interval
        self._changed()

    def _gatts_register_services(self, services: tuple) -> Value:
        self.values.clear()
        self._sizes.clear()
        handle, answer = 16, []
        for _, characteristics in services:
            handles = []
            for _, _, *descriptors in characteristics:
                handle += 2
                for _ in range(1 + len(descriptors[0]) if descriptors else 1):
                    handles.append(handle)
                    self.values[handle] = b""
                    self._sizes[handle] = (BUFFER, False)
                    handle += 1
            answer.append(tuple(handles))
        return tuple(answer)

    def _gatts_register_failed(self) -> None:
        pass

    def _gatts_read(self, handle: int) -> bytes:
        value = self._value(handle)
        if self._sizes[handle][1]:
            self.values[handle] = b""
        return value

    def _gatts_write(self, handle: int, data: bytes, update: bool) -> None:
        self._value(handle)
        size, append = self._sizes[handle]
        self._sizes[handle] = (max(size, len(data)), append)
        self.values[handle] = data

    def _gatts_set_buffer(self, handle: int, size: int, append: bool) -> None:
        self._value(handle)
        self._sizes[handle] = (size, append)

    def _gatts_notify(self, connection: int, handle: int, data: bytes | None) -> None:
        raise OSError(128)  # ENOTCONN: no central ever connects

    _gatts_indicate = _gatts_notify

    def _gap_disconnect(self, connection: int) -> bool:
        return False

    def _value(self, handle: int) -> bytes:
        if handle not in self.values:
            raise OSError(EINVAL)
        return self.values[handle]

    def _changed(self) -> None:
        if self._port is not None:
            self._port.changed()
