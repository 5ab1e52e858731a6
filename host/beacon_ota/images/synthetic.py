"""Small valid images without an interpreter: stand-ins for a core where none is at hand.

They pass every check of ESP-IDF, esptool and :mod:`beacon_ota.images.esp`, and would do nothing
on a chip. The same arguments give the same bytes.
"""

import hashlib
import struct

from beacon_ota.errors import UsageError
from beacon_ota.images import esp

SIZE_MIN = 2048
SIZE_MAX = 8 << 20
_RAM = 512  # bytes of each RAM segment


def app_image(
    size: int = 8192, *, version: str = "", project: str = "", seed: str = "", text: bytes = b""
) -> bytes:
    """Return an app image of ``size`` bytes, rounded down to a multiple of 16.

    Args:
        size: bytes, at least 2048; a stock MicroPython core has 1,659,184.
        version: version in the app description, at most 31 characters.
        project: project name there, likewise.
        seed: makes another build: all content differs.
        text: bytes to put behind the app description.

    Raises:
        UsageError: ``synthetic_size``.
    """
    if not SIZE_MIN + len(text) <= size <= SIZE_MAX:
        raise UsageError(
            "synthetic_size",
            "a synthetic image cannot have this size",
            found=size,
            expected=f"{SIZE_MIN + len(text)} to {SIZE_MAX}",
        )
    description = struct.pack(
        "<II8x32s32s16s16s32s32sHHB3x72x",
        esp.DESCRIPTOR_MAGIC,
        0,
        version.encode()[:31],
        project.encode()[:31],
        b"00:00:00",
        b"Jan  1 2000",
        b"v5.5.1",
        hashlib.sha256(f"elf {seed}".encode()).digest(),
        0,
        199,
        16,
    )
    # Header, four segment headers, checksum and SHA-256 take 24 + 32 + at least 1 + 32 bytes.
    rest = (size // 16 * 16 - 32 - 24 - 32 - 4) // 4 * 4 - 2 * _RAM - len(description)
    text = text.ljust((len(text) + 3) // 4 * 4, b"\0")
    code = (rest - len(text)) // 8 * 4
    data = description + text + _noise(seed + "data", rest - len(text) - code)
    return _image(
        0x40380000,
        [
            (0x3C000020, data),
            (0x3FC90000, _noise(seed + "dram", _RAM)),
            (None, _noise(seed + "code", code)),
            (0x40380000, _noise(seed + "iram", _RAM)),
        ],
    )


def bootloader_image(seed: str = "") -> bytes:
    """Return a bootloader image of 2–3 KB."""
    description = struct.pack(
        "<B3xI32s24s16x", esp.BOOTLOADER_MAGIC, 1, b"v5.5.1", b"Jan  1 2000 00:00:00"
    )
    return _image(
        0x403CBF10,
        [
            (0x3FCD5820, description + _noise(seed + "rodata", 512)),
            (0x403CBF10, _noise(seed + "loader", 512)),
            (0x403CE710, _noise(seed + "text", 1024)),
        ],
    )


def _image(entry: int, segments: list[tuple[int | None, bytes]]) -> bytes:
    """Join segments; an address of None is flash-mapped code wherever it lies."""
    out = bytearray(
        esp.HEADER.pack(
            esp.MAGIC, len(segments), 2, 0x2F, entry, 0xEE, b"", esp.CHIP_C3, 3, 3, 199, b"", 1
        )
    )
    checksum = 0xEF
    for address, data in segments:
        if address is None:
            address = 0x42000000 + (len(out) + 8) % esp.PAGE
        out += struct.pack("<II", address, len(data)) + data
        checksum ^= esp.xor_bytes(data)
    out += bytes(15 - len(out) % 16) + bytes([checksum])
    return bytes(out) + hashlib.sha256(out).digest()


def _noise(seed: str, size: int) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size)
