# UTC as the beacon knows it. Only an authenticated answer sets the clock, so utc() can be relied
# on. The esp32 port counts seconds from 2000, others from 1970; only this module deals with that.
#
# The chip's clock can also hold a guessed date, which net/https.py needs; utc() does not return a
# guess. The mark that it is a guess is in the RTC's memory, behind the bytes of stage 0: like the
# clock it survives every reset but a power cut.

import time

from micropython import const

_EPOCH = 946684800 if time.gmtime(0)[0] == 2000 else 0
_BUILT = const(1735689600)  # 2025: a clock that says less was never set
_JITTER = const(2)  # seconds; a network is no better
_MARK = const(b"guess")
_STAGE0 = const(8)  # bytes of the RTC's memory that are stage 0's

_guessed = False


# Called once after a reset, before utc().
def begin():
    global _guessed
    from machine import RTC

    _guessed = RTC().memory()[_STAGE0:] == _MARK


def _store_mark(mark):
    from machine import RTC

    memory = RTC().memory
    kept = memory()[:_STAGE0]
    memory(kept + bytes(_STAGE0 - len(kept)) + mark)


# UTC seconds since 1970, 0 while the clock is unset.
def utc():
    now = int(time.time()) + _EPOCH
    return now if now > _BUILT and not _guessed else 0


# The chip's time in UTC seconds, set or not: a request's timestamp needs some number.
def unchecked():
    return max(0, int(time.time()) + _EPOCH)


# Sets an unset clock to a guessed date. The mark is written first: without it the guess would count
# as the time.
def set_guess(now):
    global _guessed
    if utc() or not _EPOCH <= now < 1 << 33:
        return
    _store_mark(_MARK)
    _guessed = True
    _set_chip_clock(now)


# Whether `now` can be the time: clocks that were never set say a time before 2025 or after 2242.
def is_plausible(now):
    return isinstance(now, int) and _BUILT < now < 1 << 33


# `exact`: the orchestrator refused a request because of its time. The clock is then set even if it
# is one second off, because the next request has to carry the told time or a later one.
def set(now, exact=False):
    global _guessed
    if not is_plausible(now):
        return
    if abs(now - unchecked()) < _JITTER and not exact and not _guessed:
        return
    _set_chip_clock(now)
    if _guessed:
        _store_mark(b"")
        _guessed = False


def _set_chip_clock(now):
    from machine import RTC

    year, month, day, hour, minute, second, weekday, _ = time.gmtime(now - _EPOCH)[:8]
    RTC().datetime((year, month, day, weekday, hour, minute, second, 0))
