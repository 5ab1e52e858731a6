"""How long calls took, in a table that does not grow with them."""

import math

_BASE = 1e-5  # seconds; everything below counts as this
_STEP = math.log(1.05)  # what is told is right to 5 %
_SIZE = 400


class LatencyHistogram:
    """A histogram with buckets that widen by 5 %."""

    def __init__(self) -> None:
        self._counts = [0] * _SIZE
        self.count = 0
        self.longest = 0.0

    def add_call(self, seconds: float) -> None:
        """Count one call."""
        index = int(math.log(seconds / _BASE) / _STEP) if seconds > _BASE else 0
        self._counts[min(index, _SIZE - 1)] += 1
        self.count += 1
        self.longest = max(self.longest, seconds)

    def quantile(self, part: float) -> float:
        """Return the seconds within which so large a part of the calls was answered."""
        left = part * self.count
        for index, count in enumerate(self._counts):
            left -= count
            if left <= 0 and count:
                return min(_BASE * math.exp((index + 1) * _STEP), self.longest)
        return self.longest

    def as_dict(self) -> dict[str, float]:
        """Return count, and milliseconds of p50, p99 and the longest."""
        return {
            "count": self.count,
            "p50_ms": round(self.quantile(0.5) * 1000, 2),
            "p99_ms": round(self.quantile(0.99) * 1000, 2),
            "max_ms": round(self.longest * 1000, 2),
        }
