"""When a beacon should poll again: spread over the fleet, the same for the same question.

Every beacon has its own moment within the polling period, drawn from its id. So a building that
comes back from a power cut asks all at once only the first time. Beacons that wait for the same
moment (a window that opens) are spread after it in the same way, drawn anew for each such moment.
"""

import hashlib
import math

PERIOD_S = 300.0
SPREAD_S = 60.0
FLOOR_S = 5.0


def poll_delay(
    beacon_id: str,
    now: float,
    *,
    until: float | None = None,
    period_s: float = PERIOD_S,
    spread_s: float = SPREAD_S,
    floor_s: float = FLOOR_S,
) -> float:
    """Return the seconds after which a beacon should poll again.

    Args:
        until: when the answer may change by itself (``Decision.again_at``).
        period_s: the ordinary pause between two polls. Without ``until`` the delay is at most 1.5
            times it; with ``until``, at most ``spread_s`` more.
        spread_s: over how long those who wait for the same moment are spread.
        floor_s: the shortest delay, unless the period is shorter.
    """
    phase = hash_to_unit(beacon_id) * period_s
    delay = (phase - now) % period_s
    if delay < period_s / 2:  # its own moment is close: take the next one
        delay += period_s
    if until is not None and until - now < delay:
        delay = max(until - now, 0.0) + hash_to_unit(beacon_id, math.floor(until)) * spread_s
    return max(delay, min(floor_s, period_s))


def hash_to_unit(*words: object) -> float:
    """Return a number in [0, 1) drawn from the words, the same for the same words."""
    digest = hashlib.sha256("\n".join(map(str, words)).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
