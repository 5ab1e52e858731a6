"""A virtual beacon: the chip around an interpreter.

    flash = Flash.open(path)
    with VirtualBeacon(flash, network=network) as beacon:
        beacon.power_on()
        beacon.wait_for(lambda: "ready" in beacon.console, 10)
        beacon.power_cut()

The supervisor plays ROM and bootloader, starts the interpreter for the slot they chose,
answers its calls, and decides from how it ended what the next boot is told. All of it runs in
the process's reactor; the methods below may be called from any other thread.
"""

import asyncio
import contextlib
import inspect
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from beacon_ota.errors import ReachError, UsageError
from beacon_ota.virtual import peripherals
from beacon_ota.virtual.clock import EPOCH, VirtualClock
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
BOOTS_KEPT = 32  # boots that are remembered: a beacon may run for weeks
ESPRESSIF_OUI = b"\x7c\xdf\xa1"  # one of Espressif's

# How a boot ended -> reset cause of the next one.
CAUSES = {
    "reset": peripherals.HARD,
    "panic": peripherals.HARD,
    "crash": peripherals.HARD,
    "watchdog": peripherals.WATCHDOG,
    "deepsleep": peripherals.DEEP_SLEEP,
    "pin": peripherals.POWER_ON,
}
FINAL = ("power", "unbootable")


@dataclass
class BootRecord:
    """One run between two resets.

    Attributes:
        number: from 1.
        cause: what ``machine.reset_cause()`` said at first.
        began: virtual seconds since the beacon was made.
        operations: flash operations before it began.
        slot: name of the partition that booted, None when nothing did.
        log: what the bootloader did.
        phase: ``boot`` (before boot.py), ``boot.py``, ``main.py``, ``repl``, ``corrupt``.
        ended: None while it runs, then ``reset``, ``pin`` (EN), ``panic``, ``watchdog``, ``power``,
            ``deepsleep``, ``crash`` (the interpreter itself ended), ``unbootable``.
        detail: a word about the end.
        soft_resets: restarts of Python within this boot.
        duration: virtual seconds.
        heap: bytes of heap in use, with ``heap_watch``; the stand-ins' share aside.
        heap_peak: the most of them since somebody set it to 0.
        heap_low: the least of them since somebody set it to 0.
        console: what it printed.
    """

    number: int
    cause: int
    began: float
    operations: int
    slot: str | None = None
    log: tuple[str, ...] = ()
    phase: str = "boot"
    ended: str | None = None
    detail: str = ""
    soft_resets: int = 0
    duration: float = 0.0
    heap: int = 0
    heap_peak: int = 0
    heap_low: int = 0
    console: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return the fields for ``--json``, the console aside."""
        return {key: value for key, value in vars(self).items() if key != "console"}


@dataclass
class _App:
    """What belongs to one boot of an app."""

    boot: BootRecord
    nvs: Nvs | None
    board: ChipPeripherals
    ended: asyncio.Future[tuple[str, str]]
    session: InterpreterSession | None = None

    @property
    def line(self) -> InterpreterChannel | None:
        return self.session.channel if self.session is not None else None


class VirtualBeacon:
    """A chip with its flash.

    Args:
        flash: what it boots from. It stays the caller's.
        mac: its address, 6 bytes; made up when absent.
        name: for logs and tables.
        network: what its WiFi finds; nothing when absent.
        bluetooth: what lies behind ``bluetooth``; advertising without listeners when absent.
        scale: how many times faster than real time its clocks run, 1 to 1000.
        uptime: seconds that ``ticks_ms()`` shows at the start of a boot; they wrap at 2**30 ms.
        heap: bytes of Python heap for beacon code.
        heap_watch: measure how much of it is in use, by collecting wherever beacon code waits.
        timing: let flash operations take a real chip's time.
        rollback: whether bootloader and core have rollback, as stock builds do.
        faithful_nvs: model the defects of ESP-IDF's NVS recovery, see :mod:`.nvs`.
        console: called with every piece of output, in the reactor's thread.

    Attributes:
        nvs_broken: NVS cannot be initialised in the boots to come, as with a damaged partition.
        boots: the last 32 boots since the beacon was made, the present one last.
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
        self._nvs_worn = 0.0
        self.boots: list[BootRecord] = []
        self.clock = VirtualClock(scale)
        self.rtc = RtcMemory()
        self.pins = GpioPins()
        self.port = BluetoothPort(self.mac[:5] + bytes([self.mac[5] + 2 & 255]), name, self._notify)
        self.bluetooth: BluetoothBackend = bluetooth or RadiolessBackend()
        self._reactor = Reactor.shared()
        self._console = console
        self._changed = threading.Condition()
        self._life: asyncio.Task[None] | None = None
        self._app: _App | None = None
        self._closed = False
        self._failure: BaseException | None = None
        self._reactor.call(self._build, network or Network())

    def _build(self, network: Network) -> None:
        self.link = NetworkLink(network, self.clock)
        self.wlan = WlanStation(
            network, self.link, self.clock, self.mac, self._bluetooth_on, self._notify
        )
        self.link.on_wifi_lost = self.wlan.lose_connection
        self.bluetooth.attach(self.port)

    # Power

    def power_on(self) -> None:
        """Apply power. Returns at once; :meth:`wait_for` what you need."""
        self._reactor.call(self._power_on)

    def power_cut(self) -> None:
        """Take the power away at this very moment."""
        self._reactor.run(self._power_off())

    def close(self) -> None:
        """Cut the power and let everything go but the flash."""
        if not self._closed:
            self._closed = True
            self.power_cut()
            self._reactor.call(self.bluetooth.close)

    def __enter__(self) -> "VirtualBeacon":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Looking

    @property
    def powered(self) -> bool:
        """Whether it has power: False also after a fault of the flash cut it."""
        return self._life is not None and not self._life.done()

    @property
    def boot(self) -> BootRecord | None:
        """The present boot, or the last one."""
        return self.boots[-1] if self.boots else None

    @property
    def console(self) -> str:
        """What the present boot printed, or the last one."""
        return self.boots[-1].console if self.boots else ""

    @property
    def phase(self) -> str:
        """``off`` (also while it sleeps deeply), or the phase of the present boot."""
        boot = self.boot
        return boot.phase if self.powered and boot and boot.ended is None else "off"

    @property
    def process(self) -> int | None:
        """Process id of the interpreter."""
        session = self._app.session if self._app is not None else None
        return session.process.pid if session is not None else None

    def settings(self) -> dict[tuple[str, str], int | bytes]:
        """Return what NVS holds, by (namespace, key).

        Without power this is what a start would find: on a copy, so that the flash stays as
        a power cut left it.
        """
        return self._reactor.call(self._settings)

    def setting(self, key: str, namespace: str = "beacon") -> int | bytes | None:
        """Return one value from NVS."""
        return self.settings().get((namespace, key))

    def wait_for(
        self, predicate: Callable[[], object], timeout: float = 10, what: str = ""
    ) -> None:
        """Wait until ``predicate()`` is true, at most ``timeout`` real seconds.

        It is evaluated after every change of the beacon, and at least 20 times a second.

        Raises:
            ReachError: ``beacon_timeout``, with the end of the console in its message.
        """
        deadline = time.monotonic() + timeout
        while not predicate():
            if self._failure is not None:
                raise RuntimeError("the supervisor failed") from self._failure
            left = deadline - time.monotonic()
            if left <= 0:
                raise ReachError("beacon_timeout", self._story(what, timeout))
            with self._changed:
                self._changed.wait(min(left, 0.05))

    # Acting

    def press(self, pin: int = peripherals.BUTTON, level: int = 0) -> None:
        """Drive an input pin; the default presses the boot button."""
        self._reactor.call(lambda: self.pins.drive_pin(pin, level, self._line))

    def release(self, pin: int = peripherals.BUTTON, level: int = 1) -> None:
        """Drive it back."""
        self.press(pin, level)

    def reset(self) -> None:
        """Pull the EN pin: a reset that is told like a power-on, but keeps RTC memory."""
        self._reactor.call(self._stop, "pin", "EN")

    def drop_wifi(self, reason: int = 200) -> None:
        """Let WiFi lose the connection once."""
        self._reactor.call(self.wlan.lose_connection, reason)

    def set_clock(self, unix: float) -> None:
        """Let the chip believe that it is this time (seconds since 1970), right or wrong."""
        self._reactor.call(self._set_clock, unix)

    def skip_time(self, seconds: float) -> None:
        """Let its clocks jump ahead, for tests that would otherwise wait long or race.

        Ticks and the wall clock show the time at once; what sleeps already sleeps on, and so do
        watchdog and timers.
        """
        self._reactor.call(self._skip, seconds)

    def flip_bits(self, flips: dict[int, int]) -> None:
        """Let flash bytes read wrong: offset → bits. Replaces what flipped before."""
        self._reactor.call(self._flip, flips)

    def fill_nvs(self) -> None:
        """Let NVS be full, see :meth:`.nvs.Nvs.fill`."""
        self._reactor.call(lambda: self._nvs().fill_space())

    def drain_nvs(self) -> None:
        """Let there be room in NVS again."""
        self._reactor.call(lambda: self._nvs().free_space())

    def wear_nvs(self, share: float) -> None:
        """Let this share of all changes of NVS fail from now on, see :attr:`.nvs.Nvs.worn`."""
        self._reactor.call(self._wear_nvs, share)

    # In the reactor

    def _nvs(self) -> Nvs:
        """NVS as the running app has it, or as the next boot finds it."""
        if self._app is not None and self._app.nvs is not None:
            return self._app.nvs
        part = bootloader.read_table(self.flash).nvs
        if part is None:
            raise UsageError("flash_no_nvs", "the partition table has no NVS")
        return Nvs(self.flash, part, faithful=self.faithful_nvs)

    def _wear_nvs(self, share: float) -> None:
        self._nvs_worn = share
        if self._app is not None and self._app.nvs is not None:
            self._app.nvs.failure_share = share

    @property
    def _line(self) -> InterpreterChannel | None:
        return self._app.line if self._app is not None else None

    def _bluetooth_on(self) -> bool:
        return bool(self.bluetooth.call("active", None))

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _story(self, what: str, timeout: float) -> str:
        ends = ", ".join(f"{boot.slot} {boot.ended or 'runs'}" for boot in self.boots[-8:])
        return (
            f"{self.name}: {what or 'what was waited for'} did not happen in {timeout:g} s\n"
            f"phase {self.phase}; boots: {ends}; console:\n{self.console[-4000:]}"
        )

    def _settings(self) -> dict[tuple[str, str], int | bytes]:
        if self._app is not None and self._app.nvs is not None:
            return self._app.nvs.read_all()
        part = bootloader.read_table(self.flash).nvs
        if part is None:
            return {}
        return Nvs(Flash(self.flash.snapshot()), part, faithful=self.faithful_nvs).read_all()

    def _flip(self, flips: dict[int, int]) -> None:
        self.flash.faults.flips = flips
        if self._line is not None:
            self._line.queue_event("reads", not flips)

    def _set_clock(self, unix: float) -> None:
        self.clock.wall = unix - EPOCH
        if self._line is not None:
            self._line.queue_event("clock", int(self.clock.wall * 1e6))

    def _skip(self, seconds: float) -> None:
        self.clock.skip_ahead(seconds)
        if self._app is not None and self._app.line is not None:
            times = self._uptime(self._app), int(self.clock.wall * 1e6)
            self._app.line.queue_event("jump", *times)

    def _uptime(self, app: "_App") -> int:
        """Return the microseconds that its ticks show."""
        return int((self.clock.now() - app.boot.began + self.uptime) * 1e6)

    def _power_on(self) -> None:
        if self._closed:
            raise ReachError("beacon_closed", f"{self.name} is closed")
        if not self.powered:
            boot = self._new_boot(peripherals.POWER_ON)
            self._life = self._reactor.loop.create_task(self._live(boot))
            self._life.add_done_callback(self._died)

    def _died(self, life: asyncio.Task[None]) -> None:
        if not life.cancelled():
            self._failure = life.exception()
        self._notify()

    async def _power_off(self) -> None:
        life = self._life
        if life is None or life.done():
            return
        self.flash.powered = False
        if self._app is not None:
            self._stop("power", "power cut")
        else:
            life.cancel()
        await asyncio.wait((life,))

    def _stop(self, how: str, detail: str) -> None:
        """End the present boot; the first reason counts."""
        if self._app is not None and not self._app.ended.done():
            self._app.ended.set_result((how, detail))

    def _ran(self) -> CpuUsage:
        session = self._app.session if self._app is not None else None
        return session.cpu_usage if session is not None else CpuUsage()

    def _failed(self, error: Exception) -> None:
        """An operation cannot be answered: the chip fails, or the supervisor does."""
        if isinstance(error, PowerCut):
            self._stop("power", "at a flash operation")
        elif isinstance(error, Panic):
            self._stop("panic", str(error))
        else:
            self._failure = error
            self._stop("power", f"the supervisor failed: {error!r}")

    def _new_boot(self, cause: int) -> BootRecord:
        number = self.boots[-1].number + 1 if self.boots else 1
        boot = BootRecord(number, cause, self.clock.now(), self.flash.ops)
        self.boots = [
            *self.boots[1 - BOOTS_KEPT :],
            boot,
        ]  # another list: others may be reading this one
        return boot

    async def _live(self, boot: BootRecord) -> None:
        """From power on to power off: boot after boot."""
        self.flash.power_on()
        self.clock.wall = 0
        self.rtc = RtcMemory()
        try:
            while True:
                await self._pass(boot)
                if boot.ended in FINAL:
                    return
                if boot.ended == "deepsleep":
                    await self._sleep(boot.detail)
                boot = self._new_boot(CAUSES[boot.ended or "crash"])
        finally:
            self.flash.powered = False

    async def _pass(self, boot: BootRecord) -> None:
        """One boot, from the bootloader to whatever ends it."""
        try:
            boot.ended, boot.detail = await self._boot(boot)
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
            self._notify()

    async def _sleep(self, milliseconds: str) -> None:
        if not milliseconds:
            await asyncio.get_running_loop().create_future()  # until the power is cut
        await asyncio.sleep(self.clock.real_seconds(int(milliseconds) / 1000))

    async def _boot(self, boot: BootRecord) -> tuple[str, str]:
        booted = self._bootloader(boot)
        boot.slot, boot.log = booted.partition.name, booted.lines
        self.rtc.booted = booted
        nvs = None
        if booted.table.nvs is not None and not self.nvs_broken:
            # As on the chip: what fails here shows when beacon code opens a namespace.
            with contextlib.suppress(EspError, FlashError):
                nvs = Nvs(self.flash, booted.table.nvs, faithful=self.faithful_nvs)
                nvs.failure_share = self._nvs_worn
        parts = ChipPeripherals(
            self.clock, self.rtc, self.pins, self.mac, boot.cause, self._stop, self._ran
        )
        app = _App(boot, nvs, parts, asyncio.get_running_loop().create_future())
        partitions = Partitions(
            self.flash, booted.table, booted.partition, nvs, rollback=self.rollback
        )
        operations = self._operations(app, partitions)
        self._app = app
        self._notify()
        try:
            while not app.ended.done():
                await self._interpret(app, partitions.mounted, operations)
            return app.ended.result()
        finally:
            parts.close()
            self._app = None

    def _bootloader(self, boot: BootRecord) -> BootResult:
        """Choose the slot; a wake from deep sleep goes on where it was, without a look."""
        if boot.cause == peripherals.DEEP_SLEEP and self.rtc.booted is not None:
            return replace(self.rtc.booted, lines=("wake",))
        while True:
            operations = self.flash.ops
            try:
                return bootloader.boot_from_flash(self.flash, rollback=self.rollback)
            except NotBootable:
                # The chip resets for ever; once nothing is written any more, nothing changes.
                if self.flash.ops == operations:
                    raise

    def _operations(self, app: _App, partitions: Partitions) -> dict[str, Operation]:
        """Everything that beacon code can ask for."""
        timed = {name: self._timed(call) for name, call in partitions.operations.items()}
        return {
            **timed,
            **app.board.operations,
            **self.wlan.operations,
            "resolve": self.link.resolve_host,
            "ble": self.bluetooth.call,
            "heap": lambda used: self._heap(app, used),
            "phase": lambda phase: self._enter(app, phase),
            "corrupt": lambda: self._enter(app, "corrupt"),
        }

    def _enter(self, app: _App, phase: str) -> None:
        app.boot.phase = phase
        self._notify()

    def _heap(self, app: _App, used: int) -> None:
        assert app.session is not None
        boot = app.boot
        boot.heap = used - app.session.overhead
        boot.heap_peak = max(boot.heap_peak, boot.heap)
        boot.heap_low = min(boot.heap_low or boot.heap, boot.heap)

    def _timed(self, operation: Operation) -> Operation:
        """Let the answer wait as long as the flash is busy."""
        if not self.timing:
            return operation

        async def call(*args: Value) -> Value:
            before = self.flash.busy
            result = operation(*args)
            await asyncio.sleep(self.clock.real_seconds(self.flash.busy - before))
            return await result if inspect.isawaitable(result) else result

        return call

    async def _interpret(
        self, app: _App, label: str | None, operations: dict[str, Operation]
    ) -> None:
        """One interpreter, until the boot ends or Python is restarted."""

        def start() -> Value:
            up = self._uptime(app)
            wall = int(self.clock.wall * 1e6)
            direct = not self.flash.faults.flips
            return (*self.clock.ratio, up, wall, direct, label, self.heap_watch)

        def printed(text: str) -> None:
            app.boot.console = (app.boot.console + text)[-CONSOLE_MAX:]
            if self._console is not None:
                self._console(text)
            self._notify()

        session = InterpreterSession(
            self.heap, self.flash.fileno(), operations, start, self._failed, printed
        )
        app.session = session
        app.board.channel = self.port.channel = session.channel
        try:
            how = await session.run(app.ended)
        finally:
            app.session = app.board.channel = self.port.channel = None
        if how == PROCESS_ENDED:
            self._stop("crash", f"the interpreter ended with {session.process.returncode}")
        elif how == SOFT_RESET:
            app.boot.soft_resets += 1
            app.board.soft_reset()
            self.bluetooth.reset()
        if how in (HEAP_MISFIT, SOFT_RESET):
            self._enter(app, "boot")
