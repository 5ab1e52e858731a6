"""A beacon that leaves one orchestrator in the middle of an attempt, and goes on at another."""

from collections.abc import Iterable, Mapping
from typing import Any

from .types import Attempt

# Clocks of two orchestrators differ by so much at most, when a success at one of them is compared
# with an attempt at the other.
MAX_CLOCK_DIFFERENCE_S = 300.0
DETAIL_MOVED_ON = "the beacon went on with another attempt"
DETAIL_RUNNING = "confirmed by its polls"


def moved_on(attempt: Mapping[str, Any], others: Iterable[Mapping[str, Any]], end: float) -> bool:
    """Tell whether a beacon went on with another attempt after this one, and before ``end``.

    It does one thing at a time: so it was not silent, it had left this one. Which came first is
    told by their times; where two clocks gave those, by a success with the same release, too: a
    beacon that runs it does not begin with it again.

    Args:
        attempt: what :func:`row_of` gives, or a row.
        others: of any beacon; this attempt may be among them.
        end: when it was given up, UTC seconds.
    """
    if attempt["taken_at"] is None:
        return False
    began = _began(attempt)
    return any(
        other["beacon_id"] == attempt["beacon_id"]
        and other["taken_at"] is not None
        and other["taken_at"] <= end
        and (_began(other) > began or _succeeded_beside(attempt, other))
        for other in others
    )


def row_of(attempt: Attempt) -> Mapping[str, Any]:
    """Return what :func:`moved_on` looks at."""
    names = ("id", "beacon_id", "firmware_id", "offered_at", "taken_at", "ended_at", "result")
    undone = {"late_result": None if attempt.undone_at is None else "rolled_back"}
    return {name: getattr(attempt, name) for name in names} | undone


def _succeeded_beside(attempt: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether another attempt at the release succeeded, and not before this one began."""
    return (
        other["id"] != attempt["id"]
        and other["firmware_id"] == attempt["firmware_id"]
        and other["result"] == "success"
        and other["late_result"] is None
        and other["ended_at"] >= attempt["taken_at"] - MAX_CLOCK_DIFFERENCE_S
    )


def _began(attempt: Mapping[str, Any]) -> tuple[float, float, str]:
    return attempt["taken_at"], attempt["offered_at"], attempt["id"]
