"""The format of ESP32-C3 images: header, segments, app description, and what an image holds.

An image is a 24-byte header, segments (load address, length, data), a checksum byte at the end
of a 16-byte block, and the SHA-256 of everything before it. Flash-mapped segments are paged in by
64 KiB, so their place in flash and their address agree in the low 16 bits. Source: ESP-IDF
``esp_image_format.c``, ``esp_app_desc.h``.
"""

import struct
from dataclasses import dataclass

from beacon_ota.errors import InputError
from beacon_ota.images import Buffer

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
MEMORY_WINDOWS = (  # name, first address, end, mapped from flash
    ("DROM", 0x3C000000, 0x3C800000, True),
    ("IROM", 0x42000000, 0x42800000, True),
    ("DRAM", 0x3FC80000, 0x3FCE0000, False),
    ("IRAM", 0x4037C000, 0x403E0000, False),
    ("RTC", 0x50000000, 0x50002000, False),
)
FIRST_LOADED = 0x10000000  # segments below are skipped by the loader (padding)
SEGMENT_HEADER = struct.Struct("<II")
APP_DESCRIPTOR = struct.Struct("<II8s32s32s16s16s32s32sHHB3s72s")
BOOTLOADER_DESCRIPTOR = struct.Struct("<B2sBI32s24s16s")


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
        if self.address < FIRST_LOADED:
            return "padding"
        for name, low, high, _ in MEMORY_WINDOWS:
            if low <= self.address < high:
                return name if self.address + self.length <= high else "?"
        return "?"

    @property
    def mapped(self) -> bool:
        """Whether it is read from flash in place."""
        return is_flash_mapped(self.address)


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


def xor_bytes(data: Buffer) -> int:
    """Return the XOR of all bytes, by folding one large integer in half again and again."""
    value, width = int.from_bytes(data, "little"), len(data)
    while width > 1:
        width = (width + 1) // 2
        value = value >> width * 8 ^ value & (1 << width * 8) - 1
    return value


def is_flash_mapped(address: int) -> bool:
    return any(low <= address < high for _, low, high, mapped in MEMORY_WINDOWS if mapped)
