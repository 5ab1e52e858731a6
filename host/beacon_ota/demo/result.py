"""The measured result of a demonstration."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class UpdateMeasure:
    """What an update cost a beacon.

    Attributes:
        seconds: of the beacon's time, from the offer to the confirmed release.
        bytes_fetched: of the image and its block index.
        sectors_written: erased and programmed.
    """

    seconds: float
    bytes_fetched: int
    sectors_written: int


@dataclass
class DemoResult:
    """The result of a demonstration.

    Attributes:
        core: description of the interpreter in the releases.
        count: number of beacons.
        provisioned_s: seconds from connecting to the first authenticated poll, by beacon.
        heap_idle, heap_update: bytes in use while idle; bytes more at the most during an update.
        updates: what the update to the good release cost each beacon; it moves everything.
        hotfixes: what hotfixes of that release cost each beacon, by version.
        touched: beacons that were offered the bad release.
        rolled_back: number of those beacons that rolled back by themselves.
        trials: trial boots of the bad release, by beacon.
        versions: beacons by the version they run at the end.
        seconds: duration.
    """

    core: str = ""
    count: int = 0
    provisioned_s: list[float] = field(default_factory=list)
    heap_idle: int = 0
    heap_update: int = 0
    updates: list[UpdateMeasure] = field(default_factory=list)
    hotfixes: dict[str, list[UpdateMeasure]] = field(default_factory=dict)
    touched: int = 0
    rolled_back: int = 0
    trials: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    versions: dict[str, int] = field(default_factory=dict)
    release_bytes: int = 0
    app_bytes: int = 0
    seconds: float = 0.0


def measure_attempt(row: dict[str, Any]) -> UpdateMeasure:
    """Return what an attempt cost, as the API tells it."""
    from datetime import datetime

    begin, end = (datetime.fromisoformat(row[name]) for name in ("offered_at", "ended_at"))
    return UpdateMeasure(
        (end - begin).total_seconds(), row["bytes_fetched"] or 0, row["sectors_written"] or 0
    )


_NAMED = 3  # failures that are named


def describe_failures(rows: Iterable[dict[str, Any]]) -> str:
    """Return what the API's attempts of a rollout failed of: the first ones, and how many more."""
    failed = [row for row in rows if row["result"] not in (None, "", "open", "success")]
    texts = []
    for row in failed[:_NAMED]:
        why = "/".join(row[name] for name in ("stage", "code") if row.get(name))
        detail = f": {row['detail']}" if row.get("detail") else ""
        texts.append(f"{row['beacon_id']} {row['result']} {why}".rstrip() + detail)
    if len(failed) > _NAMED:
        texts.append(f"and {len(failed) - _NAMED} more")
    return "; ".join(texts) or "no failed attempt"
