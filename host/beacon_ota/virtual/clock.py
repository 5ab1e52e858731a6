"""Virtual time: real time, faster."""

import time
from fractions import Fraction

EPOCH = 946684800  # 2000-01-01, where the esp32 port counts from, in seconds since 1970


class VirtualClock:
    """Seconds of virtual time since it was made, ``scale`` times as fast as real time.

    Its wall clock is the chip's: it starts at 2000-01-01 and beacon code sets it.
    """

    def __init__(self, scale: float = 1):
        if not 1 <= scale <= 1000:
            raise ValueError("the time scale lies between 1 and 1000")
        ratio = Fraction(scale).limit_denominator(1000)
        self.ratio = ratio.numerator, ratio.denominator
        self.scale = float(ratio)
        self._start = time.monotonic()
        self._wall = 0.0  # seconds since 2000 at virtual time 0

    def now(self) -> float:
        """Return virtual seconds since the clock was made."""
        return (time.monotonic() - self._start) * self.scale

    def real_seconds(self, seconds: float) -> float:
        """Return how many real seconds ``seconds`` of virtual time take."""
        return seconds / self.scale

    def skip_ahead(self, seconds: float) -> None:
        """Jump ahead by so many virtual seconds."""
        self._start -= seconds / self.scale

    @property
    def wall(self) -> float:
        """Seconds since 2000 as the chip believes."""
        return self._wall + self.now()

    @wall.setter
    def wall(self, value: float) -> None:
        self._wall = value - self.now()

    @property
    def unix(self) -> float:
        """The same in seconds since 1970."""
        return self.wall + EPOCH
