# `machine`: resets, timers, pins, watchdog and clock. A reset never returns: the supervisor does
# not answer that call, it ends this interpreter.

import _chip
import time
from micropython import const

PWRON_RESET = const(1)
HARD_RESET = const(2)
WDT_RESET = const(3)
DEEPSLEEP_RESET = const(4)
SOFT_RESET = const(5)
SLEEP = const(2)
DEEPSLEEP = const(4)
PIN_WAKE = const(2)
TIMER_WAKE = const(4)

_PINS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 20, 21)  # of a stock C3 build
_EPOCH = const(946684800)


def reset():
    _chip.call("reset")


def soft_reset():
    raise SystemExit


def reset_cause():
    return _chip.call("reset_cause")


def wake_reason():
    return _chip.call("wake_reason")


def unique_id():
    return _chip.call("unique_id")


def freq(hz=None):
    if hz is None:
        return 160000000
    if hz not in (20000000, 40000000, 80000000, 160000000):
        raise ValueError("frequency must be 20MHz, 40MHz, 80Mhz or 160MHz")


def idle():
    _chip.wait(0)


def lightsleep(ms=None):
    time.sleep_ms(ms) if ms is not None else _chip.wait(-1)


def deepsleep(ms=None):
    _chip.call("deepsleep", ms)


def disable_irq():
    _chip.held += 1
    return _chip.held - 1


def enable_irq(state=0):
    _chip.held = state
    if not state:
        _chip.run(None)


class WDT:
    def __init__(self, id=0, timeout=5000):
        if id != 0:
            raise ValueError
        if timeout <= 0:
            raise ValueError("WDT timeout too short")
        _chip.call("wdt", timeout)

    def feed(self):
        _chip.call("feed")


class RTC:
    def init(self, date):
        y, m, d, hh, mm, ss = date[:6]
        self._store(y, m, d, hh, mm, ss, date[7] if len(date) > 7 else 0)

    def datetime(self, date=None):
        if date is None:
            us = time._micros()
            t = time.gmtime(us // 1000000)
            return t[:3] + (t[6],) + t[3:6] + (us % 1000000,)
        y, m, d, _, hh, mm, ss, us = date
        self._store(y, m, d, hh, mm, ss, us)

    def _store(self, y, m, d, hh, mm, ss, us):
        wall = time.mktime((y, m, d, hh, mm, ss, 0, 0)) * 1000000 + us
        time._set(wall)
        _chip.call("rtc_set", wall)

    def memory(self, data=None):
        if data is None:
            return _chip.call("rtc_memory", None)
        _chip.call("rtc_memory", bytes(data))


# Software timers; the esp32 port schedules their callbacks, so they come between bytecodes.
class Timer:
    ONE_SHOT = 0
    PERIODIC = 1
    _live = {}
    _next = 2

    def __init__(self, id=-1, **options):
        if id < -1 or id > 1:
            raise ValueError("Timer doesn't exist")
        if id < 0:
            id = Timer._next
            Timer._next += 1
        self._id = id
        self._callback = None
        if options:
            self.init(**options)

    def init(self, mode=1, callback=None, period=0, tick_hz=1000, freq=None, hard=False):
        if hard:
            raise ValueError("hard Timers are not implemented")
        us = int(1000000 / freq) if freq is not None else period * 1000000 // tick_hz
        if us <= 0:
            raise ValueError("Timer period is too short for this timer")
        self._callback = callback
        Timer._live[self._id] = self
        _chip.call("timer", self._id, us, bool(mode))

    def deinit(self):
        if Timer._live.pop(self._id, None):
            _chip.call("timer", self._id, 0, False)

    @staticmethod
    def _fire(id, last):
        timer = Timer._live.get(id)
        if timer is None:
            return
        if last:
            del Timer._live[id]
        if timer._callback:
            timer._callback(timer)


class Pin:
    IN = 1
    OUT = 3
    OPEN_DRAIN = 7
    PULL_DOWN = 1
    PULL_UP = 2
    IRQ_RISING = 1
    IRQ_FALLING = 2
    _live = {}

    def __init__(self, id, mode=-1, pull=-1, value=None, **options):
        if id not in _PINS:
            raise ValueError("invalid pin")
        self._id = id
        self._handler = None
        self.init(mode, pull, value)

    def init(self, mode=-1, pull=-1, value=None, **options):
        pull = 0 if pull is None else pull
        _chip.call("pin", self._id, mode, pull, None if value is None else int(bool(value)))

    def value(self, x=None):
        if x is None:
            return _chip.call("pin_read", self._id)
        _chip.call("pin_write", self._id, int(bool(x)))

    def __call__(self, x=None):
        return self.value(x)

    def on(self):
        self.value(1)

    def off(self):
        self.value(0)

    def irq(self, handler=None, trigger=3, wake=None):
        self._handler = handler
        Pin._live[self._id] = self
        _chip.call("pin_irq", self._id, trigger if handler else 0)
        return self

    def __repr__(self):
        return "Pin(%d)" % self._id

    @staticmethod
    def _fire(id):
        pin = Pin._live.get(id)
        if pin is not None and pin._handler:
            pin._handler(pin)


_chip.handlers["timer"] = Timer._fire
_chip.handlers["pin"] = Pin._fire
