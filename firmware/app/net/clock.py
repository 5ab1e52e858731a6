# UTC, as far as the beacon knows it: only an authenticated answer sets it, so whoever asks may
# rely on it. The esp32 port counts from 2000, others from 1970; nobody else needs to know.

import time

from micropython import const

_EPOCH = 946684800 if time.gmtime(0)[0] == 2000 else 0
_BUILT = const(1735689600)  # 2025: a clock that says less was never set
_JITTER = const(2)  # seconds; a network is no better


# UTC seconds since 1970, 0 while the clock is unset.
def utc():
    now = int(time.time()) + _EPOCH
    return now if now > _BUILT else 0


# For a request's timestamp, which needs some number even when the clock is unset.
def raw():
    return max(0, int(time.time()) + _EPOCH)


# `exact`: the orchestrator has refused a request for its time. Then a second counts: the
# next request has to be from the time told, or later.
def set(now, exact=False):
    if not _BUILT < now < 1 << 33 or abs(now - raw()) < _JITTER and not exact:
        return
    from machine import RTC

    year, month, day, hour, minute, second, weekday, _ = time.gmtime(now - _EPOCH)[:8]
    RTC().datetime((year, month, day, weekday, hour, minute, second, 0))
