"""Notices that the adapter was switched off, or that the Bluetooth service has ended.

bleak does not say so: a scan just falls silent, and a call waits for an answer that cannot come. On
Linux, D-Bus is asked here; elsewhere nothing is known, and the deadlines of each step remain.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from beacon_ota.errors import ReachError
from beacon_ota.provision.radio_errors import bluetooth_error, radio_failures
from beacon_ota.virtual.radio.selection import RadioSelection

if TYPE_CHECKING:
    from dbus_fast import Message
    from dbus_fast.aio import MessageBus

CLEANUP_S = 2.0  # for what was interrupted: its calls may never be answered
T = TypeVar("T")

_BLUEZ, _ADAPTER = "org.bluez", "org.bluez.Adapter1"
_BUS, _PROPERTIES = "org.freedesktop.DBus", "org.freedesktop.DBus.Properties"
_OBJECTS = "org.freedesktop.DBus.ObjectManager"
_RULES = (
    f"type='signal',sender='{_BUS}',member='NameOwnerChanged',arg0='{_BLUEZ}'",
    f"type='signal',sender='{_BLUEZ}',interface='{_PROPERTIES}',arg0='{_ADAPTER}'",
    f"type='signal',sender='{_BLUEZ}',interface='{_OBJECTS}'",
)


class AdapterWatch:
    """Whether the adapter can still be used; :func:`watch_adapter` makes one."""

    def __init__(self, radio: RadioSelection) -> None:
        self._radio = radio
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def report_lost(self, why: str) -> None:
        """Note that the adapter has gone; the first reason counts."""
        if not self._lost.done():
            self._lost.set_result(why)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what ``work`` returns; end it when the adapter goes.

        Raises:
            ReachError: ``bluetooth_off``, and what ``work`` raises.
        """
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self._lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,), timeout=CLEANUP_S)
        if not self._lost.done():
            return task.result()
        if task.done() and not task.cancelled():
            error = task.exception()
            if error is None:
                return task.result()
            if not isinstance(error, ReachError):
                raise error
        raise ReachError(
            "bluetooth_off",
            f"{self._radio.name} can no longer be used: {self._lost.result()}",
        )


@asynccontextmanager
async def watch_adapter(radio: RadioSelection) -> AsyncIterator[AdapterWatch]:
    """Watch the adapter for the length of the block.

    Raises:
        ReachError: ``bluetooth_off``: there is none, or no service for it.
    """
    watch = AdapterWatch(radio)
    if not radio.on_bluez:
        yield watch
        return
    try:
        bus = await _connect_bus()
    except radio_failures() as error:
        raise bluetooth_error(radio, error, "using Bluetooth") from None
    ending = asyncio.ensure_future(_wait_for_end(bus, watch))
    try:
        try:
            await _follow(bus, watch, radio)
        except radio_failures() as error:
            raise bluetooth_error(radio, error, "using Bluetooth") from None
        yield watch
    finally:
        bus.disconnect()
        await asyncio.wait((ending,), timeout=CLEANUP_S)
        ending.cancel()


async def _wait_for_end(bus: "MessageBus", watch: AdapterWatch) -> None:
    with contextlib.suppress(*radio_failures()):
        await bus.wait_for_disconnect()
    watch.report_lost("the D-Bus service has ended; start it, and Bluetooth")


async def _connect_bus() -> "MessageBus":
    from dbus_fast.aio import MessageBus
    from dbus_fast.constants import BusType

    bus = MessageBus(bus_type=BusType.SYSTEM)
    try:
        return await bus.connect()
    except BaseException:
        bus.disconnect()
        raise


async def _follow(bus: "MessageBus", watch: AdapterWatch, radio: RadioSelection) -> None:
    """Have the watch told of what happens to the adapter, and of what has happened already."""
    from dbus_fast import Message, MessageType

    wanted = f"/org/bluez/{radio.adapter}" if radio.adapter else None
    powered: dict[str, bool] = {}

    def note(path: str, on: bool) -> None:
        powered[path] = on
        if not (powered.get(wanted) if wanted else any(powered.values())):
            watch.report_lost("it was switched off, or unplugged; turn Bluetooth on")

    def on_signal(message: "Message") -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.member == "NameOwnerChanged" and message.body[0] == _BLUEZ:
            if message.body[1]:  # a service that was restarted has forgotten everything, too
                watch.report_lost("the Bluetooth service has ended, or was restarted; try again")
        elif message.member == "PropertiesChanged" and message.body[0] == _ADAPTER:
            if "Powered" in message.body[1]:
                note(str(message.path), bool(message.body[1]["Powered"].value))
        elif message.member == "InterfacesRemoved" and _ADAPTER in message.body[1]:
            note(message.body[0], False)

    bus.add_message_handler(on_signal)
    for rule in _RULES:
        await bus.call(
            Message(
                destination=_BUS,
                path="/org/freedesktop/DBus",
                interface=_BUS,
                member="AddMatch",
                signature="s",
                body=[rule],
            )
        )
    found = await bus.call(
        Message(destination=_BLUEZ, path="/", interface=_OBJECTS, member="GetManagedObjects")
    )
    if found is not None and found.message_type is MessageType.METHOD_RETURN:
        for path, interfaces in found.body[0].items():
            if _ADAPTER in interfaces:
                powered[path] = bool(interfaces[_ADAPTER]["Powered"].value)
    # Without a service or a powered adapter nothing can be lost: the first scan says so.
