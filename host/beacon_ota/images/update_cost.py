"""Estimates what an update costs a beacon, from the block indexes of the releases involved.

The rules are the beacon's own: a sector that the slot to be written holds
already is kept; one that the running slot holds is copied from there; any other is fetched. The
first sector is always written. Without an index, a beacon whose core is the release's copies the
core and fetches the app; any other beacon fetches everything.
"""

from dataclasses import dataclass

from beacon_ota.images.blocks import HASH, SECTOR, index_size

RADIO = 20_000  # bytes per second beside Bluetooth on a busy channel (field reports: 10–25 KB/s)
FLASH_S = 0.056  # to erase and program a sector
CHECK_S = 0.0006  # to read, compare and hash a sector of both slots
START_S = 0.5  # to verify the manifest and to open the connections

BASES = {
    "index": "the beacon compares every sector",
    "core": "no block index: the beacon keeps its core",
    "full": "the beacon fetches everything",
}


@dataclass(frozen=True)
class UpdateCost:
    """What an update costs one beacon.

    Attributes:
        fetched: bytes over the radio, the block index included.
        written: sectors that are erased and programmed.
        kept: sectors that are not touched.
        basis: what the beacon goes by, a key of ``BASES``.
        seconds: from the verified manifest to the armed slot, at ``RADIO``.
    """

    fetched: int
    written: int
    kept: int
    basis: str

    @property
    def seconds(self) -> float:
        """Seconds, to a tenth."""
        checked = (self.written + self.kept) * CHECK_S
        return round(START_S + self.fetched / RADIO + self.written * FLASH_S + checked, 1)


def full_cost(size: int) -> UpdateCost:
    """Return what a full download of ``size`` bytes costs: every sector fetched and written."""
    return UpdateCost(size, index_size(size) // HASH, 0, "full")


def estimate_cost(
    size: int,
    target: bytes | None,
    running: bytes | None,
    other: bytes | None = None,
    *,
    core_sectors: int = 0,
    encrypted: bool = False,
) -> UpdateCost:
    """Estimate what an update costs a beacon.

    Args:
        size: bytes of the release.
        target: block index of the release, None if it has none.
        running: block index of what the beacon runs, None if unknown.
        other: that of what the slot to be written holds, None if unknown: then every sector counts
            as written.
        core_sectors: sectors of the core that both releases have; 0 if the cores differ, or if
            that is not known. Counts only without ``target``.
        encrypted: the first sector is fetched in any case.
    """
    count = index_size(size) // HASH
    if target is None:
        if not core_sectors:
            return full_cost(size)
        fetched = max(0, size - core_sectors * SECTOR) + (SECTOR if encrypted else 0)
        return UpdateCost(fetched, count, 0, "core")
    if running is None and other is None:
        return UpdateCost(size + len(target), count, 0, "index")
    fetched, kept = len(target), 0
    for number in range(count):
        wanted = _hash_at(target, number)
        in_place = wanted == _hash_at(other, number)
        kept += in_place and number > 0
        if number == 0 and encrypted or not in_place and wanted != _hash_at(running, number):
            fetched += min(SECTOR, size - number * SECTOR)
    return UpdateCost(fetched, count - kept, kept, "index")


def _hash_at(index: bytes | None, number: int) -> bytes | None:
    """Return the hash of a sector, None where there is none."""
    return (index[number * HASH : (number + 1) * HASH] if index else b"") or None
