"""A beacon that leaves one orchestrator in the middle of an attempt, and goes on at another."""

from collections.abc import Iterable, Mapping
from typing import Any

from .types import Attempt

WENT_ON = "the beacon went on with another attempt"
RUNS = "confirmed by its polls"


def went_on(attempt: Mapping[str, Any], others: Iterable[Mapping[str, Any]], end: float) -> bool:
    """Tell whether a beacon began another attempt after this one, and before ``end``.

    It does one thing at a time: so it was not silent, it had left this one.

    Args:
        attempt: ``id``, ``beacon_id``, ``offered_at`` and ``taken_at``, as a row has them.
        others: of any beacon; this attempt may be among them.
    """
    if attempt["taken_at"] is None:
        return False
    began = _began(attempt)
    return any(
        other["beacon_id"] == attempt["beacon_id"]
        and other["taken_at"] is not None
        and other["taken_at"] <= end
        and _began(other) > began
        for other in others
    )


def times_of(attempt: Attempt) -> Mapping[str, Any]:
    """Return what :func:`went_on` looks at."""
    names = ("id", "beacon_id", "offered_at", "taken_at")
    return {name: getattr(attempt, name) for name in names}


def _began(attempt: Mapping[str, Any]) -> tuple[float, float, str]:
    return attempt["taken_at"], attempt["offered_at"], attempt["id"]
