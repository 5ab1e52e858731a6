"""ESP-IDF's own verdict on an image in flash: whether the bootloader would start it.

Decides as ESP-IDF 5.5 does. Source: ESP-IDF ``esp_image_format.c``.
"""

import hashlib
import struct

from beacon_ota.images import Buffer
from beacon_ota.images.esp_format import (
    BOOTLOADER_OFFSET,
    CHIP_C3,
    HEADER,
    MAGIC,
    PAGE,
    SEGMENT_HEADER,
    SEGMENT_LIMIT,
    SEGMENTS_MAX,
    SLOT_LIMIT,
    Segment,
    is_flash_mapped,
    xor_bytes,
)


def verify_bootable(
    flash: Buffer,
    offset: int,
    size: int,
    *,
    load: bool = False,
    chip_rev: int = 3,
    block_rev: int = 0,
) -> int | None:
    """Return the length of the image in a slot if ESP-IDF would accept it, else None.

    At offset 0 lies the bootloader, which has no app description to look into.

    Args:
        flash: the whole flash.
        offset: where the slot begins.
        size: bytes of the slot.
        load: decide as the bootloader, which also refuses segments that load outside of
            RAM; False decides as ``esp_ota_set_boot_partition``.
        chip_rev: revision of the chip, major * 100 + minor.
        block_rev: revision of its eFuse block.
    """
    if size > SLOT_LIMIT or offset < 0 or offset + HEADER.size > len(flash):
        return None
    head = HEADER.unpack_from(flash, offset)
    magic, count, chip, min_rev, max_rev, hashed = (head[i] for i in (0, 1, 7, 9, 10, 12))
    if magic != MAGIC or chip != CHIP_C3 or count > SEGMENTS_MAX or chip_rev < min_rev:
        return None
    if max_rev not in (0, 0xFFFF) and chip_rev > max_rev:
        return None
    view = memoryview(flash)
    at, checksum = offset + HEADER.size, 0xEF
    for index in range(count):
        if at + SEGMENT_HEADER.size > len(flash):
            return None
        address, length = SEGMENT_HEADER.unpack_from(flash, at)
        at += SEGMENT_HEADER.size
        if length % 4 or length >= SEGMENT_LIMIT or at + length > len(flash):
            return None
        if is_flash_mapped(address):
            if at % PAGE != address % PAGE:
                return None
        elif load and length and Segment(address, length, 0).memory == "?":
            return None
        described = index == 0 and length and offset != BOOTLOADER_OFFSET
        if described and not _block_fits(flash, at, block_rev):
            return None
        checksum ^= xor_bytes(view[at : at + length])
        at += length
    total = (at - offset + 16) & ~15
    if offset + total > len(flash) or flash[offset + total - 1] != checksum:
        return None
    if hashed:
        digest = view[offset + total : offset + total + 32]
        if total + 32 > size or hashlib.sha256(view[offset : offset + total]).digest() != digest:
            return None
        total += 32
    return total if total <= size else None


def _block_fits(flash: Buffer, at: int, block_rev: int) -> bool:
    """Check the app description's range of eFuse block revisions, as far as it is set."""
    if at + 180 > len(flash):
        return False
    low, high = struct.unpack_from("<HH", flash, at + 176)
    if low not in (0, 0xFFFF) and block_rev < low:
        return False
    return high in (0, 0xFFFF) or block_rev <= high
