"""Where the orchestrator's time comes from: one object, handed to whatever needs to know."""

import time


class Clock:
    """UTC in seconds since 1970, as a float; optionally running faster than the wall clock.

    A scaled clock starts at the wall clock's time and runs ``scale`` times as fast, so that a
    rollout of days can be watched in minutes.
    """

    def __init__(self, scale: float = 1.0):
        self.scale = scale
        self._epoch = time.time()
        self._start = time.monotonic()

    def now(self) -> float:
        """Return the current time in UTC seconds."""
        if self.scale == 1.0:
            return time.time()
        return self._epoch + (time.monotonic() - self._start) * self.scale

    def real(self, seconds: float) -> float:
        """Return how many wall-clock seconds pass while this clock runs ``seconds``."""
        return seconds / self.scale
