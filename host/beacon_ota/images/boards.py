"""Boards: the flash layout of each device type, from ``boards/<name>/board.toml`` and its CSV.

The device type that releases, beacons and the orchestrator speak of is the board's name.
More boards are found in the folders that ``BEACON_OTA_BOARDS`` lists.
"""

import os
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from beacon_ota import paths, text_files
from beacon_ota.errors import BeaconOtaError, InputError, UsageError
from beacon_ota.images import partition_table, partitions
from beacon_ota.images.partition_table import Partition, PartitionError, Table

FOLDERS = "BEACON_OTA_BOARDS"
VFS = "vfs"  # the label MicroPython mounts at /
_FIELDS = {"name", "description", "chip", "flash", "partitions"}


class BoardError(InputError):
    """A board's files are wrong, or something does not fit its flash."""


@dataclass(frozen=True)
class Board:
    """A board; sizes in bytes."""

    name: str
    description: str
    flash_size: int
    table: Table

    @property
    def device_type(self) -> str:
        """The device type of releases for this board."""
        return self.name

    @property
    def slots(self) -> tuple[Partition, ...]:
        """The OTA slots, ota_0 first."""
        return self.table.slots

    @property
    def initial_app(self) -> Partition:
        """Where the first release goes: the factory app where there is one, else ota_0."""
        return self.table.factory or self.slots[0]

    @property
    def slot_size(self) -> int:
        """Bytes that every release has to fit into: the smallest of slots and factory."""
        return min(part.size for part in (*self.slots, self.initial_app))

    @property
    def vfs(self) -> Partition:
        """The filesystem that holds stage 0."""
        return _require(self.table.find_name(VFS))

    @property
    def nvs(self) -> Partition:
        """The settings."""
        return _require(self.table.nvs)

    @property
    def otadata(self) -> Partition:
        """From where the bootloader knows which slot to boot."""
        return _require(self.table.otadata)

    def check_fit(self, size: int, what: str = "the release") -> None:
        """Refuse an image larger than a slot (``slot_too_small``)."""
        if size > self.slot_size:
            raise BoardError(
                "slot_too_small",
                f"{what} has {size:,} bytes, a slot of the board {self.name} {self.slot_size:,}: "
                f"{size - self.slot_size:,} too many",
                found=size,
                expected=self.slot_size,
            )


def board_names() -> tuple[str, ...]:
    """Return the names of all boards, the project's own first."""
    found: dict[str, None] = {}
    for root in _board_folders():
        for file in sorted(root.glob("*/board.toml")):
            found.setdefault(file.parent.name)
    return tuple(found)


def load_board(name: str | Path) -> Board:
    """Load a board by its name, or from the folder given.

    Raises:
        UsageError: ``board_unknown``.
        BoardError: ``board_file``.
        PartitionError: the table breaks a rule.
    """
    folder = Path(name)
    if len(folder.parts) == 1 and not folder.is_absolute():
        for root in _board_folders():
            if (root / folder / "board.toml").is_file():
                return _load_folder(root / folder)
    elif (folder / "board.toml").is_file():
        return _load_folder(folder)
    raise UsageError(
        "board_unknown", "no such board", found=str(name), expected=", ".join(board_names())
    )


def board_for_device_type(device_type: str) -> Board:
    """Return the board of a device type (InputError ``device_type_unknown``)."""
    if device_type not in board_names():
        raise InputError(
            "device_type_unknown",
            "no board has this device type",
            found=device_type,
            expected=", ".join(board_names()),
        )
    return load_board(device_type)


def _board_folders() -> list[Path]:
    more = os.environ.get(FOLDERS, "")
    return [paths.data_path("boards"), *(Path(part) for part in more.split(os.pathsep) if part)]


@cache
def _load_folder(folder: Path) -> Board:
    file = folder / "board.toml"
    try:
        fields = tomllib.loads(text_files.read_text_file(file))
    except (tomllib.TOMLDecodeError, BeaconOtaError) as error:
        raise BoardError("board_file", f"{file}: {error}") from error
    if set(fields) != _FIELDS or not all(isinstance(value, str) for value in fields.values()):
        raise BoardError(
            "board_file",
            f"{file}: these fields, all text",
            found=", ".join(sorted(fields)),
            expected=", ".join(sorted(_FIELDS)),
        )
    if fields["name"] != folder.name or fields["chip"] != "esp32c3":
        raise BoardError(
            "board_file",
            f"{file}: the name is the folder's, the chip esp32c3",
            found=f"{fields['name']}, {fields['chip']}",
            expected=f"{folder.name}, esp32c3",
        )
    csv = folder / fields["partitions"]
    flash_size = partitions.parse_size(fields["flash"])
    table = partitions.parse_csv(_read_csv(csv), flash_size)
    _check_layout(table, csv)
    return Board(fields["name"], fields["description"], flash_size, table)


def _read_csv(csv: Path) -> str:
    try:
        return text_files.read_text_file(csv)
    except BeaconOtaError as error:
        raise BoardError("board_file", error.message, found=error.found) from error


def _check_layout(table: Table, csv: Path) -> None:
    """Refuse a layout that cannot be updated over the air."""
    apps = len(table.slots) + (table.factory is not None)
    vfs = table.find_name(VFS)
    missing = [
        name
        for name, there in (
            ("two apps, one of them an OTA slot", apps >= 2 and table.slots),
            ("otadata", table.otadata),
            ("nvs", table.nvs),
            ("a data partition named vfs", vfs is not None and vfs.type == partition_table.DATA),
        )
        if not there
    ]
    if missing:
        raise PartitionError(
            "table_ota", f"{csv}: the layout cannot be updated, it lacks {', '.join(missing)}"
        )


def _require(part: Partition | None) -> Partition:
    assert part is not None  # _load checked it
    return part
