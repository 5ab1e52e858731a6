# A report that has to be taken before the next step: a halted rollout stops here. An answer that is
# neither 2xx nor the word that it is over is no leave to go on, whatever it says.

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
