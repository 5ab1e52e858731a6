# Decides when the beacon polls, retries and installs: windows and pauses. Pure functions.

import os

from micropython import const
from wire.shapes import parse_window

_DAY = const(1440)  # minutes
_RETRIES = const(5)
_MISSED = const(60)  # s to the next poll, which names the next window
_MIN_POLL = const(5)  # s
_MAX_POLL = const(86400)
_MAX_RETRY_AFTER = const(3600)  # s
_MAX_FAIL = const(1920)  # s: 32 minutes between attempts (or reports) that keep failing


# Changes a pause by up to a quarter: the beacons of a building that comes back from a power cut
# must not act in step.
def add_jitter(value):
    return value * (192 + os.urandom(1)[0] // 2) // 256


# The pause in ms before retry n (0, 1, ...), from `first` on; None when there are no more.
def retry_pause(n, first):
    return add_jitter(first << n) if n < _RETRIES else None


# Seconds after the n-th failure in a row (1, 2, ...): `first`, twice that, and so on.
def failure_pause(n, first):
    return min(first << min(n - 1, 7), _MAX_FAIL)


# The pause before the next poll in seconds: what the server asked for, within bounds. `n`
# consecutive failed attempts stretch it, whatever the server asked for.
def poll_delay(asked, default, n=0, first=30):
    delay = default if asked is None else asked
    if n:
        delay = max(delay, failure_pause(n, first))
    return min(max(delay, _MIN_POLL), _MAX_POLL)


# Bounds the seconds of a Retry-After header. It is not signed: changing one answer must not make a
# beacon sleep for a day.
def cap_retry_after(asked, default):
    return asked if asked is None else min(asked, max(default, _MAX_RETRY_AFTER))


# Seconds until an offer may be installed, 0 for now. A window in the offer decides alone: the
# orchestrator, which has proved itself, knows how the building's clock goes today. The local
# window, from provisioning, holds back offers without one; they bring the present offset of the
# building's clock, `offset_min` is the one from provisioning.
def seconds_until_install(offer, now, local, offset_min):
    if offer["required"] or not now:
        return 0
    not_before = offer.get("not_before", 0)
    if now < not_before:
        return not_before - now
    not_after = offer.get("not_after", 0)
    if not_after and now >= not_after:
        return _MISSED
    local = parse_window(local)
    if not_before or not_after or not local:
        return 0
    second = (now + 60 * offer.get("utc_off", offset_min)) % (60 * _DAY)
    opens, closes = 60 * local[0], 60 * local[1]
    if opens <= second < closes or closes < opens and not closes <= second < opens:
        return 0
    return (opens - second) % (60 * _DAY)
