"""What surrounds the CPU: reset line, watchdog, clock, timers, pins.

``machine`` of the esp32 port, from the supervisor's side. Times that beacon code passes are in
its own time; :class:`~beacon_ota.virtual.clock.Clock` makes real time of them.
"""

import asyncio
from collections.abc import Callable

from beacon_ota.virtual.clock import VirtualClock
from beacon_ota.virtual.flash.bootloader import BootResult
from beacon_ota.virtual.process.channel import InterpreterChannel, InterpreterGone, Operation, Value
from beacon_ota.virtual.process.session import CpuUsage

POWER_ON, HARD, WATCHDOG, DEEP_SLEEP, SOFT = 1, 2, 3, 4, 5  # machine.reset_cause()
RTC_MEMORY = 2048  # bytes that survive every reset but a power cut
BUTTON = 9  # the C3's boot button: pulled up, pressed is 0
RISING, FALLING = 1, 2
NEGLIGIBLE_S = 0.02  # seconds that make no difference

Stop = Callable[[str, str], None]


class RtcMemory:
    """What keeps its content while the chip has power."""

    def __init__(self) -> None:
        self.memory = b""
        self.booted: BootResult | None = None  # where a wake from deep sleep goes on


class GpioPins:
    """GPIO levels. Outputs are set by beacon code, inputs from outside."""

    def __init__(self, count: int = 22):
        self.levels = dict.fromkeys(range(count), 0)
        self.levels[BUTTON] = 1
        self._driven: dict[int, int] = {BUTTON: 1}
        self._triggers: dict[int, int] = {}

    def reset(self) -> None:
        """Forget what beacon code configured."""
        self._triggers.clear()
        for number in self.levels:
            self.levels[number] = self._driven.get(number, 0)

    def configure_pin(self, number: int, mode: int, pull: int, value: int | None) -> None:
        """``Pin(...)``: pulls set the level of what nobody drives."""
        if value is not None:
            self.levels[number] = value
        elif number not in self._driven and pull in (1, 2):
            self.levels[number] = pull - 1

    def drive_pin(self, number: int, level: int, line: InterpreterChannel | None) -> None:
        """Set an input from outside; calls the handler that waits for this edge."""
        before = self.levels[number]
        self._driven[number] = self.levels[number] = level
        edge = RISING if level > before else FALLING if level < before else 0
        if line is not None and edge & self._triggers.get(number, 0):
            line.queue_event("pin", number, once=True)

    def set_trigger(self, number: int, trigger: int) -> None:
        """``Pin.irq``."""
        self._triggers[number] = trigger


class ChipPeripherals:
    """The peripherals during one run of an interpreter.

    Args:
        clock: the beacon's time.
        rtc: what survives a reset.
        pins: the GPIOs.
        mac: the chip's address, 6 bytes.
        cause: what ``machine.reset_cause()`` says.
        stop: ends the interpreter; told how and why.
        ran: how it is with the interpreter's process, see :class:`Ran`.
    """

    def __init__(
        self,
        clock: VirtualClock,
        rtc: RtcMemory,
        pins: GpioPins,
        mac: bytes,
        cause: int,
        stop: Stop,
        ran: Callable[[], CpuUsage],
    ):
        self._clock, self._rtc, self._pins = clock, rtc, pins
        self._mac, self._stop, self._read_usage = mac, stop, ran
        self.cause = cause
        self.channel: InterpreterChannel | None = None
        self.temperature = 38
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._watchdog: asyncio.TimerHandle | None = None
        self._timeout = 0.0
        self._last_usage = CpuUsage()  # the process when it was fed, or looked at last
        self._unfed_s = 0.0  # real seconds that it had and did not feed

    @property
    def operations(self) -> dict[str, Operation]:
        """What the stand-in ``machine`` calls."""
        return {
            "reset": self._reset_chip,
            "deepsleep": self._enter_deepsleep,
            "reset_cause": lambda: self.cause,
            "wake_reason": lambda: 4 if self.cause == DEEP_SLEEP else 0,
            "unique_id": lambda: self._mac,
            "wdt": self._start_watchdog,
            "feed": self._feed_watchdog,
            "rtc_set": self._rtc_set,
            "rtc_memory": self._rtc_memory,
            "timer": self._set_timer,
            "pin": self._pins.configure_pin,
            "pin_read": lambda number: self._pins.levels[number],
            "pin_write": self._pins.levels.__setitem__,
            "pin_irq": self._pins.set_trigger,
            "temperature": lambda: self.temperature,
            "idf_heap": lambda capabilities: IDF_HEAP,
        }

    @property
    def watchdog_running(self) -> bool:
        """Whether the watchdog runs."""
        return self._watchdog is not None

    def soft_reset(self) -> None:
        """Forget the interpreter's timers; the watchdog runs on."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._pins.reset()
        self.cause = SOFT

    def close(self) -> None:
        """Stop everything."""
        self.soft_reset()
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _reset_chip(self) -> Value:
        self._stop("reset", "machine.reset()")
        raise InterpreterGone

    def _enter_deepsleep(self, ms: int | None) -> Value:
        self._stop("deepsleep", "" if ms is None else str(ms))
        raise InterpreterGone

    def _start_watchdog(self, timeout: int) -> None:
        self._timeout = timeout / 1000
        self._feed_watchdog()

    def _feed_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._last_usage, self._unfed_s = self._read_usage(), 0.0
        self._arm_watchdog(self._clock.real_seconds(self._timeout))

    def _arm_watchdog(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._watchdog = loop.call_later(seconds, self._check_watchdog, loop.time(), seconds)

    def _check_watchdog(self, since: float, after: float) -> None:
        """End it when it had its time; what this busy machine did not let it run does not count."""
        now, before = self._read_usage(), self._last_usage
        timeout = self._clock.real_seconds(self._timeout)
        passed = asyncio.get_running_loop().time() - since
        waited = now.waited - before.waited
        # Somebody who is ready may be waiting for a CPU at this moment: only what it ran is sure.
        self._unfed_s += now.cpu - before.cpu if now.ready else max(0.0, passed - waited)
        self._last_usage = now
        if passed - after > NEGLIGIBLE_S:
            # Late ourselves: it may have called, and nobody has looked yet.
            self._unfed_s = min(self._unfed_s, timeout - 2 * NEGLIGIBLE_S)
        left = timeout - self._unfed_s
        if left > NEGLIGIBLE_S:
            self._arm_watchdog(left)
        else:
            self._stop("watchdog", f"not fed for {self._timeout:g} s")

    def _rtc_set(self, wall: int) -> None:
        self._clock.wall = wall / 1e6

    def _rtc_memory(self, data: bytes | None) -> Value:
        if data is None:
            return self._rtc.memory
        if len(data) > RTC_MEMORY:
            raise ValueError("buffer too long")
        self._rtc.memory = data
        return None

    def _set_timer(self, number: int, period: int, repeat: bool) -> None:
        old = self._timers.pop(number, None)
        if old is not None:
            old.cancel()
        if self.channel is not None:
            self.channel.cancel_events("timer", number)
        if period:
            loop = asyncio.get_running_loop()
            self._arm_timer(number, loop.time(), self._clock.real_seconds(period / 1e6), repeat)

    def _arm_timer(self, number: int, start: float, period: float, repeat: bool) -> None:
        loop = asyncio.get_running_loop()
        due = start + period
        self._timers[number] = loop.call_at(due, self._fire_timer, number, due, period, repeat)

    def _fire_timer(self, number: int, due: float, period: float, repeat: bool) -> None:
        if repeat:
            now = asyncio.get_running_loop().time()
            self._arm_timer(number, max(due, now - period), period, repeat)
        else:
            del self._timers[number]
        if self.channel is not None:
            self.channel.queue_event("timer", number, not repeat, once=True)


# (total, free, largest free block, minimum free) of the IDF heaps of a stock C3 with WiFi up.
IDF_HEAP: Value = ((121328, 42256, 31744, 38912), (12756, 11392, 11264, 11392))
