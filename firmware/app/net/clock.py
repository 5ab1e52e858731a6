# UTC, as far as the beacon knows it: only an authenticated answer sets it, so whoever asks may
# rely on it. The esp32 port counts from 2000, others from 1970; nobody else needs to know.
#
# The chip's clock can also hold a guess, for those who need some date (net/https.py). It is no time
# to anybody who asks here. That it is a guess lies in the RTC's memory, behind what stage 0 keeps
# there: like the clock it survives every reset, and is gone with the power.

import time

from micropython import const

_EPOCH = 946684800 if time.gmtime(0)[0] == 2000 else 0
_BUILT = const(1735689600)  # 2025: a clock that says less was never set
_JITTER = const(2)  # seconds; a network is no better
_MARK = const(b"guess")
_STAGE0 = const(8)  # bytes of the RTC's memory that are stage 0's

_guessed = False


# After a reset, before anybody asks.
def load_guess_mark():
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


# For a request's timestamp, which needs some number even when the clock is unset.
def unchecked():
    return max(0, int(time.time()) + _EPOCH)


# Lets a clock that is unset show a date. The mark comes first: without it a guess would be a time.
def set_guess(now):
    global _guessed
    if utc() or not _EPOCH <= now < 1 << 33:
        return
    _store_mark(_MARK)
    _guessed = True
    _set_chip_clock(now)


# Can this be the time? Before 2025, and after 2242, it is that of a clock that nobody has set.
def is_plausible(now):
    return isinstance(now, int) and _BUILT < now < 1 << 33


# `exact`: the orchestrator has refused a request for its time. Then a second counts: the
# next request has to be from the time told, or later.
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
