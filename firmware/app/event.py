# An event that ends a pause. It stays set until a task has waited for it, so a set() before the
# pause begins ends that pause at once. A waiting task must look for changes after the pause, not
# before it.

import asyncio


class AutoResetEvent:
    def __init__(self):
        self._event = asyncio.Event()

    def set(self):
        self._event.set()

    # Returns after `ms` at the latest.
    async def wait_ms(self, ms):
        try:
            await asyncio.wait_for_ms(self._event.wait(), ms)
        except asyncio.TimeoutError:
            pass  # no set() came
        self._event.clear()
