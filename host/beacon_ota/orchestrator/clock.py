"""Where the orchestrator's time comes from: one object, handed to whatever needs to know."""

import time


class Clock:
    """UTC in seconds since 1970, as a float; optionally running faster than the wall clock.

    A scaled clock starts at the wall clock's time, or at ``epoch``, and runs ``scale`` times as
    fast, so that a rollout of days can be watched in minutes.
    """

    def __init__(self, scale: float = 1.0, epoch: float | None = None):
        self.scale = scale
        self._wall = scale == 1.0 and epoch is None
        self._epoch = time.time() if epoch is None else epoch
        self._start = time.monotonic()

    def now(self) -> float:
        """Return the current time in UTC seconds."""
        if self._wall:
            return time.time()
        return self._epoch + (time.monotonic() - self._start) * self.scale

    def real(self, seconds: float) -> float:
        """Return how many wall-clock seconds pass while this clock runs ``seconds``."""
        return seconds / self.scale
