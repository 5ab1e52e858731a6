"""Counts failures per address and minute, in bounded memory."""

import time

from beacon_ota.orchestrator.limits import LIMITS

_WINDOW_S = 60.0


class Throttle:
    """Tells when an address has failed too often in the present minute.

    Args:
        limit: failures per minute.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._since = time.monotonic()
        self._failures: dict[str, int] = {}

    def count_failure(self, address: str) -> bool:
        """Count a failure of an address; True if it is over the limit of this minute."""
        self._start_window()
        if address not in self._failures and len(self._failures) >= LIMITS.refused_addresses:
            return True
        count = self._failures.get(address, 0) + 1
        self._failures[address] = count
        return count > self._limit

    def failures_of(self, address: str) -> int:
        """Return the failures of an address in this minute."""
        self._start_window()
        return self._failures.get(address, 0)

    def _start_window(self) -> None:
        now = time.monotonic()
        if now - self._since > _WINDOW_S:
            self._since = now
            self._failures.clear()
