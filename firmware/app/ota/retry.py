# Pauses between the tries of a download. Loaded when a try has failed.

import asyncio

from micropython import const
from net.http import HttpError

from ota import schedule

_QUIET = const(2)  # tries without progress before Bluetooth is paused


# Pauses before the next try: from `backoff_ms` on, doubling (2 to 32 s by default). Raises an
# HttpError when no other try is due. `retries` is the number of tries without progress before
# this one.
async def pause(error, download, retries):
    beacon = download.beacon
    status = error.status
    # 401, 408 and 429 refuse this request only: another one may be accepted.
    if error.code == "timeout" or 400 <= status < 500 and status not in (401, 408, 429):
        raise error
    if not status:
        beacon.api.trust_address(False)
    pause = schedule.retry_pause(retries, beacon.store.policy("backoff_ms"))
    if pause is None:
        raise error
    pause = max(pause, 1000 * min(error.retry or 0, 3600))
    if download.ms_left() < pause:
        raise HttpError("timeout", "%s, then %s" % (error.code, error.detail))
    print("download:", error.code, error.detail)
    await asyncio.sleep_ms(pause)
    await beacon.wifi.wait_until_up(download.ms_left())
    if retries + 1 >= _QUIET and error.code in ("stall", "truncated", "connect"):
        beacon.radio.pause()
