"""Images without a release, and since when: they are kept for 30 days."""

import json
import math

from sqlalchemy import Connection

from beacon_ota.orchestrator.db.tables.changes import get_setting, set_setting

GRACE_S = 30 * 86400.0  # from the first start that found one to the one that removes it
_KEY = "images.orphans"  # the setting: JSON, digest -> UTC seconds of when it was found first


def mark_orphans(conn: Connection, found: set[str], now: float) -> set[str]:
    """Note the orphans of this start; return those whose time is over."""
    due, marks = select_due(_marks(get_setting(conn, _KEY)), found, now)
    set_setting(conn, _KEY, json.dumps(marks, sort_keys=True))
    return due


def select_due(
    marks: dict[str, float], found: set[str], now: float
) -> tuple[set[str], dict[str, float]]:
    """Return which orphans are to be removed, and the marks to keep.

    Args:
        marks: by digest, the time at which the image was first found, UTC seconds; a time in the
            future was set by a wrong clock, and the 30 days begin anew.
        found: the images to which no release refers now; the marks of all others are dropped.
    """
    kept = {digest: min(marks.get(digest, now), now) for digest in found}
    due = {digest for digest, at in kept.items() if now - at >= GRACE_S}
    return due, {digest: at for digest, at in kept.items() if digest not in due}


def _marks(text: str | None) -> dict[str, float]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        key: float(at)
        for key, at in found.items()
        if isinstance(at, int | float) and math.isfinite(at)
    }
