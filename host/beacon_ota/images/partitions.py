"""Partition tables: CSV to binary and back, byte for byte as ESP-IDF's generator does it.

The binary table lies at flash offset 0x8000: rows of 32 bytes, a row with the MD5 of all rows
before it, FF to the end of 0xC00 bytes. Rules and names: ESP-IDF ``gen_esp32part.py``.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from beacon_ota.errors import InputError
from beacon_ota.images import Buffer

TABLE_OFFSET = 0x8000  # flash offset of the table
TABLE_SECTOR = 0x1000  # flash it occupies
TABLE_SIZE = 0xC00  # bytes of the binary table
ROW = 32
ROW_MAGIC = b"\xaa\x50"
MD5_MARK = b"\xeb\xeb" + b"\xff" * 14
ROWS_MAX = 94  # beside the MD5 row and the end

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

_ROW = struct.Struct("<2sBBII16sI")


class PartitionError(InputError):
    """A partition table breaks a rule. Codes start with ``table_``."""


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
        return _name_of(TYPES, self.type)

    @property
    def subtype_name(self) -> str:
        """Subtype as the CSV spells it."""
        return _name_of(SUBTYPES.get(self.type, {}), self.subtype)

    def pack(self) -> bytes:
        """Return the 32-byte row."""
        flags = FLAGS["encrypted"] * self.encrypted | FLAGS["readonly"] * self.readonly
        name = self.name.encode()
        return _ROW.pack(ROW_MAGIC, self.type, self.subtype, self.offset, self.size, name, flags)


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
                _size_text(part.size),
                ":".join(flags),
            )
            lines.append(",".join(fields))
        return "\n".join(lines) + "\n"


def parse_csv(text: str, flash_size: int | None = None) -> Table:
    """Read a partition CSV.

    Empty offsets follow the row before, aligned; a negative size is an end address.

    Args:
        text: the file.
        flash_size: bytes of flash, to check that the table fits.

    Raises:
        PartitionError: ``table_csv`` (a field), or one of :func:`verify_table`.
    """
    parts: list[Partition] = []
    end = TABLE_OFFSET + TABLE_SECTOR
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        part = _row(line, number, end)
        if part.offset < end:
            before = f"{parts[-1].name} ends" if parts else "the partition table ends"
            raise PartitionError(
                "table_overlap",
                f"line {number}: {part.name} begins before {before}",
                found=hex(part.offset),
                expected=f"{end:#x} or more",
            )
        parts.append(part)
        end = part.end
    return verify_table(Table(tuple(parts)), flash_size)


def parse_bin(data: Buffer, flash_size: int | None = None, offset: int = 0) -> Table:
    """Read a binary table, e.g. the 4096 bytes at flash offset 0x8000.

    Raises:
        PartitionError: ``table_magic`` (no table there), ``table_md5`` (wrong or absent),
            ``table_end`` (no end mark), or one of :func:`verify_table`.
    """
    data = bytes(data[offset : offset + TABLE_SIZE])
    rows: list[bytes] = []
    for at in range(0, len(data) - ROW + 1, ROW):
        row = data[at : at + ROW]
        if row[:2] == MD5_MARK[:2] and rows:
            digest = hashlib.md5(data[:at]).digest()
            if row[16:] != digest:
                raise PartitionError(
                    "table_md5",
                    "the table's MD5 does not match its rows",
                    found=row[16:].hex(),
                    expected=digest.hex(),
                )
            if data[at + ROW : at + 2 * ROW] != b"\xff" * ROW:
                break
            return verify_table(Table(tuple(_unpack(row) for row in rows)), flash_size)
        if row == b"\xff" * ROW and rows:
            # The bootloader would go on without it; ESP-IDF's partition API does not.
            raise PartitionError("table_md5", "the table has no MD5 row")
        if row[:2] != ROW_MAGIC:
            raise PartitionError(
                "table_magic",
                "no partition table row here",
                found=row[:2].hex(),
                expected=ROW_MAGIC.hex(),
            )
        rows.append(row)
    raise PartitionError(
        "table_end" if rows else "table_magic", "the table has no end mark", found=len(data)
    )


def is_table(data: Buffer, offset: int = 0) -> bool:
    """Tell whether a partition table begins at ``offset``, as cheaply as possible."""
    return bytes(data[offset : offset + 2]) == ROW_MAGIC


def verify_table(table: Table, flash_size: int | None = None) -> Table:
    """Return ``table`` if it keeps the generator's rules.

    Raises:
        PartitionError: ``table_empty``, ``table_rows`` (too many), ``table_name``,
            ``table_type``, ``table_align``, ``table_low`` (below 0x9000), ``table_overlap``,
            ``table_otadata``, ``table_nvs``, ``table_readonly``, ``table_slots`` (a gap in the
            slots' numbers), ``table_flash`` (beyond the flash).
    """
    if not table.partitions:
        raise PartitionError("table_empty", "the partition table has no rows")
    if len(table) > ROWS_MAX:
        raise PartitionError(
            "table_rows", "too many partitions", found=len(table), expected=f"at most {ROWS_MAX}"
        )
    for part in table:
        _verify_row(part)
    names = [part.name for part in table]
    for name in names:
        if names.count(name) > 1:
            raise PartitionError("table_name", "two partitions have one name", found=name)
    _verify_places(table, flash_size)
    _verify_slots(table)
    return table


def parse_size(text: str) -> int:
    """Read a number such as ``0x1C0000``, ``64K`` or ``1M`` (``table_csv`` if it is none)."""
    text = text.strip()
    factor = {"k": 1024, "m": 1024 * 1024}.get(text[-1:].lower())
    try:
        if factor is not None:
            return int(text[:-1], 0) * factor
        return int(text, 0)
    except ValueError:
        raise PartitionError(
            "table_csv", "not a number", found=text, expected="0x1C0000, 64K, 1M"
        ) from None


def _verify_row(part: Partition) -> None:
    name = part.name
    if (
        not 0 < len(name.encode("utf-8", "replace")) <= 16
        or not name.isprintable()
        or "," in name
        or name.startswith("#")
        or name != name.strip()
    ):
        raise PartitionError(
            "table_name", "a name is 1 to 16 printable characters, no comma", found=name
        )
    for value, top, what in (
        (part.type, 0xFE, "type"),
        (part.subtype, 0xFE, "subtype"),
        (part.offset, 0xFFFFFFFF, "offset"),
        (part.size, 0xFFFFFFFF, "size"),
    ):
        if not 0 <= value <= top:
            raise PartitionError("table_type", f"{part.name}: {what} out of range", found=value)
    if part.type not in TYPES.values() and part.type < 0x40:
        raise PartitionError(
            "table_type",
            f"{part.name}: this type is reserved",
            found=hex(part.type),
            expected="app, data, or 0x40 to 0xFE",
        )
    align = 0x10000 if part.type == APP else 0x1000
    if part.offset % align:
        raise PartitionError(
            "table_align",
            f"{part.name}: the offset is not aligned",
            found=hex(part.offset),
            expected=f"a multiple of {align:#x}",
        )
    if part.type == APP and part.size % 0x1000:
        raise PartitionError(
            "table_align",
            f"{part.name}: the size is not aligned",
            found=hex(part.size),
            expected="a multiple of 0x1000",
        )
    if part.type != DATA:
        return
    if part.readonly and part.subtype in (OTA, COREDUMP):
        raise PartitionError(
            "table_readonly", f"{part.name}: {part.subtype_name} cannot be read-only"
        )
    if part.subtype == NVS and part.size < 0x3000 and not part.readonly:
        raise PartitionError(
            "table_nvs",
            f"{part.name}: NVS that is written to needs three sectors",
            found=hex(part.size),
            expected="0x3000 or more",
        )


def _verify_places(table: Table, flash_size: int | None) -> None:
    last: Partition | None = None
    for part in sorted(table, key=lambda part: part.offset):
        if part.offset < TABLE_OFFSET + TABLE_SECTOR and part.type not in (
            BOOTLOADER,
            PARTITION_TABLE,
        ):
            raise PartitionError(
                "table_low",
                f"{part.name}: bootloader and partition table lie there",
                found=hex(part.offset),
                expected="0x9000 or more",
            )
        if last is not None and part.offset < last.end:
            raise PartitionError(
                "table_overlap",
                f"{part.name} begins before {last.name} ends",
                found=hex(part.offset),
                expected=f"{last.end:#x} or more",
            )
        last = part
        if flash_size is not None and part.end > flash_size:
            raise PartitionError(
                "table_flash",
                f"{part.name} ends behind the flash",
                found=hex(part.end),
                expected=f"at most {flash_size:#x}",
            )


def _verify_slots(table: Table) -> None:
    for subtype, name in ((OTA, "otadata"), (TEE_OTA, "TEE otadata")):
        found = [part for part in table if (part.type, part.subtype) == (DATA, subtype)]
        if len(found) > 1:
            raise PartitionError("table_otadata", f"more than one {name}", found=len(found))
        if found and found[0].size != OTADATA_SIZE:
            raise PartitionError(
                "table_otadata",
                f"{name} is two sectors",
                found=hex(found[0].size),
                expected=hex(OTADATA_SIZE),
            )
    numbers = [part.slot for part in table.slots]
    if numbers != list(range(len(numbers))):
        raise PartitionError(
            "table_slots",
            "OTA slots are numbered from ota_0 without gaps, each once",
            found=", ".join(part.subtype_name for part in table.slots),
        )


def _row(line: str, number: int, end: int) -> Partition:
    """Read one CSV line; ``end`` is where the row before ends."""
    fields = [field.strip() for field in line.split(",")] + [""] * 6
    name, type_text, subtype_text, offset_text, size_text, flag_text = fields[:6]
    try:
        kind = _number(type_text, TYPES)
        if not subtype_text and kind != APP:
            subtype = SUBTYPES[DATA]["undefined"]
        else:
            subtype = _number(subtype_text, SUBTYPES.get(kind, {}))
        if offset_text:
            offset = parse_size(offset_text)
        else:
            align = 0x10000 if kind == APP else 0x1000
            offset = (end + align - 1) // align * align
        size = parse_size(size_text)
    except PartitionError as error:
        raise PartitionError(
            error.code,
            f"line {number}: {error.message}",
            found=error.found,
            expected=error.expected,
        ) from None
    if size < 0:
        size = -size - offset
    flags = [flag for flag in flag_text.split(":") if flag]
    for flag in flags:
        if flag not in FLAGS:
            raise PartitionError(
                "table_csv", f"line {number}: unknown flag", found=flag, expected=list(FLAGS)
            )
    return Partition(name, kind, subtype, offset, size, "encrypted" in flags, "readonly" in flags)


def _number(text: str, names: dict[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    try:
        return int(text, 0)
    except ValueError:
        raise PartitionError(
            "table_csv", "no such type or subtype", found=text, expected=", ".join(names)
        ) from None


def _unpack(row: bytes) -> Partition:
    _, kind, subtype, offset, size, label, flags = _ROW.unpack(row)
    try:
        name = label.split(b"\0")[0].decode()
    except UnicodeDecodeError:
        raise PartitionError("table_name", "a name is not text", found=label.hex()) from None
    return Partition(
        name,
        kind,
        subtype,
        offset,
        size,
        bool(flags & FLAGS["encrypted"]),
        bool(flags & FLAGS["readonly"]),
    )


def _name_of(names: dict[str, int], value: int) -> str:
    for name, number in names.items():
        if number == value:
            return name
    return str(value)


def _size_text(size: int) -> str:
    for unit, suffix in ((0x100000, "M"), (0x400, "K")):
        if size % unit == 0:
            return f"{size // unit}{suffix}"
    return hex(size)
