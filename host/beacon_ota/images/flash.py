"""Whole flash images, for chips and for virtual beacons: built and taken apart.

Bootloader at 0x0, partition table at 0x8000, then the partitions of the board's CSV: settings,
otadata, the release, stage 0 in the vfs. Everything else is FF.

The release goes into the factory app where the layout has one: with blank otadata the
bootloader boots it without writing anything, and it stays as what both slots can fall back to.
Without factory it goes into ota_0, and otadata says ``1/valid``: left blank, the bootloader
would write that by itself on the first boot, and a power cut inside that write would leave an
entry that it neither counts nor writes again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from beacon_ota import paths
from beacon_ota.errors import InputError
from beacon_ota.images import (
    Buffer,
    boards,
    esp,
    littlefs,
    littlefs_writer,
    nvs,
    otadata,
    partition_table,
    partitions,
    settings,
)
from beacon_ota.images import release as releases
from beacon_ota.images.boards import Board
from beacon_ota.images.esp_format import Bootloader
from beacon_ota.images.littlefs import Filesystem
from beacon_ota.images.nvs import Nvs
from beacon_ota.images.partition_table import TABLE_OFFSET, Partition, Table
from beacon_ota.images.release import Release

P = ParamSpec("P")
T = TypeVar("T")

SECTOR = 4096
LABEL, ADDRESS = "label", "address"  # NVS namespace and key; beacons do not read them


class FlashError(InputError):
    """Parts that do not make a flash image."""


@dataclass(frozen=True)
class AppSlot:
    """What an app partition holds: a release, or why there is none; ``blank`` when all FF."""

    partition: Partition
    release: Release | None
    error: InputError | None
    blank: bool


@dataclass(frozen=True)
class Flash:
    """A flash image taken apart. A part that is missing or damaged is None.

    Args:
        board: a known board with this table and size, or None.
        errors: what is wrong, by name of the part.
    """

    size: int
    board: Board | None
    bootloader: Bootloader | None
    table: Table
    settings: Nvs | None
    otadata: tuple[otadata.Entry, otadata.Entry] | None
    apps: tuple[AppSlot, ...]
    vfs: Filesystem | None
    errors: Mapping[str, InputError]


def stage0_files() -> dict[str, bytes]:
    """Return the files of the vfs: stage 0 as it is."""
    folder = paths.data_path("firmware", "stage0")
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.py"))}


def build_flash(
    board: Board,
    bootloader: bytes,
    release: bytes,
    values: Mapping[str, int | bytes] | None = None,
    files: Mapping[str, bytes] | None = None,
    address: bytes = b"",
) -> bytes:
    """Return a flash image of the board's whole flash.

    Args:
        bootloader: a bootloader image; its header gets the board's flash size.
        release: a release image for this board.
        values: settings, as :func:`beacon_ota.images.settings.parse_settings` returns them.
        files: what the vfs holds; stage 0 by default.
        address: of the chip that it is for, or the last bytes of it; b"" for any chip.

    Raises:
        BoardError: ``slot_too_small``.
        FlashError: ``device_type`` (a release for another board).
        ImageError, AppError, NvsError, LittlefsError: a part is not acceptable.
    """
    board.check_fit(len(release))
    found = releases.parse_release(release)
    if found.info.device_type != board.device_type:
        raise FlashError(
            "device_type",
            "the release is for another board",
            found=found.info.device_type,
            expected=board.device_type,
        )
    loader = esp.with_flash_size(bootloader, board.flash_size)
    esp.parse_bootloader(loader, 0, TABLE_OFFSET)
    entry = None if board.table.factory else otadata.make_entry(1, otadata.VALID)
    vfs = stage0_files() if files is None else files
    stored: dict[str, Mapping[str, int | bytes]] = {settings.NAMESPACE: values or {}}
    if address:
        stored[LABEL] = {ADDRESS: address}
    parts = {
        0: loader,
        TABLE_OFFSET: board.table.to_bin(),
        board.nvs.offset: nvs.generate_partition(stored, board.nvs.size),
        board.otadata.offset: otadata.build_partition(entry),
        board.initial_app.offset: release,
        board.vfs.offset: littlefs_writer.build_filesystem(vfs, SECTOR, board.vfs.size // SECTOR),
    }
    image = bytearray(b"\xff") * board.flash_size
    for offset, data in parts.items():
        image[offset : offset + len(data)] = data
    return bytes(image)


def parse_flash(data: Buffer) -> Flash:
    """Take a flash image apart, as far as it goes.

    Raises:
        PartitionError: there is no partition table at 0x8000, or not a valid one.
    """
    table = partitions.parse_bin(data, offset=TABLE_OFFSET)
    errors: dict[str, InputError] = {}
    loader = _keep_error(errors, "bootloader", esp.parse_bootloader, data, 0, TABLE_OFFSET)
    if table.end > len(data):
        errors["size"] = FlashError(
            "flash_truncated",
            "the file ends before the last partition",
            found=len(data),
            expected=table.end,
        )
    stored = None
    if table.nvs is not None:
        stored = _keep_error(
            errors, table.nvs.name, nvs.read_partition, _partition_bytes(data, table.nvs)
        )
    entries = None
    if table.otadata is not None and table.otadata.end <= len(data):
        entries = otadata.parse_entries(_partition_bytes(data, table.otadata))
    vfs_part = table.find_name(boards.VFS)
    vfs = None
    if vfs_part is not None and not _is_blank(_partition_bytes(data, vfs_part)):
        vfs = _keep_error(
            errors, vfs_part.name, littlefs.read_filesystem, _partition_bytes(data, vfs_part)
        )
    apps = tuple(_parse_slot(data, part) for part in table if part.type == partition_table.APP)
    for app in apps:
        if app.error is not None:
            errors[app.partition.name] = app.error
    return Flash(
        len(data), _find_board(table, len(data)), loader, table, stored, entries, apps, vfs, errors
    )


def read_address(data: Buffer) -> bytes:
    """Return the address of the chip that a flash image is for, or its end; b"" for any chip.

    Raises:
        PartitionError: not a flash image.
    """
    stored = parse_flash(data).settings
    found = stored.get(LABEL, ADDRESS) if stored else None
    return found if isinstance(found, bytes) and len(found) in (3, 6) else b""


def used_regions(data: Buffer) -> list[tuple[int, int]]:
    """Return the (offset, length) of all stretches of sectors that are not blank."""
    found: list[tuple[int, int]] = []
    blank = b"\xff" * SECTOR
    for offset in range(0, len(data), SECTOR):
        if bytes(data[offset : offset + SECTOR]) == blank[: len(data) - offset]:
            continue
        if found and sum(found[-1]) == offset:
            found[-1] = found[-1][0], found[-1][1] + SECTOR
        else:
            found.append((offset, SECTOR))
    return found


def _parse_slot(data: Buffer, part: Partition) -> AppSlot:
    if _is_blank(_partition_bytes(data, part)):
        return AppSlot(part, None, None, True)
    errors: dict[str, InputError] = {}
    found = _keep_error(errors, "app", releases.parse_release, data, part.offset, part.size)
    return AppSlot(part, found, errors.get("app"), False)


def _keep_error(
    errors: dict[str, InputError], name: str, parse: Callable[P, T], *args: P.args, **more: P.kwargs
) -> T | None:
    """Return what ``parse`` returns; None after an InputError, which is kept under ``name``."""
    try:
        return parse(*args, **more)
    except InputError as error:
        errors[name] = error
        return None


def _partition_bytes(data: Buffer, part: Partition) -> bytes:
    return bytes(data[part.offset : part.end])


def _is_blank(data: bytes) -> bool:
    return data.count(0xFF) == len(data)


def _find_board(table: Table, size: int) -> Board | None:
    for name in boards.board_names():
        board = boards.load_board(name)
        if board.table == table and board.flash_size == size:
            return board
    return None
