"""What a release costs the fleet of its board: bytes, sectors and seconds of each beacon, summed.

An estimate before a rollout, by the block indexes of the images that the beacons have in their
slots. Blocks: it reads images that are not indexed yet; call it from a thread.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from beacon_ota.errors import BeaconOtaError
from beacon_ota.images import update_cost
from beacon_ota.images.blocks import SECTOR
from beacon_ota.images.update_cost import UpdateCost
from beacon_ota.orchestrator.blobs.local import LocalBlobStore
from beacon_ota.orchestrator.db.tables import Fields, firmwares
from beacon_ota.orchestrator.db.tables.running import SlotPair, count_slot_pairs

T = TypeVar("T")
Reader = Callable[..., Any]  # runs a function of a connection, and returns what that returns

GROUPS = 24  # of beacons that are looked at one by one; the rest counts as a full download


@dataclass(frozen=True)
class GroupCost:
    """What the release costs each beacon of a group.

    Attributes:
        version: that they run, "" if unknown.
        other_version: of the release in their other slot, None if unknown.
        beacons: how many there are.
        cost: of one of them.
        changed: names of the app's files that differ, None if that is not known.
    """

    version: str
    other_version: str | None
    beacons: int
    cost: UpdateCost
    changed: list[str] | None


class FleetCost(NamedTuple):
    """What a release costs the fleet of its board.

    Attributes:
        full: of a beacon that fetches everything.
        have: beacons that run the release already; they are in no group.
        groups: the others, the largest group first.
        indexed: whether the release has a block index.
    """

    full: UpdateCost
    have: int
    groups: list[GroupCost]
    indexed: bool

    @property
    def beacons(self) -> int:
        """Beacons that do not run it yet."""
        return sum(one.beacons for one in self.groups)

    @property
    def fetched(self) -> int:
        """Bytes that they fetch."""
        return sum(one.beacons * one.cost.fetched for one in self.groups)

    @property
    def fetched_in_full(self) -> int:
        """Bytes that they would fetch without what they have."""
        return self.beacons * self.full.fetched

    def as_json(self) -> Fields:
        """Return the fields of the API."""
        return {
            "block_index": self.indexed,
            "assumes": {
                "bytes_per_s": update_cost.RADIO,
                "seconds_per_sector": update_cost.FLASH_S,
            },
            "full": _cost_as_json(self.full),
            "have": self.have,
            "beacons": self.beacons,
            "bytes": self.fetched,
            "bytes_in_full": self.fetched_in_full,
            "bytes_saved": self.fetched_in_full - self.fetched,
            "groups": [
                {
                    "version": one.version,
                    "other_version": one.other_version,
                    "beacons": one.beacons,
                    **_cost_as_json(one.cost),
                    "changed": one.changed,
                }
                for one in self.groups
            ],
        }


def _cost_as_json(cost: UpdateCost) -> Fields:
    return {
        "bytes": cost.fetched,
        "sectors_written": cost.written,
        "sectors_kept": cost.kept,
        "seconds": cost.seconds,
        "basis": cost.basis,
    }


def estimate_fleet_cost(read: Reader, blobs: LocalBlobStore, firmware: Fields) -> FleetCost:
    """Estimate what a release costs the beacons of its board.

    Args:
        read: runs a function of a connection on the database.
        firmware: the release's row.
    """
    rows = read(firmwares.list_all, firmware["device_type"])
    stored = {row["checksum"]: row for row in rows}
    index = _find_index(blobs, firmware)
    full = update_cost.full_cost(firmware["size"])
    have, groups, rest = 0, [], 0
    for pair in read(count_slot_pairs, firmware["device_type"]):
        if pair.image == firmware["checksum"]:
            have += pair.beacons
        elif len(groups) < GROUPS:
            groups.append(_estimate_group(blobs, firmware, index, stored, pair))
        else:
            rest += pair.beacons
    if rest:
        groups.append(GroupCost("", None, rest, full, None))
    return FleetCost(full, have, groups, index is not None)


def _estimate_group(
    blobs: LocalBlobStore,
    firmware: Fields,
    index: bytes | None,
    stored: dict[str, Fields],
    pair: SlotPair,
) -> GroupCost:
    running = stored.get(pair.image or "")
    other = stored.get(pair.other or "")
    cost = update_cost.estimate_cost(
        firmware["size"],
        index,
        None if running is None else _find_index(blobs, running),
        None if other is None else _find_index(blobs, other),
        core_sectors=_common_core_sectors(running, firmware),
        encrypted=bool(_info_of(firmware).get("encrypted")),
    )
    changed = None if running is None else _list_changed(blobs, running, firmware)
    return GroupCost(
        pair.version or "",
        None if other is None else other["version"],
        pair.beacons,
        cost,
        changed,
    )


def _find_index(blobs: LocalBlobStore, row: Fields) -> bytes | None:
    """Return the block index of a release, None if there is none."""
    if row["blocks"] is not None:
        return base64.b64decode(row["blocks"])
    if _info_of(row).get("encrypted"):
        return None
    try:
        return blobs.block_indexes.read(row["blob"])
    except BeaconOtaError:
        return None  # damaged, or out of reach: not the business of an estimate


def _info_of(row: Fields) -> Fields:
    return json.loads(row["info"])


def _common_core_sectors(running: Fields | None, firmware: Fields) -> int:
    """Return the sectors of the core that two plain releases share; 0 if that is not known."""
    if running is None:
        return 0
    one, two = _info_of(running), _info_of(firmware)
    if not one.get("core_sha256") or one["core_sha256"] != two.get("core_sha256"):
        return 0
    return (firmware["size"] - two.get("app_size", firmware["size"])) // SECTOR


def _list_changed(blobs: LocalBlobStore, before: Fields, after: Fields) -> list[str] | None:
    """Return the files of the app that differ, None if an image cannot be looked into."""
    from beacon_ota.images import compare

    if any(_info_of(row).get("encrypted") for row in (before, after)):
        return None
    try:
        old, new = (_read_files(blobs, row["blob"]) for row in (before, after))
    except (BeaconOtaError, OSError):
        return None
    return compare.list_changed_files(old, new)


@lru_cache(maxsize=16)
def _read_files(blobs: LocalBlobStore, digest: str) -> dict[str, bytes]:
    from beacon_ota.images import release

    return release.parse_release(blobs.read(digest)).files
