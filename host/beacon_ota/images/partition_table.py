"""A partition table in memory: its rows, and their binary and CSV form.

The binary table lies at flash offset 0x8000: rows of 32 bytes, a row with the MD5 of all rows
before it, FF to the end of 0xC00 bytes. Rules and names: ESP-IDF ``gen_esp32part.py``.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from beacon_ota.errors import InputError

TABLE_OFFSET = 0x8000  # flash offset of the table
TABLE_SECTOR = 0x1000  # flash it occupies
TABLE_SIZE = 0xC00  # bytes of the binary table
ROW = 32
ROW_MAGIC = b"\xaa\x50"
MD5_MARK = b"\xeb\xeb" + b"\xff" * 14
APP, DATA, BOOTLOADER, PARTITION_TABLE = 0, 1, 2, 3
FACTORY, OTA_0, TEST = 0x00, 0x10, 0x20
OTA, PHY, NVS, COREDUMP, LITTLEFS, TEE_OTA = 0x00, 0x01, 0x02, 0x03, 0x83, 0x90
SLOTS_MAX = 16
OTADATA_SIZE = 0x2000
TYPES = {"app": APP, "data": DATA, "bootloader": BOOTLOADER, "partition_table": PARTITION_TABLE}
SUBTYPES = {
    APP: {
        "factory": FACTORY,
        "test": TEST,
        **{f"ota_{slot}": OTA_0 + slot for slot in range(SLOTS_MAX)},
        "tee_0": 0x30,
        "tee_1": 0x31,
    },
    DATA: {
        "ota": OTA,
        "phy": PHY,
        "nvs": NVS,
        "coredump": COREDUMP,
        "nvs_keys": 0x04,
        "efuse": 0x05,
        "undefined": 0x06,
        "esphttpd": 0x80,
        "fat": 0x81,
        "spiffs": 0x82,
        "littlefs": LITTLEFS,
        "tee_ota": TEE_OTA,
    },
    BOOTLOADER: {"primary": 0, "ota": 1, "recovery": 2},
    PARTITION_TABLE: {"primary": 0, "ota": 1},
}
FLAGS = {"encrypted": 1, "readonly": 2}
ROW_FORMAT = struct.Struct("<2sBBII16sI")


class PartitionError(InputError):
    """A partition table breaks a rule. Codes start with ``table_…``."""


@dataclass(frozen=True)
class Partition:
    """One row: type and subtype as numbers, offset and size in bytes."""

    name: str
    type: int
    subtype: int
    offset: int
    size: int
    encrypted: bool = False
    readonly: bool = False

    @property
    def end(self) -> int:
        """Flash offset behind the partition."""
        return self.offset + self.size

    @property
    def slot(self) -> int | None:
        """Number of the OTA slot, or None."""
        if self.type == APP and OTA_0 <= self.subtype < OTA_0 + SLOTS_MAX:
            return self.subtype - OTA_0
        return None

    @property
    def type_name(self) -> str:
        """Type as the CSV spells it."""
        return _find_name(TYPES, self.type)

    @property
    def subtype_name(self) -> str:
        """Subtype as the CSV spells it."""
        return _find_name(SUBTYPES.get(self.type, {}), self.subtype)

    def pack(self) -> bytes:
        """Return the 32-byte row."""
        flags = FLAGS["encrypted"] * self.encrypted | FLAGS["readonly"] * self.readonly
        name = self.name.encode()
        return ROW_FORMAT.pack(
            ROW_MAGIC, self.type, self.subtype, self.offset, self.size, name, flags
        )


@dataclass(frozen=True)
class Table:
    """A checked table; partitions in the order of its rows."""

    partitions: tuple[Partition, ...]

    def __iter__(self) -> Iterator[Partition]:
        return iter(self.partitions)

    def __len__(self) -> int:
        return len(self.partitions)

    def find_kind(self, type: int, subtype: int) -> Partition | None:
        """Return the first partition of this kind."""
        for part in self.partitions:
            if (part.type, part.subtype) == (type, subtype):
                return part
        return None

    def find_name(self, name: str) -> Partition | None:
        """Return the partition of this name."""
        for part in self.partitions:
            if part.name == name:
                return part
        return None

    @property
    def slots(self) -> tuple[Partition, ...]:
        """The OTA slots, ota_0 first."""
        found = [part for part in self.partitions if part.slot is not None]
        return tuple(sorted(found, key=lambda part: part.subtype))

    @property
    def factory(self) -> Partition | None:
        """The factory app."""
        return self.find_kind(APP, FACTORY)

    @property
    def otadata(self) -> Partition | None:
        """The two sectors from which the bootloader chooses a slot."""
        return self.find_kind(DATA, OTA)

    @property
    def nvs(self) -> Partition | None:
        """The settings."""
        return self.find_kind(DATA, NVS)

    @property
    def end(self) -> int:
        """Flash that the table needs, in bytes."""
        return max((part.end for part in self.partitions), default=0)

    def to_bin(self) -> bytes:
        """Return the 0xC00 bytes of the binary table, MD5 row included."""
        rows = b"".join(part.pack() for part in self.partitions)
        rows += MD5_MARK + hashlib.md5(rows).digest()
        return rows.ljust(TABLE_SIZE, b"\xff")

    def to_csv(self) -> str:
        """Return the table as ESP-IDF prints it."""
        lines = ["# ESP-IDF Partition Table", "# Name, Type, SubType, Offset, Size, Flags"]
        for part in self.partitions:
            flags = [name for name in FLAGS if getattr(part, name)]
            fields = (
                part.name,
                part.type_name,
                part.subtype_name,
                f"{part.offset:#x}",
                _format_size(part.size),
                ":".join(flags),
            )
            lines.append(",".join(fields))
        return "\n".join(lines) + "\n"


def _find_name(names: dict[str, int], value: int) -> str:
    for name, number in names.items():
        if number == value:
            return name
    return str(value)


def _format_size(size: int) -> str:
    for unit, suffix in ((0x100000, "M"), (0x400, "K")):
        if size % unit == 0:
            return f"{size // unit}{suffix}"
    return hex(size)
