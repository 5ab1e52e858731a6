"""The block index of a release image: a short hash of each of its sectors.

A beacon compares the index with its own flash, and fetches only the sectors that differ. The index
is a hint: the signed checksum of the whole image decides whether the result is the release.
"""

import hashlib
from collections.abc import Iterator

from beacon_ota.errors import InputError
from beacon_ota.images import Buffer

SECTOR = 4096  # bytes: what flash erases at once
HASH = 8  # bytes of the SHA-256 that are kept of a sector


def index_size(size: int) -> int:
    """Return the bytes of the index of an image of ``size`` bytes."""
    return -(-size // SECTOR) * HASH


def hash_sectors(image: Buffer) -> bytes:
    """Return the index of a plain image: per sector, in order, 8 bytes of its SHA-256.

    The last sector of an image that does not end at a sector's end is hashed as short as it is.
    """
    view = memoryview(image)
    return b"".join(
        hashlib.sha256(view[at : at + SECTOR]).digest()[:HASH] for at in range(0, len(view), SECTOR)
    )


def split_index(index: bytes) -> Iterator[bytes]:
    """Yield the hash of each sector of an index."""
    return (index[at : at + HASH] for at in range(0, len(index), HASH))


def check_index(index: bytes, size: int) -> None:
    """Refuse an index that cannot be that of an image of ``size`` bytes.

    Raises:
        InputError: ``blocks_size``.
    """
    if len(index) != index_size(size):
        raise InputError(
            "blocks_size",
            "this is not the block index of an image of that size",
            found=len(index),
            expected=index_size(size),
        )
