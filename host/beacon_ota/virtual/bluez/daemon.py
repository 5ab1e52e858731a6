"""``bluetoothd`` over a radio space, for bleak's own backend on Linux.

    with RadioSpace() as space, VirtualBluez(space) as bluez:
        os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = bluez.address

It does what makes BlueZ different from plain packets: it remembers what a device has advertised,
reports each device once per cycle, forgets devices that were never connected, allows a program one
scan, keeps connections of programs that were killed, and may be switched off or killed itself.
"""

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

from dbus_fast import Message

from beacon_ota.virtual.bluez.bus import Answer, CallError, SystemBus
from beacon_ota.virtual.bluez.kernel_scan import CYCLE_S, KernelScan
from beacon_ota.virtual.bluez.objects import ADAPTER, CHARACTERISTIC, OBJECT_MANAGER, ObjectTree
from beacon_ota.virtual.bluez.remote import FAILED, FORGET_S, IN_PROGRESS, RemoteDevice
from beacon_ota.virtual.radio.adapter import AdvertiserData, SpaceAdapter
from beacon_ota.virtual.radio.space import RadioSpace
from beacon_ota.virtual.reactor import Reactor

HCI0 = "/org/bluez/hci0"
NOT_READY = "org.bluez.Error.NotReady"
_UNKNOWN_OBJECT = "org.freedesktop.DBus.Error.UnknownObject"
_UNKNOWN_METHOD = "org.freedesktop.DBus.Error.UnknownMethod"
_TICK_S = 0.1


class VirtualBluez:
    """The daemon and its bus. Its methods may be called from any thread but the space's.

    Args:
        space: whose radio its adapter is.
        path: of the bus's socket; a temporary one by default.
    """

    def __init__(self, space: RadioSpace, path: Path | None = None) -> None:
        self._space = str(space.path)
        self._folder = tempfile.mkdtemp(prefix="bluez-") if path is None else None
        self._bus_path = path or Path(self._folder or "", "bus")
        self._bus = SystemBus(self._bus_path)
        self._daemon: Daemon | None = None
        self._reactor = Reactor.shared()

    @property
    def address(self) -> str:
        """The value of ``DBUS_SYSTEM_BUS_ADDRESS``."""
        return f"unix:path={self._bus_path}"

    def __enter__(self) -> Self:
        self._reactor.run(self._bus.open())
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._reactor.call(self._bus.close)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def restart(self) -> None:
        """Start the daemon."""

        async def body() -> None:
            self._daemon = await Daemon.start(self._bus, self._space)

        self._reactor.run(body())

    def kill(self) -> None:
        """Kill the daemon; the bus stays."""
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            self._reactor.run(daemon.stop())

    def kill_bus(self) -> None:
        """Kill the bus: every program loses it."""
        self._reactor.call(self._bus.close)

    def set_powered(self, on: bool) -> None:
        """Switch the adapter on or off."""
        assert self._daemon is not None
        self._reactor.run(self._daemon.set_powered(on))

    def skip(self, seconds: float) -> None:
        """Let time pass at once: cycles begin, devices are forgotten."""
        assert self._daemon is not None
        self._reactor.call(self._daemon.skip, seconds)

    def fail_calls(self, member: str, error: str, times: int = 1000) -> None:
        """Have the next calls of this name fail with an error, ``org.bluez.Error.…``."""
        assert self._daemon is not None
        self._daemon.failing[member] = [error] * times

    def device(self, address: str) -> dict[str, Any] | None:
        """Return the properties of a device object, None when there is none."""
        assert self._daemon is not None
        return self._reactor.call(self._daemon.device_properties, address)

    @property
    def sessions(self) -> int:
        """How many programs scan."""
        assert self._daemon is not None
        return len(self._daemon.sessions)


class Daemon:
    """One life of the daemon, in the event loop of the space."""

    def __init__(self, bus: SystemBus, adapter: SpaceAdapter, space: str) -> None:
        self._bus, self._adapter, self._space = bus, adapter, space
        self._objects = ObjectTree(bus.emit)
        self._scan = KernelScan(adapter, self._on_found)
        self._devices: dict[str, RemoteDevice] = {}
        self._skipped = 0.0
        self._cycle_ends = 0.0
        self.sessions: set[str] = set()  # programs that scan
        self.failing: dict[str, list[str]] = {}
        self._change = asyncio.Lock()
        self._clock = asyncio.get_running_loop().create_task(self._run_clock())

    @classmethod
    async def start(cls, bus: SystemBus, space: str) -> "Daemon":
        """Start it, and have it own its name."""
        daemon = cls(bus, await SpaceAdapter.acquire(space), space)
        bus.set_service(daemon)
        own = daemon._adapter.device.public_address.to_string(False)
        facts = {
            "Address": own,
            "Name": "virtual",
            "Alias": "virtual",
            "Powered": True,
            "Discoverable": False,
            "Pairable": False,
            "Discovering": False,
            "Roles": ["central", "peripheral"],
            "UUIDs": [],
        }
        daemon._objects.add(HCI0, ADAPTER, facts)
        return daemon

    async def stop(self) -> None:
        """End as if killed: nothing is said to anybody but by the bus."""
        self._clock.cancel()
        self._bus.set_service(None)
        self._objects = ObjectTree(lambda signal: None)
        await self._scan.stop()
        for device in self._devices.values():
            device._objects = self._objects
            with contextlib.suppress(CallError):
                await device.disconnect()
        self._adapter.release()

    # Time

    def _now(self) -> float:
        return asyncio.get_running_loop().time() + self._skipped

    def skip(self, seconds: float) -> None:
        self._skipped += seconds
        self._check_clock()

    async def _run_clock(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._check_clock()

    def _check_clock(self) -> None:
        now = self._now()
        if self._scan.running and now >= self._cycle_ends:
            self._cycle_ends = now + CYCLE_S
            self._scan.begin_cycle()
        for address, device in tuple(self._devices.items()):
            if device.temporary and not device.connected and now >= device.forget_at:
                del self._devices[address]
                self._objects.remove(device.path)

    # The adapter

    async def set_powered(self, on: bool) -> None:
        if on:
            self._objects.change(HCI0, Powered=True)
            return
        async with self._change:
            self._objects.change(HCI0, Powered=False)
            self.sessions.clear()
            await self._end_discovery()
            for device in tuple(self._devices.values()):
                with contextlib.suppress(CallError):
                    await device.disconnect()

    def _is_powered(self) -> bool:
        return bool((self._objects.properties(HCI0) or {}).get("Powered"))

    async def _start_discovery(self, sender: str) -> None:
        if not self._is_powered():
            raise CallError(NOT_READY, "Resource Not Ready")
        if sender in self.sessions:
            raise CallError(IN_PROGRESS, "Operation already in progress")
        self.sessions.add(sender)
        async with self._change:
            if self.sessions and not self._scan.running:
                self._cycle_ends = self._now() + CYCLE_S
                await self._scan.start()
                self._objects.change(HCI0, Discovering=True)

    async def _stop_discovery(self, sender: str) -> None:
        if not self._is_powered():
            raise CallError(NOT_READY, "Resource Not Ready")
        if sender not in self.sessions:
            raise CallError(FAILED, "No discovery started")
        self.sessions.discard(sender)
        async with self._change:
            if not self.sessions:
                await self._end_discovery()

    async def _end_discovery(self) -> None:
        await self._scan.stop()
        self._objects.change(HCI0, Discovering=False)
        for device in self._devices.values():
            device.end_discovery()

    def _on_found(self, heard: AdvertiserData) -> None:
        address = heard.address.to_string(False)
        device = self._devices.get(address)
        if device is None:
            device = RemoteDevice(self._objects, HCI0, address, self._space)
            self._devices[address] = device
        device.forget_at = self._now() + FORGET_S
        device.record(heard)

    def device_properties(self, address: str) -> dict[str, Any] | None:
        device = self._devices.get(address)
        found = self._objects.properties(device.path) if device else None
        return None if found is None else dict(found)

    # Calls

    def on_peer_gone(self, sender: str) -> None:
        """End the scan of a program that has gone; its connections stay."""
        if sender in self.sessions:
            self.sessions.discard(sender)
            if not self.sessions:
                asyncio.get_running_loop().create_task(self._end_discovery())

    async def answer(self, sender: str, call: Message) -> Answer:
        """Answer a call of ``org.bluez``."""
        member, path = call.member, call.path or ""
        if call.interface == OBJECT_MANAGER and member == "GetManagedObjects":
            return "a{oa{sa{sv}}}", [self._objects.list_all()]
        if self._objects.properties(path) is None:
            text = f'Method "{member}" with signature "{call.signature}" doesn\'t exist'
            raise CallError(_UNKNOWN_OBJECT, text)
        if errors := self.failing.get(str(member)):
            raise CallError(errors.pop(), "Operation failed")
        if path == HCI0:
            await self._answer_adapter(sender, str(member))
            return "", []
        device = next(one for one in self._devices.values() if path.startswith(one.path))
        if path == device.path:
            return await self._answer_device(device, str(member))
        return await _answer_value(device, sender, call, self._objects.interface(path))

    async def _answer_adapter(self, sender: str, member: str) -> None:
        if member == "StartDiscovery":
            await self._start_discovery(sender)
        elif member == "StopDiscovery":
            await self._stop_discovery(sender)
        elif member != "SetDiscoveryFilter":
            raise CallError(_UNKNOWN_METHOD, member)

    async def _answer_device(self, device: RemoteDevice, member: str) -> Answer:
        if not self._is_powered():
            raise CallError(NOT_READY, "Resource Not Ready")
        if member == "Connect":
            await device.connect()
        elif member == "Disconnect":
            await device.disconnect()
        else:
            raise CallError(_UNKNOWN_METHOD, member)
        return "", []


async def _answer_value(device: RemoteDevice, sender: str, call: Message, kind: str) -> Answer:
    path, member = str(call.path), call.member
    if member == "ReadValue":
        return "ay", [await device.read(path)]
    if member == "WriteValue":
        data, options = call.body
        command = (
            kind == CHARACTERISTIC and "type" in options and options["type"].value != "request"
        )
        await device.write(path, bytes(data), response=not command)
    elif member == "StartNotify":
        await device.start_notify(path, sender)
    elif member == "StopNotify":
        await device.stop_notify(path, sender)
    else:
        raise CallError(_UNKNOWN_METHOD, str(member))
    return "", []
