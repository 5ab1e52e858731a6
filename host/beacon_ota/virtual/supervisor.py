"""Supervises one virtual chip: bootloader, interpreter processes, and their operations.

The supervisor plays ROM and bootloader, starts the interpreter for the slot that they choose,
answers its operations, and derives the next reset cause from the way in which the interpreter
ended. Its methods run in the event loop of the reactor;
:class:`~beacon_ota.virtual.beacon.VirtualBeacon` offers them to other threads.
"""

import asyncio
import contextlib
import inspect
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from beacon_ota.errors import ReachError
from beacon_ota.virtual import peripherals
from beacon_ota.virtual.boot_record import CAUSES, FINAL, BootRecord
from beacon_ota.virtual.clock import VirtualClock
from beacon_ota.virtual.flash import bootloader
from beacon_ota.virtual.flash.bootloader import BootResult, NotBootable
from beacon_ota.virtual.flash.esp_errors import EspError
from beacon_ota.virtual.flash.nor import Flash, FlashError, PowerCut
from beacon_ota.virtual.flash.nvs import Nvs
from beacon_ota.virtual.flash.partition import Panic, Partitions
from beacon_ota.virtual.net.link import NetworkLink
from beacon_ota.virtual.net.network import Network
from beacon_ota.virtual.net.wlan import WlanStation
from beacon_ota.virtual.peripherals import ChipPeripherals, GpioPins, RtcMemory
from beacon_ota.virtual.process.channel import InterpreterChannel, Operation, Value
from beacon_ota.virtual.process.session import (
    HEAP_MISFIT,
    PROCESS_ENDED,
    SOFT_RESET,
    CpuUsage,
    InterpreterSession,
)
from beacon_ota.virtual.radio.vhci import BluetoothBackend, BluetoothPort, RadiolessBackend
from beacon_ota.virtual.reactor import Reactor

HEAP = 160 * 1024
CONSOLE_MAX = 256 * 1024  # characters kept of one boot
BOOTS_KEPT = 32  # boot records kept: a beacon may run for weeks
ESPRESSIF_OUI = b"\x7c\xdf\xa1"  # one of the prefixes assigned to Espressif


@dataclass
class _RunningApp:
    """The state of one boot of an app."""

    boot: BootRecord
    nvs: Nvs | None
    peripherals: ChipPeripherals
    ended: asyncio.Future[tuple[str, str]]
    session: InterpreterSession | None = None

    @property
    def channel(self) -> InterpreterChannel | None:
        return self.session.channel if self.session is not None else None


class ChipSupervisor:
    """A chip with its flash.

    Args:
        flash: the chip boots from it; the caller closes it.
        mac: address, 6 bytes; a random one by default.
        name: for logs and tables.
        network: the networks that its WiFi finds; none by default.
        bluetooth: the backend of the ``bluetooth`` module; by default one without a radio.
        scale: speed of its clocks relative to real time, 1 to 1000.
        uptime: seconds shown by ``ticks_ms()`` at the start of a boot; ticks wrap at 2**30 ms.
        heap: bytes of Python heap for beacon code.
        heap_watch: measure the heap in use, by collecting wherever beacon code waits.
        timing: let flash operations take the time of a real chip.
        rollback: whether bootloader and core have rollback, as stock builds do.
        faithful_nvs: model the defects of ESP-IDF's NVS recovery, see :mod:`.nvs`.
        console: called with every piece of output, in the thread of the reactor.

    Attributes:
        nvs_broken: NVS cannot be initialised in the following boots, as with a damaged partition.
        boots: the last 32 boots, the present one last.
        clock, pins, rtc, wlan, link, bluetooth, port: the parts of the chip.
    """

    def __init__(
        self,
        flash: Flash,
        *,
        mac: bytes | None = None,
        name: str = "beacon",
        network: Network | None = None,
        bluetooth: BluetoothBackend | None = None,
        scale: float = 1,
        uptime: float = 0,
        heap: int = HEAP,
        heap_watch: bool = False,
        timing: bool = False,
        rollback: bool = True,
        faithful_nvs: bool = True,
        console: Callable[[str], None] | None = None,
    ):
        self.flash = flash
        self.mac = mac or ESPRESSIF_OUI + secrets.token_bytes(3)
        self.name = name
        self.uptime = uptime
        self.heap = heap
        self.heap_watch = heap_watch
        self.timing = timing
        self.rollback = rollback
        self.faithful_nvs = faithful_nvs
        self.nvs_broken = False
        self._nvs_failure_share = 0.0
        self.boots: list[BootRecord] = []
        self.clock = VirtualClock(scale)
        self.rtc = RtcMemory()
        self.pins = GpioPins()
        self.port = BluetoothPort(
            self.mac[:5] + bytes([self.mac[5] + 2 & 255]), name, self._notify_waiters
        )
        self.bluetooth: BluetoothBackend = bluetooth or RadiolessBackend()
        self._reactor = Reactor.shared()
        self._console = console
        self._condition = threading.Condition()
        self._run_task: asyncio.Task[None] | None = None
        self._app: _RunningApp | None = None
        self._closed = False
        self._error: BaseException | None = None
        self._reactor.call(self._build_parts, network or Network())

    def _build_parts(self, network: Network) -> None:
        self.link = NetworkLink(network, self.clock)
        self.wlan = WlanStation(
            network, self.link, self.clock, self.mac, self._is_bluetooth_on, self._notify_waiters
        )
        self.link.on_wifi_lost = self.wlan.lose_connection
        self.bluetooth.attach(self.port)

    @property
    def powered(self) -> bool:
        """Whether it has power: False also after a fault of the flash cut it."""
        return self._run_task is not None and not self._run_task.done()

    @property
    def _channel(self) -> InterpreterChannel | None:
        return self._app.channel if self._app is not None else None

    def _is_bluetooth_on(self) -> bool:
        return bool(self.bluetooth.call("active", None))

    def _notify_waiters(self) -> None:
        with self._condition:
            self._condition.notify_all()

    def _ticks_us(self, app: "_RunningApp") -> int:
        """Return the ticks of a running app in microseconds."""
        return int((self.clock.now() - app.boot.began + self.uptime) * 1e6)

    def _power_on(self) -> None:
        if self._closed:
            raise ReachError("beacon_closed", f"{self.name} is closed")
        if not self.powered:
            boot = self._add_boot(peripherals.POWER_ON)
            self._run_task = self._reactor.loop.create_task(self._run_boots(boot))
            self._run_task.add_done_callback(self._on_run_end)

    def _on_run_end(self, life: asyncio.Task[None]) -> None:
        if not life.cancelled():
            self._error = life.exception()
        self._notify_waiters()

    async def _power_off(self) -> None:
        life = self._run_task
        if life is None or life.done():
            return
        self.flash.powered = False
        if self._app is not None:
            self._end_boot("power", "power cut")
        else:
            life.cancel()
        await asyncio.wait((life,))

    def _end_boot(self, how: str, detail: str) -> None:
        """End the present boot; of several reasons the first one is kept."""
        if self._app is not None and not self._app.ended.done():
            self._app.ended.set_result((how, detail))

    def _interpreter_usage(self) -> CpuUsage:
        session = self._app.session if self._app is not None else None
        return session.cpu_usage if session is not None else CpuUsage()

    def _on_operation_error(self, error: Exception) -> None:
        """End the boot: an operation raised a fault of the chip, or an error of the supervisor."""
        if isinstance(error, PowerCut):
            self._end_boot("power", "at a flash operation")
        elif isinstance(error, Panic):
            self._end_boot("panic", str(error))
        else:
            self._error = error
            self._end_boot("power", f"the supervisor failed: {error!r}")

    def _add_boot(self, cause: int) -> BootRecord:
        number = self.boots[-1].number + 1 if self.boots else 1
        boot = BootRecord(number, cause, self.clock.now(), self.flash.ops)
        self.boots = [
            *self.boots[1 - BOOTS_KEPT :],
            boot,
        ]  # a new list: another thread may read the old one
        return boot

    async def _run_boots(self, boot: BootRecord) -> None:
        """Run boot after boot until the power is off."""
        self.flash.power_on()
        self.clock.wall = 0
        self.rtc = RtcMemory()
        try:
            while True:
                await self._run_one_boot(boot)
                if boot.ended in FINAL:
                    return
                if boot.ended == "deepsleep":
                    await self._sleep_deeply(boot.detail)
                boot = self._add_boot(CAUSES[boot.ended or "crash"])
        finally:
            self.flash.powered = False

    async def _run_one_boot(self, boot: BootRecord) -> None:
        """Run one boot, from the bootloader to its end."""
        try:
            boot.ended, boot.detail = await self._boot_app(boot)
        except PowerCut:
            boot.ended, boot.detail = "power", "at a flash operation"
        except NotBootable as error:
            boot.ended, boot.detail = "unbootable", str(error)
        finally:
            boot.ended = boot.ended or "power"
            boot.duration = self.clock.now() - boot.began
            self.link.drop_connections()
            self.wlan.reset()
            self.bluetooth.reset()
            self._notify_waiters()

    async def _sleep_deeply(self, milliseconds: str) -> None:
        if not milliseconds:
            await asyncio.get_running_loop().create_future()  # until the power is cut
        await asyncio.sleep(self.clock.real_seconds(int(milliseconds) / 1000))

    async def _boot_app(self, boot: BootRecord) -> tuple[str, str]:
        booted = self._run_bootloader(boot)
        boot.slot, boot.log = booted.partition.name, booted.lines
        self.rtc.booted = booted
        nvs = None
        if booted.table.nvs is not None and not self.nvs_broken:
            # As on the chip: an error here appears when beacon code opens a namespace.
            with contextlib.suppress(EspError, FlashError):
                nvs = Nvs(self.flash, booted.table.nvs, faithful=self.faithful_nvs)
                nvs.failure_share = self._nvs_failure_share
        parts = ChipPeripherals(
            self.clock,
            self.rtc,
            self.pins,
            self.mac,
            boot.cause,
            self._end_boot,
            self._interpreter_usage,
        )
        app = _RunningApp(boot, nvs, parts, asyncio.get_running_loop().create_future())
        partitions = Partitions(
            self.flash, booted.table, booted.partition, nvs, rollback=self.rollback
        )
        operations = self._make_operations(app, partitions)
        self._app = app
        self._notify_waiters()
        try:
            while not app.ended.done():
                await self._run_interpreter(app, partitions.mounted, operations)
            return app.ended.result()
        finally:
            parts.close()
            self._app = None

    def _run_bootloader(self, boot: BootRecord) -> BootResult:
        """Choose the slot; a wake from deep sleep boots the same slot without a check."""
        if boot.cause == peripherals.DEEP_SLEEP and self.rtc.booted is not None:
            return replace(self.rtc.booted, lines=("wake",))
        while True:
            operations = self.flash.ops
            try:
                return bootloader.boot_from_flash(self.flash, rollback=self.rollback)
            except NotBootable:
                # The chip resets again and again; without a write the next attempt ends alike.
                if self.flash.ops == operations:
                    raise

    def _make_operations(self, app: _RunningApp, partitions: Partitions) -> dict[str, Operation]:
        """Return the operations that the stubs can call, by name."""
        timed = {name: self._delay_by_flash(call) for name, call in partitions.operations.items()}
        return {
            **timed,
            **app.peripherals.operations,
            **self.wlan.operations,
            "resolve": self.link.resolve_host,
            "ble": self.bluetooth.call,
            "heap": lambda used: self._record_heap(app, used),
            "phase": lambda phase: self._set_phase(app, phase),
            "corrupt": lambda: self._set_phase(app, "corrupt"),
        }

    def _set_phase(self, app: _RunningApp, phase: str) -> None:
        app.boot.phase = phase
        self._notify_waiters()

    def _record_heap(self, app: _RunningApp, used: int) -> None:
        assert app.session is not None
        boot = app.boot
        boot.heap = used - app.session.overhead
        boot.heap_peak = max(boot.heap_peak, boot.heap)
        boot.heap_low = min(boot.heap_low or boot.heap, boot.heap)

    def _delay_by_flash(self, operation: Operation) -> Operation:
        """Delay the answer by the time that the flash is busy."""
        if not self.timing:
            return operation

        async def call(*args: Value) -> Value:
            before = self.flash.busy
            result = operation(*args)
            await asyncio.sleep(self.clock.real_seconds(self.flash.busy - before))
            return await result if inspect.isawaitable(result) else result

        return call

    async def _run_interpreter(
        self, app: _RunningApp, label: str | None, operations: dict[str, Operation]
    ) -> None:
        """Run one interpreter until the boot ends or Python is restarted."""

        def start() -> Value:
            up = self._ticks_us(app)
            wall = int(self.clock.wall * 1e6)
            direct = not self.flash.faults.flips
            return (*self.clock.ratio, up, wall, direct, label, self.heap_watch)

        def printed(text: str) -> None:
            app.boot.console = (app.boot.console + text)[-CONSOLE_MAX:]
            if self._console is not None:
                self._console(text)
            self._notify_waiters()

        session = InterpreterSession(
            self.heap, self.flash.fileno(), operations, start, self._on_operation_error, printed
        )
        app.session = session
        app.peripherals.channel = self.port.channel = session.channel
        try:
            how = await session.run(app.ended)
        finally:
            app.session = app.peripherals.channel = self.port.channel = None
        if how == PROCESS_ENDED:
            self._end_boot("crash", f"the interpreter ended with {session.process.returncode}")
        elif how == SOFT_RESET:
            app.boot.soft_resets += 1
            app.peripherals.soft_reset()
            self.bluetooth.reset()
        if how in (HEAP_MISFIT, SOFT_RESET):
            self._set_phase(app, "boot")
