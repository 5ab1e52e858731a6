"""Merges what two orchestrators know of one attempt. Pure; order and repetition do not matter.

Each of them may have heard what the other has not, and each may have been restored from an older
copy. So neither version is the newer one, and both are taken for true:

* A beacon's report beats a conclusion that was drawn without hearing the beacon.
* Of two reports of a beacon the earlier one is the result, and the other came late.
* An attempt that was called off was not lost, and a lost attempt is not under way any more.
"""

from collections.abc import Iterable

from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.db.tables.attempts import MEASURED, REPORTED

_CAUSE = ("failed_in", "code", "detail")
_OFFER = ("wave", "stage", "site", "from_version", "from_image", "offered_at")
_FAR = float("inf")
# The order in which results are believed. An attempt that the beacon began has not expired.
_RANK = {**dict.fromkeys(REPORTED, 0), "stopped": 1, "lost": 2, None: 3, "expired": 4}
MERGED = (
    *_OFFER,
    *("taken_at", "rebooting_at", "result", "ended_at", *_CAUSE),
    *("late_result", "late_at", "blamed_at", *MEASURED),
)


def merge_attempts(mine: Fields, theirs: Fields) -> Fields:
    """Return ``mine`` with the additional facts of ``theirs``; both are rows of one attempt.

    The owner (``mirror``) and the number stay those of ``mine``.
    """
    pair = sorted((mine, theirs), key=_order)
    offer = max(pair, key=lambda row: row["offered_at"])
    # An expired offer was renewed: its earlier expiry does not end the attempt.
    if any(row["offered_at"] != offer["offered_at"] for row in pair):
        pair = [_renewed(row, offer["offered_at"]) for row in pair]
    taken = _least(pair, "taken_at")
    if taken is not None:
        pair = [_renewed(row, _FAR) for row in pair]
    first = min(pair, key=_first)
    late = _late(pair, first)
    undone = first["result"] == "success" and late is not None and late[0] == "rolled_back"
    cause = next(row for row in pair if _went_back(row)) if undone else first
    found = {name: offer[name] for name in _OFFER}
    found |= {"taken_at": taken, "rebooting_at": _least(pair, "rebooting_at")}
    found |= {"result": first["result"], "ended_at": first["ended_at"]}
    found |= {name: cause[name] for name in _CAUSE}
    found |= dict(zip(("late_result", "late_at"), late or (None, None), strict=True))
    found["blamed_at"] = max((at for row in pair if (at := row["blamed_at"])), default=None)
    for name in MEASURED:
        others = (row[name] for row in sorted(pair, key=_first))
        found[name] = next((value for value in others if value is not None), None)
    return {**mine, **found}


def says_all_of(row: Fields, other: Fields) -> bool:
    """Tell whether a row contains every fact of another row of the same attempt."""
    merged = merge_attempts(row, other)
    return all(merged[name] == row[name] for name in MERGED)


def _renewed(row: Fields, offered_at: float) -> Fields:
    """Return a row without its expiry, if the other row shows the offer renewed or begun."""
    if row["result"] != "expired" or row["offered_at"] == offered_at:
        return row
    word = {"result": row["late_result"], "ended_at": row["late_at"]}
    return {**row, **word, "late_result": None, "late_at": None}


def _went_back(row: Fields) -> bool:
    return "rolled_back" in (row["result"], row["late_result"])


def _late(pair: Iterable[Fields], first: Fields) -> tuple[str, float] | None:
    """Return the late result and its time: a roll-back if there is one, else the earliest."""
    words: list[tuple[str, float]] = []
    for row in pair:
        for how, when in (("result", "ended_at"), ("late_result", "late_at")):
            word = row[how]
            if word in REPORTED and word != first["result"]:
                words.append((word, row[when] or 0.0))
    return min(words, key=lambda one: (one[0] != "rolled_back", one[1], one[0]), default=None)


def _first(row: Fields) -> tuple[int, float, str]:
    return _RANK[row["result"]], row["ended_at"] or _FAR, row["result"] or ""


def _least(pair: Iterable[Fields], name: str) -> float | None:
    return min((row[name] for row in pair if row[name] is not None), default=None)


def _order(row: Fields) -> tuple[str, ...]:
    """Return a sort key, so that the order of the two arguments does not matter."""
    return tuple(repr(row[name]) for name in MERGED)
