"""ESP32-C3 app and bootloader images: parse, check, measure, and ESP-IDF's own verdict.

An image is a 24-byte header, segments (load address, length, data), a checksum byte at the end
of a 16-byte block, and the SHA-256 of everything before it. Its length comes from the headers
alone; bytes that follow in the slot do not matter. Flash-mapped segments are paged in by
64 KiB, so their place in flash and their address agree in the low 16 bits.

:func:`parse_app_image` is stricter than the chip: it is for files that people hand in.
:func:`verify_bootable` decides exactly as ESP-IDF 5.5 does. Source: ESP-IDF
``esp_image_format.c``, ``esp_app_desc.h``.
"""

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from beacon_ota.errors import InputError
from beacon_ota.images import Buffer, partitions

MAGIC = 0xE9
CHIP_C3 = 5
BOOTLOADER_OFFSET = 0x0  # of the bootloader in the C3's flash
BOOTLOADER_LIMIT = 0x8000  # where the partition table begins
SEGMENTS_MAX = 16
SEGMENT_LIMIT = 1 << 24  # a segment is shorter than 16 MiB
SLOT_LIMIT = 1 << 24  # so is the largest slot, or as long
PAGE = 1 << 16  # the flash cache maps pages of 64 KiB
HEADER = struct.Struct("<BBBBIB3sHBHH4sB")
DESCRIPTOR_OFFSET = 32  # of the app description in an image: start of segment 0
DESCRIPTOR_MAGIC = 0xABCD5432
BOOTLOADER_MAGIC = 80

CHIPS = {
    0: "ESP32",
    2: "ESP32-S2",
    5: "ESP32-C3",
    9: "ESP32-S3",
    0x0C: "ESP32-C2",
    0x0D: "ESP32-C6",
    0x10: "ESP32-H2",
    0x12: "ESP32-P4",
    0x14: "ESP32-C61",
    0x17: "ESP32-C5",
}
FLASH_MODES = {0: "QIO", 1: "QOUT", 2: "DIO", 3: "DOUT", 4: "fast read", 5: "slow read"}
_WINDOWS = (  # name, first address, end, mapped from flash
    ("DROM", 0x3C000000, 0x3C800000, True),
    ("IROM", 0x42000000, 0x42800000, True),
    ("DRAM", 0x3FC80000, 0x3FCE0000, False),
    ("IRAM", 0x4037C000, 0x403E0000, False),
    ("RTC", 0x50000000, 0x50002000, False),
)
_NOT_LOADED = 0x10000000  # segments below are skipped by the loader (padding)

_SEGMENT = struct.Struct("<II")
_DESCRIPTOR = struct.Struct("<II8s32s32s16s16s32s32sHHB3s72s")
_BOOTLOADER = struct.Struct("<B2sBI32s24s16s")
_INTERPRETER = re.compile(rb"MicroPython (v\d[\w.+-]{0,40}) on (\d{4}-\d\d-\d\d)")


class ImageError(InputError):
    """A file is not the image it should be."""


@dataclass(frozen=True)
class Segment:
    """A segment: load address, length in bytes, offset of its data from the image's start."""

    address: int
    length: int
    offset: int

    @property
    def memory(self) -> str:
        """Where it goes: DROM, IROM, DRAM, IRAM, RTC, ``padding``, or ``?`` for nowhere."""
        if self.address < _NOT_LOADED:
            return "padding"
        for name, low, high, _ in _WINDOWS:
            if low <= self.address < high:
                return name if self.address + self.length <= high else "?"
        return "?"

    @property
    def mapped(self) -> bool:
        """Whether it is read from flash in place."""
        return _mapped(self.address)


@dataclass(frozen=True)
class Descriptor:
    """The app description. Stock MicroPython leaves version and project empty."""

    version: str
    project: str
    time: str
    date: str
    idf: str
    elf_sha256: str
    secure_version: int


@dataclass(frozen=True)
class Image:
    """What an app and a bootloader image have in common.

    Args:
        entry: address of the first instruction.
        length: bytes, checksum and SHA-256 included.
        checksum: the checksum byte.
        sha256: the appended hash, hex; empty if there is none.
        chip: chip id of the header.
        flash_size: bytes of flash the header names, or None.
        min_revision: oldest chip revision, major * 100 + minor.
        max_revision: newest chip revision, or None.
    """

    entry: int
    segments: tuple[Segment, ...]
    length: int
    checksum: int
    sha256: str
    chip: int
    flash_mode: str
    flash_size: int | None
    min_revision: int
    max_revision: int | None


@dataclass(frozen=True)
class AppImage(Image):
    """An app image; ``interpreter`` is MicroPython's own version, None if it is not one."""

    descriptor: Descriptor
    interpreter: str | None


@dataclass(frozen=True)
class Bootloader(Image):
    """A second-stage bootloader; ``idf`` and ``built`` are empty if it does not say."""

    idf: str
    built: str


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
    view = _window(data, offset, limit)
    if is_flash_image(view):
        raise ImageError(
            "flash_image",
            "this is an image of the whole flash (bootloader, partition table and apps); "
            "take the app image out of it first",
            found="partition table at 0x8000",
            expected="an app image",
        )
    common, segments = _parse(view)
    descriptor = _descriptor(view, segments)
    return AppImage(**common, descriptor=descriptor, interpreter=_interpreter(view, segments))


def parse_bootloader(data: Buffer, offset: int = 0, limit: int | None = None) -> Bootloader:
    """Check the bootloader image at ``offset`` and return what it says.

    Raises:
        ImageError: as :func:`parse_app_image`, without ``flash_image``.
    """
    view = _window(data, offset, limit)
    common, segments = _parse(view)
    for segment in segments:
        if segment.mapped:
            raise ImageError(
                "image_segment",
                "a bootloader runs from RAM; this is an app image",
                found=f"a segment in {segment.memory}",
            )
    idf = built = ""
    if segments[0].length >= _BOOTLOADER.size:
        magic, _, _, _, idf_raw, built_raw, _ = _BOOTLOADER.unpack_from(view, segments[0].offset)
        if magic == BOOTLOADER_MAGIC:
            idf, built = _text(idf_raw), _text(built_raw)
    return Bootloader(**common, idf=idf, built=built)


def image_length(data: Buffer, offset: int = 0, limit: int | None = None) -> int:
    """Return the length of the image at ``offset`` from its headers alone.

    Raises:
        ImageError: ``image_truncated``, ``image_magic``, ``image_segment``.
    """
    view = _window(data, offset, limit)
    for segment in _walk(view):
        _end_check(view, segment.offset + segment.length)
    return _length(view)[0]


def is_flash_image(data: Buffer) -> bool:
    """Tell a whole flash image: a partition table, MD5 and all, at 0x8000."""
    if not partitions.is_table(data, partitions.TABLE_OFFSET):
        return False
    try:
        partitions.parse_bin(data, offset=partitions.TABLE_OFFSET)
    except partitions.PartitionError as error:
        return error.code not in ("table_magic", "table_md5", "table_end")
    return True


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
        if at + _SEGMENT.size > len(flash):
            return None
        address, length = _SEGMENT.unpack_from(flash, at)
        at += _SEGMENT.size
        if length % 4 or length >= SEGMENT_LIMIT or at + length > len(flash):
            return None
        if _mapped(address):
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


def xor_bytes(data: Buffer) -> int:
    """Return the XOR of all bytes, by folding one large integer in half again and again."""
    value, width = int.from_bytes(data, "little"), len(data)
    while width > 1:
        width = (width + 1) // 2
        value = value >> width * 8 ^ value & (1 << width * 8) - 1
    return value


def _block_fits(flash: Buffer, at: int, block_rev: int) -> bool:
    """Check the app description's range of eFuse block revisions, as far as it is set."""
    if at + 180 > len(flash):
        return False
    low, high = struct.unpack_from("<HH", flash, at + 176)
    if low not in (0, 0xFFFF) and block_rev < low:
        return False
    return high in (0, 0xFFFF) or block_rev <= high


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


def _window(data: Buffer, offset: int, limit: int | None) -> memoryview:
    end = len(data) if limit is None else min(len(data), offset + limit)
    return memoryview(data)[offset:end]


def _walk(view: memoryview) -> Iterator[Segment]:
    """Yield the segments, each with a header checked against the image's bounds."""
    if len(view) < HEADER.size:
        _truncated(view, HEADER.size)
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
        _end_check(view, at + _SEGMENT.size)
        address, length = _SEGMENT.unpack_from(view, at)
        at += _SEGMENT.size
        if length % 4 or length >= SEGMENT_LIMIT:
            raise ImageError(
                "image_segment",
                f"segment {number} has an impossible length",
                found=length,
                expected="a multiple of 4 below 16 MiB",
            )
        yield Segment(address, length, at)
        at += length


def _length(view: memoryview) -> tuple[int, int]:
    """Return (whole length, length before the hash) of an image whose segments fit."""
    end = HEADER.size
    for segment in _walk(view):
        end = segment.offset + segment.length
    body = (end + 16) & ~15
    total = body + 32 if view[HEADER.size - 1] else body
    _end_check(view, total)
    return total, body


def _parse(view: memoryview) -> tuple[dict, tuple[Segment, ...]]:
    """Check everything that apps and bootloaders share; return the fields of :class:`Image`."""
    segments = []
    for number, segment in enumerate(_walk(view)):
        if number == 0:
            _check_chip(view)
        _check_segment(view, number, segment)
        segments.append(segment)
    total, body = _length(view)
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
    _end_check(view, segment.offset + segment.length)
    if segment.memory == "?" and segment.length:
        raise ImageError(
            "image_segment",
            f"segment {number} does not lie in the chip's memory",
            found=f"0x{segment.address:08X}, {segment.length} bytes",
            expected=", ".join(window[0] for window in _WINDOWS),
        )
    if segment.mapped and segment.offset % PAGE != segment.address % PAGE:
        raise ImageError(
            "image_segment",
            f"segment {number} cannot be mapped: address and place differ within 64 KiB",
            found=f"0x{segment.offset % PAGE:04X}",
            expected=f"0x{segment.address % PAGE:04X}",
        )


def _descriptor(view: memoryview, segments: tuple[Segment, ...]) -> Descriptor:
    first = segments[0]
    if first.memory != "DROM" or first.length < _DESCRIPTOR.size:
        raise ImageError(
            "image_descriptor",
            "no app description: a bootloader, or not made with ESP-IDF",
            found=f"segment 0 in {first.memory}, {first.length} bytes",
            expected=f"segment 0 in DROM, at least {_DESCRIPTOR.size} bytes",
        )
    fields = _DESCRIPTOR.unpack_from(view, DESCRIPTOR_OFFSET)
    if fields[0] != DESCRIPTOR_MAGIC:
        raise ImageError(
            "image_descriptor",
            "the app description is missing",
            found=f"0x{fields[0]:08X}",
            expected=f"0x{DESCRIPTOR_MAGIC:08X}",
        )
    _, secure, _, version, project, time, date, idf, elf = fields[:9]
    return Descriptor(
        version=_text(version),
        project=_text(project),
        time=_text(time),
        date=_text(date),
        idf=_text(idf),
        elf_sha256=elf.hex(),
        secure_version=secure,
    )


def _interpreter(view: memoryview, segments: tuple[Segment, ...]) -> str | None:
    """Find the version that MicroPython prints in its banner."""
    for segment in segments:
        if segment.memory == "DROM":
            found = _INTERPRETER.search(view[segment.offset : segment.offset + segment.length])
            if found:
                return found.group(1).decode()
    return None


def _mapped(address: int) -> bool:
    return any(low <= address < high for _, low, high, mapped in _WINDOWS if mapped)


def _end_check(view: memoryview, end: int) -> None:
    if end > len(view):
        _truncated(view, end)


def _truncated(view: memoryview, end: int) -> NoReturn:
    raise ImageError(
        "image_truncated",
        "the image is cut short",
        found=f"{len(view)} bytes",
        expected=f"at least {end} bytes",
    )


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("ascii", "replace")
