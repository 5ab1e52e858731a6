"""A virtual beacon: a chip with its flash, as tests, tools and campaigns handle it.

    flash = Flash.open(path)
    with VirtualBeacon(flash, network=network) as beacon:
        beacon.power_on()
        beacon.wait_for(lambda: "ready" in beacon.console, 10)
        beacon.power_cut()

The methods may be called from any thread; each hands its work to the event loop of the reactor.
"""

import time
from collections.abc import Callable

from beacon_ota.errors import ReachError, UsageError
from beacon_ota.virtual import peripherals
from beacon_ota.virtual.boot_record import BootRecord
from beacon_ota.virtual.clock import EPOCH
from beacon_ota.virtual.flash import bootloader
from beacon_ota.virtual.flash.nor import Flash
from beacon_ota.virtual.flash.nvs import Nvs
from beacon_ota.virtual.supervisor import ChipSupervisor


class VirtualBeacon(ChipSupervisor):
    """A chip with its flash; arguments and attributes as of :class:`ChipSupervisor`."""

    # Power

    def power_on(self) -> None:
        """Apply power and return at once; :meth:`wait_for` waits for the effect."""
        self._reactor.call(self._power_on)

    def power_cut(self) -> None:
        """Cut the power at once."""
        self._reactor.run(self._power_off())

    def close(self) -> None:
        """Cut the power and release everything but the flash."""
        if not self._closed:
            self._closed = True
            self.power_cut()
            self._reactor.call(self.bluetooth.close)

    def __enter__(self) -> "VirtualBeacon":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Observation

    @property
    def boot(self) -> BootRecord | None:
        """The present boot, or the last one."""
        return self.boots[-1] if self.boots else None

    @property
    def console(self) -> str:
        """The output of the present boot, or of the last one."""
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
        """Return the values in NVS by (namespace, key).

        Without power these are the values that a start would find, recovered on a copy, so that the
        flash stays as a power cut left it.
        """
        return self._reactor.call(self._read_settings)

    def setting(self, key: str, namespace: str = "beacon") -> int | bytes | None:
        """Return one value from NVS."""
        return self.settings().get((namespace, key))

    def wait_for(
        self, predicate: Callable[[], object], timeout: float = 10, what: str = ""
    ) -> None:
        """Wait until ``predicate()`` is true, at most ``timeout`` real seconds.

        The predicate is evaluated after every change of the beacon, and at least 20 times a second.

        Raises:
            ReachError: ``beacon_timeout``, with the end of the console in its message.
        """
        deadline = time.monotonic() + timeout
        while not predicate():
            if self._error is not None:
                raise RuntimeError("the supervisor failed") from self._error
            left = deadline - time.monotonic()
            if left <= 0:
                raise ReachError("beacon_timeout", self._describe_timeout(what, timeout))
            with self._condition:
                self._condition.wait(min(left, 0.05))

    # Inputs and faults

    def press(self, pin: int = peripherals.BUTTON, level: int = 0) -> None:
        """Drive an input pin; the default presses the boot button."""
        self._reactor.call(lambda: self.pins.drive_pin(pin, level, self._channel))

    def release(self, pin: int = peripherals.BUTTON, level: int = 1) -> None:
        """Drive the pin back to ``level``."""
        self.press(pin, level)

    def reset(self) -> None:
        """Pull the EN pin: a reset with the cause of a power-on that keeps RTC memory."""
        self._reactor.call(self._end_boot, "pin", "EN")

    def drop_wifi(self, reason: int = 200) -> None:
        """Break the WiFi connection once, with a reason code of ESP-IDF."""
        self._reactor.call(self.wlan.lose_connection, reason)

    def set_clock(self, unix: float) -> None:
        """Set the wall clock of the chip to a time (seconds since 1970), right or wrong."""
        self._reactor.call(self._set_wall_clock, unix)

    def skip_time(self, seconds: float) -> None:
        """Advance the clocks by ``seconds``, for tests that would otherwise wait long or race.

        Ticks and the wall clock show the new time at once; running sleeps, the watchdog and timers
        are not shortened.
        """
        self._reactor.call(self._skip_clocks, seconds)

    def flip_bits(self, flips: dict[int, int]) -> None:
        """Invert bits on reading, as offset → bits; replaces the flips set before."""
        self._reactor.call(self._set_flips, flips)

    def fill_nvs(self) -> None:
        """Fill NVS, see :meth:`.nvs.Nvs.fill_space`."""
        self._reactor.call(lambda: self._open_nvs().fill_space())

    def drain_nvs(self) -> None:
        """Free the space that :meth:`fill_nvs` took."""
        self._reactor.call(lambda: self._open_nvs().free_space())

    def wear_nvs(self, share: float) -> None:
        """Let a share of all changes of NVS fail, see :attr:`.nvs.Nvs.failure_share`."""
        self._reactor.call(self._set_nvs_failures, share)

    def _describe_timeout(self, what: str, timeout: float) -> str:
        ends = ", ".join(f"{boot.slot} {boot.ended or 'runs'}" for boot in self.boots[-8:])
        return (
            f"{self.name}: {what or 'the condition'} did not come true in {timeout:g} s\n"
            f"phase {self.phase}; boots: {ends}; console:\n{self.console[-4000:]}"
        )

    # In the event loop of the reactor

    def _open_nvs(self) -> Nvs:
        """Return NVS as the running app has it, or as the next boot finds it."""
        if self._app is not None and self._app.nvs is not None:
            return self._app.nvs
        part = bootloader.read_table(self.flash).nvs
        if part is None:
            raise UsageError("flash_no_nvs", "the partition table has no NVS")
        return Nvs(self.flash, part, faithful=self.faithful_nvs)

    def _set_nvs_failures(self, share: float) -> None:
        self._nvs_failure_share = share
        if self._app is not None and self._app.nvs is not None:
            self._app.nvs.failure_share = share

    def _read_settings(self) -> dict[tuple[str, str], int | bytes]:
        if self._app is not None and self._app.nvs is not None:
            return self._app.nvs.read_all()
        part = bootloader.read_table(self.flash).nvs
        if part is None:
            return {}
        return Nvs(Flash(self.flash.snapshot()), part, faithful=self.faithful_nvs).read_all()

    def _set_flips(self, flips: dict[int, int]) -> None:
        self.flash.faults.flips = flips
        if self._channel is not None:
            self._channel.queue_event("reads", not flips)

    def _set_wall_clock(self, unix: float) -> None:
        self.clock.wall = unix - EPOCH
        if self._channel is not None:
            self._channel.queue_event("clock", int(self.clock.wall * 1e6))

    def _skip_clocks(self, seconds: float) -> None:
        self.clock.skip_ahead(seconds)
        if self._app is not None and self._app.channel is not None:
            times = self._ticks_us(self._app), int(self.clock.wall * 1e6)
            self._app.channel.queue_event("jump", *times)
