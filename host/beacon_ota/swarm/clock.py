"""The clock of the beacons: set by answers of the orchestrator, and scaled like its clock."""

import asyncio
import time


class SwarmClock:
    """One clock for the whole swarm, in UTC seconds.

    Args:
        scale: speed relative to the wall clock; ``--time-scale`` of the orchestrator.
    """

    def __init__(self, scale: float = 1.0):
        self.scale = scale
        self.set_utc(time.time())

    def now(self) -> float:
        """Return the present time."""
        return self._utc + (time.monotonic() - self._at) * self.scale

    def set_utc(self, utc: float) -> None:
        """Set the time to that of an authenticated answer."""
        self._utc, self._at = utc, time.monotonic()

    async def sleep_s(self, seconds: float) -> None:
        """Wait for ``seconds`` of this clock."""
        await asyncio.sleep(seconds / self.scale)
