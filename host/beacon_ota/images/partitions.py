"""Reads partition tables: CSV and binary, byte for byte as ESP-IDF's generator does it."""

import hashlib

from beacon_ota.images import Buffer
from beacon_ota.images.partition_rules import verify_table
from beacon_ota.images.partition_table import (
    APP,
    DATA,
    FLAGS,
    MD5_MARK,
    ROW,
    ROW_FORMAT,
    ROW_MAGIC,
    SUBTYPES,
    TABLE_OFFSET,
    TABLE_SECTOR,
    TABLE_SIZE,
    TYPES,
    Partition,
    PartitionError,
    Table,
)


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
        part = _parse_row(line, number, end)
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
            return verify_table(Table(tuple(_unpack_row(row) for row in rows)), flash_size)
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


def _parse_row(line: str, number: int, end: int) -> Partition:
    """Read one CSV line; ``end`` is where the row before ends."""
    fields = [field.strip() for field in line.split(",")] + [""] * 6
    name, type_text, subtype_text, offset_text, size_text, flag_text = fields[:6]
    try:
        kind = _parse_kind(type_text, TYPES)
        if not subtype_text and kind != APP:
            subtype = SUBTYPES[DATA]["undefined"]
        else:
            subtype = _parse_kind(subtype_text, SUBTYPES.get(kind, {}))
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


def _parse_kind(text: str, names: dict[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    try:
        return int(text, 0)
    except ValueError:
        raise PartitionError(
            "table_csv", "no such type or subtype", found=text, expected=", ".join(names)
        ) from None


def _unpack_row(row: bytes) -> Partition:
    _, kind, subtype, offset, size, label, flags = ROW_FORMAT.unpack(row)
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
