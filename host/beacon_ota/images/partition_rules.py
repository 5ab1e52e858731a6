"""The rules that a partition table keeps: those of ESP-IDF's ``gen_esp32part.py``."""

from beacon_ota.images.partition_table import (
    APP,
    BOOTLOADER,
    COREDUMP,
    DATA,
    NVS,
    OTA,
    OTADATA_SIZE,
    PARTITION_TABLE,
    TABLE_OFFSET,
    TABLE_SECTOR,
    TEE_OTA,
    TYPES,
    Partition,
    PartitionError,
    Table,
)

ROWS_MAX = 94  # beside the MD5 row and the end


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
