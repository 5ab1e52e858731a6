"""Collects what beacons say in polls, and writes it to the database in batches.

A poll costs no write of its own. What it says of the beacon goes into memory at once, and into the
database with the next flush, many beacons in one transaction.
"""

from beacon_ota.orchestrator.core.fleet_records import BeaconState, UnprovenClaim
from beacon_ota.orchestrator.db.guard import keep_from_writer
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.rollout.types import Beacon

_REFUSALS_MAX = 1_000_000_000


class ContactLog:
    """The beacons heard from, or refused, since the last flush."""

    def __init__(self, beacons: dict[str, BeaconState]):
        self._beacons = beacons  # of the fleet's state, by id
        self.unflushed: dict[str, BeaconState] = {}
        self._refused: dict[str, BeaconState] = {}

    def forget_beacon(self, beacon_id: str) -> None:
        """Drop the rows of a beacon that is not registered any more."""
        self.unflushed.pop(beacon_id, None)
        self._refused.pop(beacon_id, None)

    def mark_seen(
        self,
        node: BeaconState,
        now: float,
        version: str,
        image: str,
        on_trial: bool,
        address: str,
        said_type: str = "",
    ) -> None:
        """Note what a beacon stated about itself; written with the next flush.

        Args:
            said_type: the device type that the beacon states; "" when it states none.
        """
        facts = node.beacon
        node.beacon = Beacon(
            facts.id,
            facts.device_type,
            version,
            image,
            now,
            facts.channel,
            facts.site,
            facts.tags,
            on_trial,
            facts.quarantined,
            facts.cleared_at,
            said_type or facts.said_type,
        )
        node.last_seen = now
        node.address = address
        node.claim = None
        self.unflushed[facts.id] = node

    def mark_refused(self, node: BeaconState, now: float, code: str) -> None:
        """Note that a beacon's own request was refused; written with the next flush."""
        node.refused_code, node.refused_at = code, now
        node.refusals = min(node.refusals + 1, _REFUSALS_MAX)
        self._refused[node.beacon.id] = node

    def mark_claimed(self, beacon_id: str, now: float, code: str, address: str) -> None:
        """Note a request in a beacon's name that carries no proof of coming from the beacon."""
        node = self._beacons.get(beacon_id)
        if node is not None:
            count = min(1 if node.claim is None else node.claim.count + 1, _REFUSALS_MAX)
            node.claim = UnprovenClaim(code, now, address, count)

    def take_seen_rows(self) -> list[Fields]:
        """Return the rows of a flush, and begin anew."""
        dirty, self.unflushed = self.unflushed, {}
        return [
            {
                "beacon": beacon_id,
                "at": node.last_seen,
                "running": node.beacon.version,
                "running_image": node.beacon.image,
                "running_state": "trial" if node.beacon.on_trial else "valid",
                "from_address": node.address,
                "says_type": node.beacon.said_type or None,
                "times_refused": None if node.refusals else 0,
            }
            for beacon_id, node in dirty.items()
        ]

    def take_refused_rows(self) -> list[Fields]:
        """Return the rows of those refused since the last flush, and begin anew."""
        refused, self._refused = self._refused, {}
        return [
            {
                "beacon": beacon_id,
                "why_refused": node.refused_code,
                "when_refused": node.refused_at,
                "times_refused": node.refusals,
            }
            for beacon_id, node in refused.items()
        ]

    def restore_rows(self, heard: list[Fields], refused: list[Fields]) -> None:
        """Put back the rows of a flush that could not be written."""
        for rows, kept in ((heard, self.unflushed), (refused, self._refused)):
            for row in rows:
                if (node := self._beacons.get(row["beacon"])) is not None:
                    kept.setdefault(row["beacon"], node)


keep_from_writer(ContactLog)
