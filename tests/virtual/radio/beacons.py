"""A beacon's Bluetooth driven from Python, and waiting for conditions."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from bleak import BleakClient

from beacon_ota.virtual.radio.peripheral import Peripheral
from beacon_ota.virtual.radio.selection import select_radio
from beacon_ota.virtual.radio.space import RadioSpace

WAIT = 60.0  # seconds: for machines that do other things as well
FLAG_READ, FLAG_WRITE_NO_RESPONSE, FLAG_WRITE = 0x0002, 0x0004, 0x0008
FLAG_NOTIFY, FLAG_INDICATE = 0x0010, 0x0020

BLUFI = b"\xff\xff"
RX, TX = b"\x01\xff", b"\x02\xff"
PROVISIONABLE = bytes.fromhex("0201060303ffff") + b"\x06\x16\xff\xff\xec\x01\x03"
NAME = b"\x0d\x09BLUFI_A1B2C3"
FF01 = "0000ff01-0000-1000-8000-00805f9b34fb"
FF02 = "0000ff02-0000-1000-8000-00805f9b34fb"
SERVICE = (BLUFI, [(RX, FLAG_WRITE | FLAG_WRITE_NO_RESPONSE, []), (TX, 0x12, [])])


class Beacon:
    """A peripheral in a room whose IRQ handler is a Python function.

    Args:
        room: where it is.
        number: last byte of its address.
    """

    def __init__(self, room: RadioSpace, number: int = 1) -> None:
        self.room = room
        self.mac = bytes.fromhex("d4f98d0000") + bytes([number])
        self.address = ":".join(f"{byte:02X}" for byte in self.mac)
        self.events: list[tuple[int, tuple[Any, ...]]] = []
        self.on_irq: Callable[[int, tuple[Any, ...]], object] = lambda event, data: None
        self.peripheral = Peripheral(room.make_radio(), self.mac, self._irq)
        self.handles: list[list[int]] = []

    async def _irq(self, event: int, data: tuple[Any, ...]) -> object:
        self.events.append((event, data))
        result = self.on_irq(event, data)
        return await result if asyncio.iscoroutine(result) else result

    def do(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the peripheral in the room's thread."""

        async def body() -> Any:
            result = getattr(self.peripheral, name)(*args, **kwargs)
            return await result if asyncio.iscoroutine(result) else result

        return self.room.run(body())

    def start(self, *services: Any) -> "Beacon":
        """Activate and register, the BluFi-like service when none is given."""
        self.do("set_active", True)
        self.handles = self.do("register", list(services) or [SERVICE])
        return self

    def advertise(
        self,
        data: bytes | None = PROVISIONABLE,
        response: bytes | None = NAME,
        *,
        interval_us: int = 20_000,
        connectable: bool = True,
    ) -> "Beacon":
        self.do("advertise", interval_us, data, response, connectable)
        return self

    def seen(self, event: int) -> list[tuple[Any, ...]]:
        """The data of all events of a kind so far."""
        return [data for number, data in self.events if number == event]


def wait_until(condition: Callable[[], Any], timeout: float = WAIT) -> Any:
    """Poll until the condition holds; fail after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.002)
    return result


async def until(condition: Callable[[], Any], timeout: float = WAIT) -> Any:
    """The same in an event loop."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, "condition not met in time"
        await asyncio.sleep(0.002)
    return result


def client(beacon: Beacon, **arguments: Any) -> BleakClient:
    """A central's client of a beacon."""
    return BleakClient(beacon.address, **select_radio(beacon.room.spec).client, **arguments)


def talk(beacon: Beacon, body: Any, **arguments: Any) -> Any:
    """Connect to a beacon that advertises, run ``body(client)``, disconnect."""

    async def run() -> Any:
        async with client(beacon, **arguments) as connected:
            return await body(connected)

    return asyncio.run(run())


def refused(number: int, call: Any, *args: Any) -> None:
    """The call raises OSError with this number."""
    with pytest.raises(OSError) as caught:
        call(*args)
    assert caught.value.args[0] == number
