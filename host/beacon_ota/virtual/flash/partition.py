"""What ``esp32.Partition`` and ``esp32.NVS`` ask for, with ESP-IDF's checks and numbers.

Checks in their order: read-only row, start beyond the end, length beyond the end, alignment.
Writing to the running app or to the flash's first 0x8C00 bytes is a panic, not an error.
Sources: ``esp_partition/partition_target.c``, ``spi_flash/esp_flash_api.c``, MicroPython
``ports/esp32/esp32_partition.c`` and ``esp32_nvs.c``.
"""

from beacon_ota.images.partitions import APP, DATA, Partition, Table
from beacon_ota.virtual.flash import bootloader, esp_errors, otadata
from beacon_ota.virtual.flash.esp_errors import EspError, os_error
from beacon_ota.virtual.flash.nor import SECTOR, Flash, FlashError
from beacon_ota.virtual.flash.nvs import Nvs
from beacon_ota.virtual.process.channel import Operation, Value

BOOT, RUNNING = 0, 1
GUARDED = 0x8C00  # bootloader and partition table: nothing may write there
FAT = 0x81
READ_MAX = 0x10000  # bytes of one answer


class Panic(Exception):
    """The chip aborts and resets."""


class Partitions:
    """The partitions of a running app: those of the table, and the port's own "vfs".

    Args:
        flash: the chip.
        table: the partition table as it was at boot.
        running: the partition the app runs from.
        nvs: the settings, None when they could not be initialised.
        rollback: whether the core was built with rollback, as stock cores are.
    """

    def __init__(
        self, flash: Flash, table: Table, running: Partition, nvs: Nvs | None, *, rollback: bool
    ):
        self._flash, self._table, self._running = flash, table, running
        self._nvs, self._rollback = nvs, rollback
        self.rows = list(table)
        if not any(row.name in ("vfs", "ffat") for row in self.rows) and table.end < flash.size:
            rest = Partition("vfs", DATA, FAT, table.end, flash.size - table.end)
            self.rows.append(rest)

    @property
    def operations(self) -> dict[str, Operation]:
        """What the stand-in ``esp32`` calls."""
        return {
            name: _translate_errors(operation)
            for name, operation in {
                "partition": self.get_partition,
                "partitions": self.find_partitions,
                "read": self.read_range,
                "write": self.write_blocks,
                "erase": self.erase_range,
                "set_boot": self.set_boot,
                "next_update": self.next_update,
                "mark_valid": self.mark_valid,
                "nvs_open": self.nvs_open,
                "nvs_set": self.nvs_set,
                "nvs_get": self.nvs_get,
                "nvs_size": self.nvs_size,
                "nvs_erase": self.nvs_erase,
            }.items()
        }

    @property
    def mounted(self) -> str | None:
        """Label of the partition that the port mounts at ``/``."""
        for label in ("vfs", "ffat"):
            if any(row.name == label and row.type == DATA for row in self.rows):
                return label
        return None

    def get_partition(self, which: int | str) -> Value:
        """``Partition(id)``: a number (boot, running) or a label."""
        found: Partition | None = None
        if which == RUNNING:
            found = self._running
        elif which == BOOT:
            found = otadata.boot_partition(self._flash, self._table)
        elif isinstance(which, int):
            raise ValueError
        else:
            for type in (APP, DATA):
                for row in self.rows:
                    if found is None and (row.type, row.name) == (type, which):
                        found = row
        if found is None:
            raise OSError(2)
        return self._describe_row(self._index_of(found))

    def find_partitions(self, type: int, subtype: int, label: str | None) -> Value:
        """``Partition.find``, in the order of the table."""
        if type == 0xFF and subtype != 0xFF:
            return ()
        return tuple(
            self._describe_row(index)
            for index, row in enumerate(self.rows)
            if type in (0xFF, row.type)
            and subtype in (0xFF, row.subtype)
            and label in (None, row.name)
        )

    def read_range(self, index: int, start: int, length: int) -> bytes:
        """Read at most 64 KiB."""
        part = self.rows[index]
        _check_range(part, start, length)
        return self._flash.read(part.offset + start, min(length, READ_MAX))

    def write_blocks(
        self, index: int, start: int, erasing: bool, block: int, data: bytes = b""
    ) -> None:
        """``writeblocks``: with two arguments it erases first, with three it only programs."""
        part = self.rows[index]
        if erasing and block < SECTOR:
            self._rewrite_block(part, start, data)
            return
        if erasing:
            self.erase_range(index, start, len(data))
        self._program_range(part, start, data)

    def erase_range(self, index: int, start: int, length: int) -> None:
        """Erase whole sectors."""
        part = self.rows[index]
        if part.readonly:
            raise EspError(esp_errors.NOT_ALLOWED)
        _check_range(part, start, length)
        if length % SECTOR:
            raise EspError(esp_errors.INVALID_SIZE)
        if start % SECTOR:
            raise EspError(esp_errors.INVALID_ARG)
        self._guard(part, start, length)
        self._flash.erase(part.offset + start, length)

    def set_boot(self, index: int) -> None:
        """``Partition.set_boot``."""
        _check(
            otadata.set_boot(
                self._flash,
                self._table,
                self.rows[index],
                lambda part: bootloader.verify_image(self._flash, part),
                rollback=self._rollback,
            )
        )

    def next_update(self, index: int) -> Value:
        """``Partition.get_next_update``."""
        found = otadata.next_update(self._table, self.rows[index])
        if found is None:
            raise OSError(2)
        return self._describe_row(self._index_of(found))

    def mark_valid(self) -> None:
        """``Partition.mark_app_valid_cancel_rollback``."""
        _check(otadata.mark_valid(self._flash, self._table))

    def nvs_open(self, name: str) -> int:
        """``NVS(namespace)``."""
        return self._settings.open_namespace(name)

    def nvs_set(self, handle: int, key: str, value: int | bytes) -> None:
        """``set_i32`` and ``set_blob``."""
        self._settings.set(handle, key, value)

    def nvs_get(self, handle: int, key: str, room: int | None) -> int | bytes:
        """``get_i32`` (``room`` None) and ``get_blob`` into a buffer of ``room`` bytes."""
        value = self._typed(handle, key, int if room is None else bytes)
        if room is not None and isinstance(value, bytes) and len(value) > room:
            raise EspError(esp_errors.NVS_INVALID_LENGTH)
        return value

    def nvs_size(self, handle: int, key: str) -> int:
        """What ``get_blob`` into nothing returns: the size."""
        value = self._typed(handle, key, bytes)
        return len(value) if isinstance(value, bytes) else 0

    def nvs_erase(self, handle: int, key: str) -> None:
        """``erase_key``."""
        self._settings.erase(handle, key)

    @property
    def _settings(self) -> Nvs:
        if self._nvs is None:
            raise EspError(esp_errors.NVS_NOT_INITIALIZED)
        return self._nvs

    def _typed(self, handle: int, key: str, kind: type[int] | type[bytes]) -> int | bytes:
        value = self._settings.get(handle, key, kind)
        if value is None:
            raise EspError(esp_errors.NVS_NOT_FOUND)
        return value

    def _program_range(self, part: Partition, start: int, data: bytes) -> None:
        if part.readonly:
            raise EspError(esp_errors.NOT_ALLOWED)
        _check_range(part, start, len(data))
        if data:
            self._guard(part, start, len(data))
            self._flash.program(part.offset + start, data)

    def _rewrite_block(self, part: Partition, start: int, data: bytes) -> None:
        """A block smaller than a sector: what lies around it is kept, in RAM meanwhile."""
        if not data:
            return
        _check_range(part, start, len(data))
        for sector in range(start // SECTOR * SECTOR, start + len(data), SECTOR):
            old = self._flash.read(part.offset + sector, SECTOR)
            head, tail = max(start - sector, 0), max(sector + SECTOR - start - len(data), 0)
            self.erase_range(self._index_of(part), sector, SECTOR)
            if head:
                self._program_range(part, sector, old[:head])
            if tail:
                self._program_range(part, sector + SECTOR - tail, old[-tail:])
        self._program_range(part, start, data)

    def _guard(self, part: Partition, start: int, length: int) -> None:
        begin, end = part.offset + start, part.offset + start + length
        running = self._running
        if begin < GUARDED or (begin < running.end and end > running.offset):
            raise Panic(f"abort() was called: write to {begin:#x}, which the app runs from")

    def _index_of(self, part: Partition) -> int:
        return next(i for i, row in enumerate(self.rows) if row.offset == part.offset)

    def _describe_row(self, index: int) -> Value:
        row = self.rows[index]
        return (index, row.type, row.subtype, row.offset, row.size, row.name, row.encrypted)


def _check_range(part: Partition, start: int, length: int) -> None:
    if start < 0 or start > part.size:
        raise EspError(esp_errors.INVALID_ARG)
    if length > part.size - start:
        raise EspError(esp_errors.INVALID_SIZE)


def _check(code: int) -> None:
    if code != esp_errors.OK:
        raise EspError(code)


def _translate_errors(operation: Operation) -> Operation:
    """Turn errors of the model into what beacon code sees."""

    def call(*args):
        try:
            return operation(*args)
        except (EspError, FlashError) as error:
            raise os_error(error.code) from error

    return call
