# Takes the sectors of a release that are in flash already, by the plan (ota/plan.py). Loaded for
# that only.

import time

from micropython import const

from ota.slots import SECTOR

_TARGET = const(1)  # in a plan: the sector is right where it is
_TURN = const(12)  # ms after which other tasks may run


# Takes the sectors that are here, up to the next one that has to be downloaded. The first sector is
# written in any case: its first page has to become blank.
async def take(download, writer, slots):
    plan = download.plan
    size = download.size
    yielded = time.ticks_ms()
    while writer.written < size and plan[writer.written // SECTOR]:
        source = plan[writer.written // SECTOR]
        length = min(SECTOR, size - writer.written)
        if source == _TARGET and writer.written:
            writer.cost[1] += 1
            writer.written += length
        else:
            writer.write(length, slots[source - 1])
        if time.ticks_diff(time.ticks_ms(), yielded) >= _TURN:
            await download.pause(writer)
            yielded = time.ticks_ms()
    await download.pause(writer)
