"""ROM and second-stage bootloader: which slot boots, and what that writes to flash.

Exact for ESP-IDF 5.x with rollback, as the stock MicroPython builds have it. Sources:
``bootloader_support/src/bootloader_utility.c``, ``bootloader/subproject/main/bootloader_start.c``.
"""

from dataclasses import dataclass, replace

from beacon_ota.images import esp as image
from beacon_ota.images import partitions
from beacon_ota.images.partitions import APP, TEST, Partition, PartitionError, Table
from beacon_ota.virtual.flash import otadata
from beacon_ota.virtual.flash.nor import Flash, FlashError
from beacon_ota.virtual.flash.otadata import ABORTED, NEW, PENDING, VALID, Entry

FACTORY = -1  # index of the factory app among the slots
TEST_APP = partitions.SLOTS_MAX  # and of the test app
LOADER = 0x0  # where the bootloader lies, and its largest size
LOADER_SIZE = 0x8000


class NotBootable(Exception):
    """The chip resets for ever; the message says why."""


@dataclass(frozen=True)
class BootResult:
    """What the bootloader jumped to. ``lines`` are what it would have logged."""

    table: Table
    partition: Partition
    lines: tuple[str, ...]


def boot_from_flash(flash: Flash, *, rollback: bool = True) -> BootResult:
    """Boot from flash: ROM, bootloader, partition table, otadata, image.

    Raises:
        NotBootable: no bootloader, no partition table, no image that verifies.
        PowerCut: the power failed at one of the writes.
    """
    if not image.verify_bootable(flash.content, LOADER, LOADER_SIZE):
        raise NotBootable("invalid header: no bootloader at 0x0")
    table = read_table(flash)
    lines: list[str] = []
    index = choose_slot(flash, table, lines, rollback=rollback)
    part = None if index is None else _partition_at(table, index)
    if part is None:
        raise NotBootable("No bootable app partitions in the partition table")
    return BootResult(table, part, tuple(lines))


def read_table(flash: Flash) -> Table:
    """Read the partition table (:class:`NotBootable` when there is none)."""
    raw = flash.read(partitions.TABLE_OFFSET, partitions.TABLE_SIZE)
    try:
        return partitions.parse_bin(raw, flash.size)
    except PartitionError as error:
        raise NotBootable(f"Failed to verify partition table: {error}") from error


def verify_image(flash: Flash, part: Partition, *, load: bool = False) -> bool:
    """Tell whether the image in a partition is whole; ``load`` asks as the bootloader does."""
    return image.verify_bootable(flash.content, part.offset, part.size, load=load) is not None


def choose_slot(
    flash: Flash, table: Table, lines: list[str], *, rollback: bool = True
) -> int | None:
    """Return the slot that boots (``FACTORY``, 0…, ``TEST_APP``), or None when none can.

    Writes otadata as the bootloader does: before any image is looked at.
    """
    slots, place = table.slots, table.otadata
    index, blank = FACTORY, False
    if place is not None:
        entries = list(otadata.read_entries(flash, place.offset))
        if rollback:
            for sector in (0, 1):
                if entries[sector].state == PENDING:
                    entries[sector] = replace(entries[sector], state=ABORTED)
                    _write_otadata(flash, place, sector, entries[sector], lines)
        index, blank = _select_first(flash, table, entries, lines, rollback)
    for candidate in _trial_order(index, len(slots)):
        part = _partition_at(table, candidate)
        if part is None:
            continue
        if not verify_image(flash, part, load=True):
            lines.append(f"image at {part.offset:#x} does not verify: {part.name}")
            continue
        if place is not None and blank and candidate not in (FACTORY, TEST_APP):
            _write_otadata(flash, place, 0, otadata.make_entry(candidate + 1, VALID), lines)
        lines.append(f"booting {part.name} at {part.offset:#x}")
        return candidate
    return None


def _select_first(
    flash: Flash, table: Table, entries: list[Entry], lines: list[str], rollback: bool
) -> tuple[int, bool]:
    """Return the slot to try first, and whether otadata is blank and is to be initialised."""
    first, second = entries
    count, place = len(table.slots), table.otadata
    assert place is not None
    if (first.rejected and second.rejected) or not count:
        if table.factory is not None:
            return FACTORY, False
        return 0, all(
            e.seq == otadata.BLANK or e.crc != otadata.sequence_crc(e.seq) for e in entries
        )
    active = otadata.active_entry((first, second))
    if active < 0:
        return FACTORY, False
    chosen = entries[active]
    if rollback and chosen.state == NEW:
        _write_otadata(flash, place, active, replace(chosen, state=PENDING), lines)
    return chosen.slot(count), False


def _trial_order(index: int, count: int) -> list[int]:
    """Slots in the order of trial: down to the factory app, then up, then the test app."""
    return [*range(index, FACTORY - 1, -1), *range(index + 1, count), TEST_APP]


def _partition_at(table: Table, index: int) -> Partition | None:
    if index == FACTORY:
        return table.factory
    if index == TEST_APP:
        return table.find_kind(APP, TEST)
    return table.slots[index] if index < len(table.slots) else None


def _write_otadata(
    flash: Flash, place: Partition, sector: int, entry: Entry, lines: list[str]
) -> None:
    try:
        otadata.write_entry(flash, place.offset, sector, entry)
    except FlashError as error:
        lines.append(f"otadata not written: {error}")  # as the bootloader: log, and go on
    else:
        lines.append(f"otadata {sector}: {entry}")
