# Restarts tasks that die, and feeds the watchdog. A death is journalled, and the task is started
# again after a growing pause. A task that dies three times in a minute resets the chip, because
# only a reset can repair its memory or its driver. The watchdog is fed from the main loop, so code
# that blocks the loop for too long resets the chip as well.

import asyncio
import gc
import sys
import time

import machine
from micropython import const
from modules import use

_WDT = const(30000)  # ms
_FEED = const(2000)
_DEATHS = const(3)
_MINUTE = const(60000)
_MAX_PAUSE = const(60000)
_GARBAGE = const(24576)  # bytes between collections, or the heap grows into the radios' memory


class Supervisor:
    def __init__(self, journal):
        self._journal = journal
        self._wdt = machine.WDT(timeout=_WDT)
        self._recent = []
        self.deaths = 0  # of all tasks since boot; the health check requires 0
        gc.threshold(_GARBAGE)

    # `make` returns the task's coroutine, which is not meant to end.
    def start(self, name, make):
        asyncio.create_task(self._run_forever(name, make))

    async def _run_forever(self, name, make):
        pause = 1000
        while True:
            begun = time.ticks_ms()
            try:
                await make()
                why = "returned"
            except Exception as error:
                sys.print_exception(error)
                try:
                    why = use("describe", "describe", error)
                except MemoryError:
                    why = "MemoryError"
            now = time.ticks_ms()
            self.deaths += 1
            self._journal.write("task", name, why)
            self._count(name, now)
            if not 0 <= time.ticks_diff(now, begun) < _MINUTE:  # ticks wrap around
                pause = 1000
            await asyncio.sleep_ms(pause)
            pause = min(2 * pause, _MAX_PAUSE)

    def _count(self, name, now):
        self._recent = [one for one in self._recent if 0 <= time.ticks_diff(now, one[1]) < _MINUTE]
        self._recent.append((name, now))
        if sum(death[0] == name for death in self._recent) >= _DEATHS:
            self._journal.write("boot", "crash", "task %s died %d times" % (name, _DEATHS))
            machine.reset()

    def feed(self):
        self._wdt.feed()

    async def run(self):
        while True:
            self.feed()
            await asyncio.sleep_ms(_FEED)
