# The end of an attempt, with the reports that have to be acknowledged before it goes on: a halted
# rollout stops here. Only a 2xx answer allows the next step. 409 and 410 cancel the attempt; every
# other answer is retried, then fails.

import asyncio

from micropython import const
from net.http import HttpError

from ota import bootable, schedule

_FAREWELL = const(600)  # ms in which the air says that the beacon reboots
_REBOOTING = const(0xFF)


# Ends in a reset into the release in `slot`, whose head is still missing there.
async def finish(beacon, attempt, slot, head):
    attempt.save_status("verifying")
    await report_until_acknowledged(beacon, attempt, "verifying")
    # Traces of an earlier trial in otadata must not be taken for this attempt's.
    bootable.change_otadata(beacon.slots.erase_stale_entries)
    attempt.record["slot"] = slot
    attempt.save_status("rebooting")
    await report_until_acknowledged(beacon, attempt, "rebooting")
    beacon.radio.set_progress(_REBOOTING)
    await asyncio.sleep_ms(_FAREWELL)
    bootable.arm_slot(beacon, attempt, slot, head)


async def report_until_acknowledged(beacon, attempt, status):
    tries = 0
    while True:
        try:
            taken = await attempt.reporter.send(status, attempt.record)
            break
        except HttpError as error:
            pause = schedule.retry_pause(tries, beacon.store.policy("backoff_ms"))
            if pause is None:
                raise HttpError(error.code, "report %s: %s" % (status, error.detail))
            tries += 1
            await asyncio.sleep_ms(pause)
    if not taken:
        attempt.cancel()
