"""Reports changes of the beacons in range: found, changed, gone."""

from collections.abc import Iterator, Sequence

from beacon_ota.provision.sighting import Sighting

GONE_AFTER_S = 15.0  # of silence, then a beacon counts as gone: some renewals of the scan
MIN_RSSI_CHANGE_DB = 6  # by which the signal has to change to be worth a word


class ChangeTracker:
    """Compares the beacons with what was reported before, and reports the differences."""

    def __init__(self) -> None:
        self._last_reported: dict[str, dict[str, object]] = {}

    def update(self, beacons: Sequence[Sighting], now: float) -> Iterator[dict[str, object]]:
        """Give a dictionary for each beacon that came, changed or went.

        Args:
            beacons: all that were heard since the scan began.
            now: ``time.monotonic()``.

        Yields:
            What :meth:`Sighting.as_dict` says and ``event``: ``found``, ``changed``, ``gone``.
        """
        for beacon in beacons:
            facts = beacon.as_dict()
            before = self._last_reported.get(beacon.address)
            if now - beacon.seen > GONE_AFTER_S:
                if before is not None:
                    del self._last_reported[beacon.address]
                    yield {"event": "gone", **facts}
            elif before is None or _has_changed(before, facts):
                self._last_reported[beacon.address] = facts
                yield {"event": "found" if before is None else "changed", **facts}


def _has_changed(before: dict[str, object], after: dict[str, object]) -> bool:
    old, new = before["rssi"], after["rssi"]
    if isinstance(old, int) and isinstance(new, int):
        moved = abs(old - new) >= MIN_RSSI_CHANGE_DB
    else:
        moved = old != new
    return moved or any(before[name] != after[name] for name in after if name != "rssi")
