"""The beacons' time: that of the orchestrator's answers, running as fast as its clock does."""

import asyncio
import time


class SwarmClock:
    """One clock for the whole swarm, in UTC seconds.

    Args:
        scale: how much faster than the wall clock it runs; the orchestrator's ``--time-scale``.
    """

    def __init__(self, scale: float = 1.0):
        self.scale = scale
        self.set_utc(time.time())

    def now(self) -> float:
        """Return the present time."""
        return self._utc + (time.monotonic() - self._at) * self.scale

    def set_utc(self, utc: float) -> None:
        """Go on from here: an authenticated answer said so."""
        self._utc, self._at = utc, time.monotonic()

    async def sleep_s(self, seconds: float) -> None:
        """Wait for so many seconds of this clock."""
        await asyncio.sleep(seconds / self.scale)
