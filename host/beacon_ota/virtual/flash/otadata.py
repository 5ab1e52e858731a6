"""otadata: which slot boots next. The app's side, exactly as ESP-IDF 5.x writes it.

Two 32-byte entries, each at the start of a sector of its own: sequence number, label,
state, CRC of the sequence number. The traps are the original's: see :func:`set_boot` and
:func:`mark_valid`. Source: ESP-IDF ``app_update/esp_ota_ops.c``,
``bootloader_support/src/bootloader_common_loader.c``, v5.2 to v5.5.
"""

from collections.abc import Callable
from dataclasses import replace

from beacon_ota.images.otadata import (
    ABORTED,
    BLANK,
    ENTRY,
    INVALID,
    NEW,
    PENDING,
    STATES,
    UNDEFINED,
    VALID,
    Entry,
    active_entry,
    make_entry,
    sequence_crc,
)
from beacon_ota.images.partitions import APP, FACTORY, TEST, Partition, Table
from beacon_ota.virtual.flash import esp_errors
from beacon_ota.virtual.flash.nor import SECTOR, Flash

__all__ = [
    "ABORTED",
    "BLANK",
    "INVALID",
    "NEW",
    "PENDING",
    "STATES",
    "UNDEFINED",
    "VALID",
    "Entry",
    "active_entry",
    "boot_partition",
    "sequence_crc",
    "make_entry",
    "mark_valid",
    "next_update",
    "read_entries",
    "set_boot",
    "write_entry",
]

Verify = Callable[[Partition], bool]


def read_entries(flash: Flash, offset: int) -> tuple[Entry, Entry]:
    """Read both entries of the otadata partition at flash ``offset``."""
    return (
        Entry.unpack(flash.read(offset, ENTRY)),
        Entry.unpack(flash.read(offset + SECTOR, ENTRY)),
    )


def write_entry(flash: Flash, offset: int, sector: int, value: Entry) -> None:
    """Rewrite an entry: one erase, one program of 32 bytes."""
    flash.erase(offset + sector * SECTOR)
    flash.program(offset + sector * SECTOR, value.pack())


def set_boot(
    flash: Flash, table: Table, target: Partition, verify: Verify, *, rollback: bool = True
) -> int:
    """``esp_ota_set_boot_partition``: return an ``esp_err_t``.

    Trap: when the active entry already names the target's slot, the *other* entry, that of
    the previous slot, is overwritten with the same sequence number.
    """
    if not verify(target):
        return esp_errors.OTA_VALIDATE_FAILED
    if target.type != APP:
        return esp_errors.INVALID_ARG
    otadata = table.otadata
    if otadata is None:
        return esp_errors.NOT_FOUND
    if target.subtype == FACTORY:
        flash.erase(otadata.offset, 2 * SECTOR)
        return esp_errors.OK
    slot, count = target.subtype & 0x0F, len(table.slots)
    if slot >= count:
        return esp_errors.INVALID_ARG
    entries = read_entries(flash, otadata.offset)
    current = active_entry(entries)
    if current < 0:
        sector, seq = 0, slot + 1
    else:
        seq, base = entries[current].seq, (slot + 1) % count
        sector = 1 - current
        seq = base if seq <= base else base + -(-(seq - base) // count) * count
    seq &= 0xFFFFFFFF
    state = NEW if rollback else UNDEFINED
    value = replace(entries[sector], seq=seq, state=state, crc=sequence_crc(seq))
    write_entry(flash, otadata.offset, sector, value)
    return esp_errors.OK


def mark_valid(flash: Flash, table: Table) -> int:
    """``esp_ota_mark_app_valid_cancel_rollback``: return an ``esp_err_t``.

    Trap: it marks the active entry, not the running slot's.
    """
    otadata = table.otadata
    if otadata is None:
        return esp_errors.NOT_FOUND
    entries = read_entries(flash, otadata.offset)
    current = active_entry(entries)
    if current < 0 or not table.slots:
        return esp_errors.FAIL
    found = entries[current]
    if found.state != VALID:
        write_entry(
            flash, otadata.offset, current, replace(found, state=VALID, crc=sequence_crc(found.seq))
        )
    return esp_errors.OK


def boot_partition(flash: Flash, table: Table) -> Partition | None:
    """``esp_ota_get_boot_partition``: what otadata selects; the image is not looked at."""
    otadata = table.otadata
    if otadata is None:
        return None
    entries = read_entries(flash, otadata.offset)
    current = active_entry(entries) if table.slots else -1
    if current >= 0:
        return table.slots[entries[current].slot(len(table.slots))]
    if table.factory is not None:
        return table.factory
    return table.slots[0] if table.slots else table.find_kind(APP, TEST)


def next_update(table: Table, running: Partition) -> Partition | None:
    """``esp_ota_get_next_update_partition``: the slot after the running one."""
    slots = table.slots
    if running.slot is not None:
        for slot in slots:
            if slot.subtype > running.subtype:
                return slot
    return slots[0] if slots else None
