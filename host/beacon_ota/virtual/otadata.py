"""otadata: which slot boots next. The app's side, exactly as ESP-IDF 5.x writes it.

Two 32-byte entries, each at the start of a sector of its own: sequence number, label,
state, CRC of the sequence number. The traps are the original's: see :func:`set_boot` and
:func:`mark_valid`. Source: ESP-IDF ``app_update/esp_ota_ops.c``,
``bootloader_support/src/bootloader_common_loader.c``, v5.2 to v5.5.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from beacon_ota.images.partitions import APP, FACTORY, TEST, Partition, Table
from beacon_ota.virtual import esp
from beacon_ota.virtual.flash import SECTOR, Flash

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

_ENTRY = struct.Struct("<I20sII")

Verify = Callable[[Partition], bool]


@dataclass(frozen=True)
class Entry:
    """One entry. ``seq`` 0xFFFFFFFF is a blank one."""

    seq: int = BLANK
    label: bytes = b"\xff" * 20
    state: int = UNDEFINED
    crc: int = BLANK

    @classmethod
    def unpack(cls, raw: bytes) -> "Entry":
        """Read 32 bytes."""
        return cls(*_ENTRY.unpack(raw))

    def pack(self) -> bytes:
        """Return the 32 bytes."""
        return _ENTRY.pack(self.seq, self.label, self.state, self.crc)

    @property
    def rejected(self) -> bool:
        """Blank, or judged bad; the CRC is not looked at."""
        return self.seq == BLANK or self.state in (INVALID, ABORTED)

    @property
    def good(self) -> bool:
        """May be the active entry."""
        return not self.rejected and self.crc == crc(self.seq)

    def slot(self, count: int) -> int:
        """Return the slot this entry names when there are ``count``."""
        return (self.seq - 1 & 0xFFFFFFFF) % count

    def __str__(self) -> str:
        if self.seq == BLANK:
            return "blank"
        mark = "" if self.crc == crc(self.seq) else " (bad CRC)"
        return f"{self.seq}/{STATES.get(self.state, hex(self.state))}{mark}"


def crc(seq: int) -> int:
    """Return the CRC that belongs to a sequence number."""
    return zlib.crc32(struct.pack("<I", seq), 0xFFFFFFFF)


def entry(seq: int, state: int) -> Entry:
    """Return an entry with the right CRC and a blank label."""
    return Entry(seq, state=state, crc=crc(seq))


def read(flash: Flash, offset: int) -> tuple[Entry, Entry]:
    """Read both entries of the otadata partition at flash ``offset``."""
    return (
        Entry.unpack(flash.read(offset, _ENTRY.size)),
        Entry.unpack(flash.read(offset + SECTOR, _ENTRY.size)),
    )


def write(flash: Flash, offset: int, sector: int, value: Entry) -> None:
    """Rewrite an entry: one erase, one program of 32 bytes."""
    flash.erase(offset + sector * SECTOR)
    flash.program(offset + sector * SECTOR, value.pack())


def active(entries: tuple[Entry, Entry]) -> int:
    """Return which entry counts, 0 or 1, or -1; of equal numbers it is 0."""
    first, second = entries
    if first.good and second.good:
        return 0 if first.seq >= second.seq else 1
    return 0 if first.good else 1 if second.good else -1


def set_boot(
    flash: Flash, table: Table, target: Partition, verify: Verify, *, rollback: bool = True
) -> int:
    """``esp_ota_set_boot_partition``: return an ``esp_err_t``.

    Trap: when the active entry already names the target's slot, the *other* entry, that of
    the previous slot, is overwritten with the same sequence number.
    """
    if not verify(target):
        return esp.OTA_VALIDATE_FAILED
    if target.type != APP:
        return esp.INVALID_ARG
    otadata = table.otadata
    if otadata is None:
        return esp.NOT_FOUND
    if target.subtype == FACTORY:
        flash.erase(otadata.offset, 2 * SECTOR)
        return esp.OK
    slot, count = target.subtype & 0x0F, len(table.slots)
    if slot >= count:
        return esp.INVALID_ARG
    entries = read(flash, otadata.offset)
    current = active(entries)
    if current < 0:
        sector, seq = 0, slot + 1
    else:
        seq, base = entries[current].seq, (slot + 1) % count
        sector = 1 - current
        seq = base if seq <= base else base + -(-(seq - base) // count) * count
    seq &= 0xFFFFFFFF
    state = NEW if rollback else UNDEFINED
    value = replace(entries[sector], seq=seq, state=state, crc=crc(seq))
    write(flash, otadata.offset, sector, value)
    return esp.OK


def mark_valid(flash: Flash, table: Table) -> int:
    """``esp_ota_mark_app_valid_cancel_rollback``: return an ``esp_err_t``.

    Trap: it marks the active entry, not the running slot's.
    """
    otadata = table.otadata
    if otadata is None:
        return esp.NOT_FOUND
    entries = read(flash, otadata.offset)
    current = active(entries)
    if current < 0 or not table.slots:
        return esp.FAIL
    found = entries[current]
    if found.state != VALID:
        write(flash, otadata.offset, current, replace(found, state=VALID, crc=crc(found.seq)))
    return esp.OK


def boot_partition(flash: Flash, table: Table) -> Partition | None:
    """``esp_ota_get_boot_partition``: what otadata selects; the image is not looked at."""
    otadata = table.otadata
    if otadata is None:
        return None
    entries = read(flash, otadata.offset)
    current = active(entries) if table.slots else -1
    if current >= 0:
        return table.slots[entries[current].slot(len(table.slots))]
    if table.factory is not None:
        return table.factory
    return table.slots[0] if table.slots else table.find(APP, TEST)


def next_update(table: Table, running: Partition) -> Partition | None:
    """``esp_ota_get_next_update_partition``: the slot after the running one."""
    slots = table.slots
    if running.slot is not None:
        for slot in slots:
            if slot.subtype > running.subtype:
                return slot
    return slots[0] if slots else None
