"""Checks ESP32-C3 app and bootloader images in all their parts, and measures them.

The length of an image comes from its headers alone; bytes that follow in the slot do not matter.
:func:`parse_app_image` is stricter than the chip, for files that people hand in;
:mod:`beacon_ota.images.esp_boot` decides as the chip does.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import NoReturn

from beacon_ota.images import Buffer, partition_table, partitions
from beacon_ota.images.esp_format import (
    APP_DESCRIPTOR,
    BOOTLOADER_DESCRIPTOR,
    BOOTLOADER_MAGIC,
    CHIP_C3,
    CHIPS,
    DESCRIPTOR_MAGIC,
    DESCRIPTOR_OFFSET,
    FLASH_MODES,
    HEADER,
    MAGIC,
    MEMORY_WINDOWS,
    PAGE,
    SEGMENT_HEADER,
    SEGMENT_LIMIT,
    SEGMENTS_MAX,
    AppImage,
    Bootloader,
    Descriptor,
    ImageError,
    Segment,
    xor_bytes,
)

_INTERPRETER = re.compile(rb"MicroPython (v\d[\w.+-]{0,40}) on (\d{4}-\d\d-\d\d)")


def parse_app_image(data: Buffer, offset: int = 0, limit: int | None = None) -> AppImage:
    """Check the app image at ``offset`` in all its parts and return what it says.

    Args:
        data: a file or a flash.
        offset: where the image begins; it is taken to be aligned to 64 KiB in flash.
        limit: bytes it may take, e.g. the slot's size; to the end of ``data`` by default.

    Raises:
        ImageError: ``image_truncated``, ``image_magic``, ``image_chip``, ``image_segment``,
            ``image_checksum``, ``image_sha256``, ``image_descriptor``, or ``flash_image``
            for a whole flash image where an app image belongs.
    """
    view = _slice_view(data, offset, limit)
    if is_flash_image(view):
        raise ImageError(
            "flash_image",
            "this is an image of the whole flash (bootloader, partition table and apps); "
            "take the app image out of it first",
            found="partition table at 0x8000",
            expected="an app image",
        )
    common, segments = _parse_common(view)
    descriptor = _read_descriptor(view, segments)
    return AppImage(**common, descriptor=descriptor, interpreter=_find_interpreter(view, segments))


def parse_bootloader(data: Buffer, offset: int = 0, limit: int | None = None) -> Bootloader:
    """Check the bootloader image at ``offset`` and return what it says.

    Raises:
        ImageError: as :func:`parse_app_image`, without ``flash_image``.
    """
    view = _slice_view(data, offset, limit)
    common, segments = _parse_common(view)
    for segment in segments:
        if segment.mapped:
            raise ImageError(
                "image_segment",
                "a bootloader runs from RAM; this is an app image",
                found=f"a segment in {segment.memory}",
            )
    idf = built = ""
    if segments[0].length >= BOOTLOADER_DESCRIPTOR.size:
        magic, _, _, _, idf_raw, built_raw, _ = BOOTLOADER_DESCRIPTOR.unpack_from(
            view, segments[0].offset
        )
        if magic == BOOTLOADER_MAGIC:
            idf, built = _decode_text(idf_raw), _decode_text(built_raw)
    return Bootloader(**common, idf=idf, built=built)


def image_length(data: Buffer, offset: int = 0, limit: int | None = None) -> int:
    """Return the length of the image at ``offset`` from its headers alone.

    Raises:
        ImageError: ``image_truncated``, ``image_magic``, ``image_segment``.
    """
    view = _slice_view(data, offset, limit)
    for segment in _walk_segments(view):
        _check_end(view, segment.offset + segment.length)
    return _measure_image(view)[0]


def is_flash_image(data: Buffer) -> bool:
    """Tell a whole flash image: a partition table, MD5 and all, at 0x8000."""
    if not partitions.is_table(data, partition_table.TABLE_OFFSET):
        return False
    try:
        partitions.parse_bin(data, offset=partition_table.TABLE_OFFSET)
    except partition_table.PartitionError as error:
        return error.code not in ("table_magic", "table_md5", "table_end")
    return True


def with_flash_size(image: bytes, size: int) -> bytes:
    """Return an image whose header names another flash size, its SHA-256 made right again.

    The bootloader believes its own header: a table beyond that size is refused.

    Args:
        size: bytes, a power of two from 1 to 128 MiB.
    """
    code = (size >> 20).bit_length() - 1
    if size != (1 << 20) << max(code, 0) or code > 7:
        raise ImageError("image_flash_size", "no such flash size", found=size, expected="1M…128M")
    length = image_length(image)
    changed = bytearray(image)
    changed[3] = code << 4 | changed[3] & 0x0F
    if changed[HEADER.size - 1]:
        changed[length - 32 : length] = hashlib.sha256(changed[: length - 32]).digest()
    return bytes(changed)


def _slice_view(data: Buffer, offset: int, limit: int | None) -> memoryview:
    end = len(data) if limit is None else min(len(data), offset + limit)
    return memoryview(data)[offset:end]


def _walk_segments(view: memoryview) -> Iterator[Segment]:
    """Yield the segments, each with a header checked against the image's bounds."""
    if len(view) < HEADER.size:
        _refuse_truncated(view, HEADER.size)
    if view[0] != MAGIC:
        raise ImageError(
            "image_magic",
            "not an ESP32 image: it does not begin with 0xE9",
            found=f"0x{view[0]:02X}",
            expected="0xE9",
        )
    count = view[1]
    if not 1 <= count <= SEGMENTS_MAX:
        raise ImageError(
            "image_segment", "wrong number of segments", found=count, expected="1 to 16"
        )
    at = HEADER.size
    for number in range(count):
        _check_end(view, at + SEGMENT_HEADER.size)
        address, length = SEGMENT_HEADER.unpack_from(view, at)
        at += SEGMENT_HEADER.size
        if length % 4 or length >= SEGMENT_LIMIT:
            raise ImageError(
                "image_segment",
                f"segment {number} has an impossible length",
                found=length,
                expected="a multiple of 4 below 16 MiB",
            )
        yield Segment(address, length, at)
        at += length


def _measure_image(view: memoryview) -> tuple[int, int]:
    """Return (whole length, length before the hash) of an image whose segments fit."""
    end = HEADER.size
    for segment in _walk_segments(view):
        end = segment.offset + segment.length
    body = (end + 16) & ~15
    total = body + 32 if view[HEADER.size - 1] else body
    _check_end(view, total)
    return total, body


def _parse_common(view: memoryview) -> tuple[dict, tuple[Segment, ...]]:
    """Check everything that apps and bootloaders share; return the fields of :class:`Image`."""
    segments = []
    for number, segment in enumerate(_walk_segments(view)):
        if number == 0:
            _check_chip(view)
        _check_segment(view, number, segment)
        segments.append(segment)
    total, body = _measure_image(view)
    checksum = 0xEF
    for segment in segments:
        checksum ^= xor_bytes(view[segment.offset : segment.offset + segment.length])
    if view[body - 1] != checksum:
        raise ImageError(
            "image_checksum",
            "the checksum does not match: the file is damaged",
            found=f"0x{view[body - 1]:02X}",
            expected=f"0x{checksum:02X}",
        )
    if total == body:
        raise ImageError("image_sha256", "the image carries no SHA-256 of itself")
    digest, stored = hashlib.sha256(view[:body]).hexdigest(), bytes(view[body:total]).hex()
    if digest != stored:
        raise ImageError(
            "image_sha256",
            "the appended SHA-256 does not match: the file is damaged",
            found=stored,
            expected=digest,
        )
    head = HEADER.unpack_from(view)
    fields = {
        "entry": head[4],
        "segments": tuple(segments),
        "length": total,
        "checksum": checksum,
        "sha256": stored,
        "chip": head[7],
        "flash_mode": FLASH_MODES.get(head[2], "?"),
        "flash_size": (1 << 20) << (head[3] >> 4) if head[3] >> 4 < 8 else None,
        "min_revision": head[9],
        "max_revision": None if head[10] in (0, 0xFFFF) else head[10],
    }
    return fields, tuple(segments)


def _check_chip(view: memoryview) -> None:
    chip = HEADER.unpack_from(view)[7]
    if chip != CHIP_C3:
        raise ImageError(
            "image_chip",
            "the image is for another chip",
            found=CHIPS.get(chip, f"chip id {chip}"),
            expected=CHIPS[CHIP_C3],
        )


def _check_segment(view: memoryview, number: int, segment: Segment) -> None:
    _check_end(view, segment.offset + segment.length)
    if segment.memory == "?" and segment.length:
        raise ImageError(
            "image_segment",
            f"segment {number} does not lie in the chip's memory",
            found=f"0x{segment.address:08X}, {segment.length} bytes",
            expected=", ".join(window[0] for window in MEMORY_WINDOWS),
        )
    if segment.mapped and segment.offset % PAGE != segment.address % PAGE:
        raise ImageError(
            "image_segment",
            f"segment {number} cannot be mapped: address and place differ within 64 KiB",
            found=f"0x{segment.offset % PAGE:04X}",
            expected=f"0x{segment.address % PAGE:04X}",
        )


def _read_descriptor(view: memoryview, segments: tuple[Segment, ...]) -> Descriptor:
    first = segments[0]
    if first.memory != "DROM" or first.length < APP_DESCRIPTOR.size:
        raise ImageError(
            "image_descriptor",
            "no app description: a bootloader, or not made with ESP-IDF",
            found=f"segment 0 in {first.memory}, {first.length} bytes",
            expected=f"segment 0 in DROM, at least {APP_DESCRIPTOR.size} bytes",
        )
    fields = APP_DESCRIPTOR.unpack_from(view, DESCRIPTOR_OFFSET)
    if fields[0] != DESCRIPTOR_MAGIC:
        raise ImageError(
            "image_descriptor",
            "the app description is missing",
            found=f"0x{fields[0]:08X}",
            expected=f"0x{DESCRIPTOR_MAGIC:08X}",
        )
    _, secure, _, version, project, time, date, idf, elf = fields[:9]
    return Descriptor(
        version=_decode_text(version),
        project=_decode_text(project),
        time=_decode_text(time),
        date=_decode_text(date),
        idf=_decode_text(idf),
        elf_sha256=elf.hex(),
        secure_version=secure,
    )


def _find_interpreter(view: memoryview, segments: tuple[Segment, ...]) -> str | None:
    """Find the version that MicroPython prints in its banner."""
    for segment in segments:
        if segment.memory == "DROM":
            found = _INTERPRETER.search(view[segment.offset : segment.offset + segment.length])
            if found:
                return found.group(1).decode()
    return None


def _check_end(view: memoryview, end: int) -> None:
    if end > len(view):
        _refuse_truncated(view, end)


def _refuse_truncated(view: memoryview, end: int) -> NoReturn:
    raise ImageError(
        "image_truncated",
        "the image is cut short",
        found=f"{len(view)} bytes",
        expected=f"at least {end} bytes",
    )


def _decode_text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("ascii", "replace")
