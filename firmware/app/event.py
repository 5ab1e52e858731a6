# An event that ends a pause. It stays set until somebody has waited for it: a set() that comes
# before the pause begins ends that pause at once. Whoever waits looks at what has changed after
# the pause, and not before it.

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
            pass  # nobody called
        self._event.clear()
