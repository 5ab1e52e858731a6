"""What of a release a simulated beacon has in its slots already, by the release's block index."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from beacon_ota.images import blocks
from beacon_ota.images.blocks import SECTOR


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """Where the sectors of a release come from.

    Attributes:
        size: bytes of the release.
        held: content of each sector that one of the slots has; None for those to fetch.
        written: sectors that the slot to be written does not have in place, the first included.
    """

    size: int
    held: tuple[memoryview | None, ...]
    written: int

    @property
    def kept(self) -> int:
        """Sectors that stay as they are."""
        return len(self.held) - self.written

    def end_of_run(self, at: int) -> int:
        """Return the byte up to which everything from byte ``at`` on has to be fetched."""
        number = at // SECTOR
        while number < len(self.held) and self.held[number] is None:
            number += 1
        return min(number * SECTOR, self.size)


def plan_whole(size: int) -> DownloadPlan:
    """Return the plan of a beacon that fetches everything."""
    count = -(-size // SECTOR)
    return DownloadPlan(size, (None,) * count, count)


def plan_download(
    index: bytes, size: int, images: Mapping[str, bytes], running: str, other: str
) -> DownloadPlan:
    """Compare a release with the two slots, as the firmware does.

    Args:
        index: block index of the release.
        size: bytes of the release.
        images: content of releases by checksum; a slot with another release holds nothing known.
        running: checksum of what is in the running slot.
        other: of what is in the slot to be written.
    """
    held: list[memoryview | None] = []
    written = 0
    slots = [images.get(name, b"") for name in (other, running)]
    indexes = [_index_of(slot) for slot in slots]
    for number, wanted in enumerate(blocks.split_index(index)):
        at = number * blocks.HASH
        found = [one[at : at + blocks.HASH] == wanted for one in indexes]
        written += not found[0] or number == 0
        slot = memoryview(slots[found.index(True)]) if any(found) else None
        begin = number * SECTOR
        held.append(None if slot is None else slot[begin : min(begin + SECTOR, size)])
    return DownloadPlan(size, tuple(held), written)


@lru_cache(maxsize=16)
def _index_of(image: bytes) -> bytes:
    return blocks.hash_sectors(image)
