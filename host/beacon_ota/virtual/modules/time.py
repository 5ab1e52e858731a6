# `time` as on the esp32 port: seconds since 2000, ticks of 30 bits since the reset, and all of
# it faster when the supervisor says so.

import _chip
import utime
from micropython import const

_MASK = const(0x3FFFFFFF)
_HALF = const(0x20000000)
_EPOCH = const(946684800)  # 2000-01-01 in seconds since 1970

_real = utime.ticks_us
_start = _real()
_up = 0  # microseconds since the reset when this interpreter started
_wall = 0  # microseconds since 2000 at the same moment
_num = 1
_den = 1


# Sets scale (num/den), and where the clocks stand.
def _setup(num, den, up, wall):
    global _num, _den, _up, _wall, _start
    _num, _den, _up, _wall = num, den, up, wall
    _start = _real()


# Microseconds of virtual time since the interpreter started.
def _now():
    return (_real() - _start) * _num // _den


# Sets the wall clock, in microseconds since 2000.
def _set(wall):
    global _wall
    _wall = wall - _now()


# Sets the ticks, in microseconds since the reset, and the wall clock.
def _jump(up, wall):
    global _up
    _up = up - _now()
    _set(wall)


_chip.handlers["clock"] = _set
_chip.handlers["jump"] = _jump


def _micros():
    return _now() + _wall


# Real milliseconds to wait for `ms` virtual ones, rounded up.
def _shrink(ms):
    return -(-ms * _den // _num)


def ticks_ms():
    return (_now() + _up) // 1000 & _MASK


def ticks_us():
    return _now() + _up & _MASK


ticks_cpu = ticks_us


def ticks_add(ticks, delta):
    return ticks + delta & _MASK


def ticks_diff(ticks1, ticks2):
    return (ticks1 - ticks2 + _HALF & _MASK) - _HALF


def time():
    return _micros() // 1000000


def time_ns():
    return _micros() * 1000


def gmtime(secs=None):
    return utime.gmtime((time() if secs is None else int(secs)) + _EPOCH)[:8]


localtime = gmtime


def mktime(t):
    return int(utime.mktime(tuple(t[:8]))) - _EPOCH


# Sleeps while events are handled.
def _sleep(us):
    if _chip.watching:
        _chip.measure()
    end = _real() + us * _den // _num
    while True:
        left = end - _real()
        if left < 1000:
            if left > 0:
                utime.sleep_us(left)
            return
        _chip.wait(left // 1000)


def sleep_us(us):
    if us > 0:
        _sleep(us)


def sleep_ms(ms):
    if ms > 0:
        _sleep(ms * 1000)
    else:
        _chip.wait(0)


def sleep(secs):
    if secs < 0:
        raise ValueError("sleep length must be non-negative")
    _sleep(int(secs * 1000000))
