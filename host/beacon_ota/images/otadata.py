"""otadata: the two 32-byte entries from which the bootloader chooses a slot.

Each lies at the start of a sector of its own: sequence number, label, state, CRC of the sequence
number. The entry with the larger number counts; its slot is (number - 1) modulo the slots.
Source: ESP-IDF ``esp_flash_partitions.h``, ``bootloader_common_loader.c``.
"""

import struct
import zlib
from dataclasses import dataclass

from beacon_ota.images import Buffer

SECTOR = 0x1000
SIZE = 2 * SECTOR
ENTRY = 32  # bytes
NEW, PENDING, VALID, INVALID, ABORTED = range(5)
UNDEFINED = BLANK = 0xFFFFFFFF
STATES = {
    NEW: "new",
    PENDING: "pending",
    VALID: "valid",
    INVALID: "invalid",
    ABORTED: "aborted",
    UNDEFINED: "undefined",
}
TRIALS = 3  # boots that stage 0 grants a new release

_FORM = struct.Struct("<I20sII")


@dataclass(frozen=True)
class Entry:
    """One entry. ``seq`` 0xFFFFFFFF is a blank one."""

    seq: int = BLANK
    label: bytes = b"\xff" * 20
    state: int = UNDEFINED
    crc: int = BLANK

    @classmethod
    def unpack(cls, raw: Buffer) -> "Entry":
        """Read 32 bytes."""
        return cls(*_FORM.unpack(raw))

    def pack(self) -> bytes:
        """Return the 32 bytes."""
        return _FORM.pack(self.seq, self.label, self.state, self.crc)

    @property
    def rejected(self) -> bool:
        """Blank, or judged bad; the CRC is not looked at."""
        return self.seq == BLANK or self.state in (INVALID, ABORTED)

    @property
    def good(self) -> bool:
        """May be the active entry."""
        return not self.rejected and self.crc == sequence_crc(self.seq)

    @property
    def marks(self) -> int:
        """Trial boots that stage 0 has counted in the label."""
        return sum(byte != 0xFF for byte in self.label[: TRIALS - 1])

    def slot(self, count: int) -> int:
        """Return the slot this entry names when there are ``count``."""
        return (self.seq - 1 & 0xFFFFFFFF) % count

    def __str__(self) -> str:
        if self.seq == BLANK:
            return "blank"
        mark = "" if self.crc == sequence_crc(self.seq) else " (bad CRC)"
        return f"{self.seq}/{STATES.get(self.state, hex(self.state))}{mark}"


def sequence_crc(seq: int) -> int:
    """Return the CRC that belongs to a sequence number."""
    return zlib.crc32(struct.pack("<I", seq), 0xFFFFFFFF)


def make_entry(seq: int, state: int) -> Entry:
    """Return an entry with the right CRC and a blank label."""
    return Entry(seq, state=state, crc=sequence_crc(seq))


def active_entry(entries: tuple[Entry, Entry]) -> int:
    """Return which entry counts, 0 or 1, or -1; of equal numbers it is 0."""
    first, second = entries
    if first.good and second.good:
        return 0 if first.seq >= second.seq else 1
    return 0 if first.good else 1 if second.good else -1


def parse_entries(data: Buffer) -> tuple[Entry, Entry]:
    """Read both entries of an otadata partition (at least 0x1020 bytes)."""
    first = bytes(data[:ENTRY])
    second = bytes(data[SECTOR : SECTOR + ENTRY])
    return Entry.unpack(first), Entry.unpack(second)


def build_partition(first: Entry | None = None, second: Entry | None = None) -> bytes:
    """Return an otadata partition of 0x2000 bytes; None is a blank entry."""
    sectors = ((found or Entry()).pack().ljust(SECTOR, b"\xff") for found in (first, second))
    return b"".join(sectors)
