# Sends reports that have to be acknowledged before the attempt goes on: a halted rollout stops
# here. Only a 2xx answer allows the next step. 409 and 410 cancel the attempt; every other answer
# is retried, then fails.

import asyncio

from net.http import HttpError

from ota import schedule


async def report_until_acknowledged(beacon, attempt, status):
    tries = 0
    while True:
        try:
            taken = await attempt.reporter.send(attempt.reporter.build(status, attempt.record))
            break
        except HttpError as error:
            pause = schedule.retry_pause(tries, beacon.store.policy("backoff_ms"))
            if pause is None:
                raise HttpError(error.code, "report %s: %s" % (status, error.detail))
            tries += 1
            await asyncio.sleep_ms(pause)
    if not taken:
        attempt.cancel()
