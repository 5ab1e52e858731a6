"""The orchestrator's time: one clock, handed to every part that needs it, and ISO 8601."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

JUMP_S = 60.0  # a clock that is being disciplined moves by less
_LAST = 253402300799.0  # of the year 9999; a beacon's clock may be further


class ClockJumpDetector:
    """Notices when UTC jumps: somebody has set the clock, or the machine was asleep.

    Args:
        wall: UTC seconds; steady: seconds of a clock that nobody sets.

    Attributes:
        landed: UTC seconds; whatever is stamped later than this came after the last leap.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ):
        self._wall, self._steady = wall, steady
        self._seen = wall()
        self._offset = self._seen - steady()
        self.landed_at = self._seen

    def take_jump(self) -> float:
        """Return by how many seconds UTC has jumped since the last call; 0 for less than a leap."""
        wall = self._wall()
        offset = wall - self._steady()
        leap = offset - self._offset
        before, self._seen, self._offset = self._seen, wall, offset
        if abs(leap) < JUMP_S:
            return 0.0
        self.landed_at = min(before + leap, wall)
        return leap


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

    def real_seconds(self, seconds: float) -> float:
        """Return how many wall-clock seconds pass while this clock runs ``seconds``."""
        return seconds / self.scale


def format_iso(at: float | None) -> str | None:
    """Return UTC seconds in ISO 8601."""
    if at is None:
        return None
    second, fraction = divmod(round(min(at, _LAST) * 1e6), 1_000_000)
    return f"{_second(second)}.{fraction // 1000:03}+00:00"


@lru_cache(4096)
def _second(at: int) -> str:
    """A listing has thousands of times, most of them in few seconds."""
    return datetime.fromtimestamp(at, UTC).isoformat()[:19]
