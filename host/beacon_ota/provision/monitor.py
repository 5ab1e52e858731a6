"""What there is to tell about the beacons in range, as it changes."""

from collections.abc import Iterator, Sequence

from beacon_ota.provision.scan import Sighting

GONE_S = 10.0  # of silence, then a beacon counts as gone
STEP_DB = 6  # by which the signal has to change to be worth a word


class ChangeTracker:
    """Remembers what was told, and gives what is new."""

    def __init__(self) -> None:
        self._told: dict[str, dict[str, object]] = {}

    def update(self, beacons: Sequence[Sighting], now: float) -> Iterator[dict[str, object]]:
        """Give a dictionary for each beacon that came, changed or went.

        Args:
            beacons: all that were ever heard of.
            now: ``time.monotonic()``.

        Yields:
            What :meth:`Sighting.as_dict` says and ``event``: ``found``, ``changed``, ``gone``.
        """
        for beacon in beacons:
            facts = beacon.as_dict()
            before = self._told.get(beacon.address)
            if now - beacon.seen > GONE_S:
                if before is not None:
                    del self._told[beacon.address]
                    yield {"event": "gone", **facts}
            elif before is None or _differ(before, facts):
                self._told[beacon.address] = facts
                yield {"event": "found" if before is None else "changed", **facts}


def _differ(before: dict[str, object], after: dict[str, object]) -> bool:
    moved = abs(int(str(before["rssi"])) - int(str(after["rssi"]))) >= STEP_DB
    return moved or any(before[name] != after[name] for name in after if name != "rssi")
