"""NOR flash: what a write does, what a power cut leaves behind, how long it takes.

Erasing sets a 4 KiB sector to FF; programming only clears bits. Every erase of a sector and
every program call is one *operation*: it is counted, can be recorded, and power can be cut
before, inside or after any one of them.
"""

import contextlib
import fcntl
import mmap
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from beacon_ota.errors import InputError, UsageError
from beacon_ota.images import Buffer

SECTOR = 0x1000
PAGE = 0x100  # bytes the chip programs at a time
FLASH_OP_FAIL = 0x6001  # ESP_ERR_FLASH_OP_FAIL

CutMoment = Literal["before", "inside", "after"]


class PowerCut(Exception):
    """The power failed at this operation; nothing works until :meth:`Flash.power_on`."""


class FlashError(Exception):
    """The chip reports that an operation failed; ``code`` is the esp_err_t."""

    def __init__(self, code: int = FLASH_OP_FAIL):
        super().__init__(f"flash operation failed ({code:#x})")
        self.code = code


@dataclass(frozen=True)
class FlashOperation:
    """One operation: ``kind`` is ``erase`` or ``program``, offset and length in bytes.

    ``data`` is what was to be programmed, so that a journal can be played again.
    """

    number: int
    kind: str
    offset: int
    length: int
    data: bytes = b""


@dataclass
class PowerCutPoint:
    """Cut the power at operation ``number`` (counted like :attr:`Flash.ops`, from 0).

    ``inside`` leaves a torn operation, chosen by ``seed``: of a program a prefix of the bytes,
    of an erase a random half of the bits already set.
    """

    number: int
    when: CutMoment = "before"
    seed: int = 0


@dataclass
class FlashFaults:
    """What is wrong with this flash. Sectors are named by number (offset // 4096).

    Args:
        fail_erase: sectors whose erase reports an error and changes nothing.
        fail_program: sectors in which a program reports an error and changes nothing.
        stuck: offset → bits that stay 0 whatever is erased; only reading back finds them.
        flips: offset → bits that read inverted.
    """

    fail_erase: set[int] = field(default_factory=set)
    fail_program: set[int] = field(default_factory=set)
    stuck: dict[int, int] = field(default_factory=dict)
    flips: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """Seconds that operations take. The defaults are typical values of 4 MB NOR parts."""

    erase: float = 0.045  # a sector
    program: float = 0.0007  # a page of 256 bytes, or a part of one

    def duration_of(self, kind: str, offset: int, length: int) -> float:
        """Return the seconds one operation takes."""
        if kind == "erase":
            return self.erase
        pages = (offset + length + PAGE - 1) // PAGE - offset // PAGE
        return pages * self.program


class Flash:
    """A flash chip.

    Args:
        content: its bytes, a multiple of 4096. It is copied.
        record: keep a journal of operations in :attr:`journal`.

    Attributes:
        ops: operations begun so far.
        busy: seconds the operations so far would take on the chip (see :class:`Timing`).
        wear: erases per sector number.
        cut: where the power fails next, or None.
    """

    def __init__(self, content: bytes | bytearray | memoryview, *, record: bool = False):
        if not content or len(content) % SECTOR:
            raise InputError(
                "flash_size",
                "a flash image is a whole number of 4096-byte sectors",
                found=len(content),
                expected="a multiple of 4096",
            )
        self._data: bytearray | mmap.mmap = bytearray(content)
        self._fd: int | None = None
        self.size = len(content)
        self.faults = FlashFaults()
        self.timing = Timing()
        self.cut: PowerCutPoint | None = None
        self.powered = True
        self.record = record
        self.journal: list[FlashOperation] = []
        self.ops = 0
        self.busy = 0.0
        self.wear: Counter[int] = Counter()

    @classmethod
    def blank(cls, size: int = 0x400000, *, record: bool = False) -> "Flash":
        """Return an erased chip of ``size`` bytes."""
        return cls(b"\xff" * size, record=record)

    @classmethod
    def open(cls, path: Path, *, record: bool = False) -> "Flash":
        """Return a chip whose content is the file: what is written lands in it at once.

        Raises:
            InputError: ``flash_size``.
            UsageError: ``flash_busy`` when another chip has it.
        """
        flash = cls.__new__(cls)
        with path.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if not size or size % SECTOR:
                raise InputError(
                    "flash_size",
                    f"{path} is not a flash image",
                    found=size,
                    expected="a multiple of 4096 bytes",
                )
            cls.__init__(flash, b"\xff" * SECTOR, record=record)
            _lock_file(file.fileno(), path)
            flash._fd = os.dup(file.fileno())
            flash._data = mmap.mmap(flash._fd, size)
        flash.size = size
        return flash

    def __len__(self) -> int:
        return self.size

    def fileno(self) -> int:
        """Return a file descriptor on the content, shared with whoever inherits it."""
        if self._fd is None:
            fd = _open_anonymous()
            os.truncate(fd, self.size)
            shared = mmap.mmap(fd, self.size)
            shared[:] = bytes(self._data)
            self._data, self._fd = shared, fd
        return self._fd

    def close(self) -> None:
        """Give the memory back. The flash cannot be used after this."""
        if isinstance(self._data, mmap.mmap):
            self._data.close()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def power_on(self) -> None:
        """Make operations possible again after a :class:`PowerCut`."""
        self.powered = True

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes, with the flips of :attr:`faults`."""
        self._check_range(offset, length)
        data = self._data[offset : offset + length]
        if not self.faults.flips:
            return bytes(data)
        data = bytearray(data)
        for at, bits in self.faults.flips.items():
            if offset <= at < offset + length:
                data[at - offset] ^= bits
        return bytes(data)

    @property
    def content(self) -> Buffer:
        """The whole content as read, without a copy where no bit flips. Do not keep it."""
        return self.read(0, self.size) if self.faults.flips else self._data

    def erase(self, offset: int, length: int = SECTOR) -> None:
        """Erase whole sectors, in ascending order; each is one operation.

        Raises:
            PowerCut: see :attr:`cut`.
            FlashError: a sector of ``faults.fail_erase``.
        """
        self._check_range(offset, length)
        if offset % SECTOR or length % SECTOR:
            raise ValueError("an erase begins and ends at a sector")
        for start in range(offset, offset + length, SECTOR):
            with self._begin_operation("erase", start, SECTOR) as torn:
                if start // SECTOR in self.faults.fail_erase:
                    raise FlashError
                self.wear[start // SECTOR] += 1
                if torn is None:
                    new = b"\xff" * SECTOR
                else:
                    old = int.from_bytes(self._data[start : start + SECTOR], "little")
                    new = (old | torn.getrandbits(SECTOR * 8)).to_bytes(SECTOR, "little")
                self._store_bytes(start, new)

    def program(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Program ``data``: stored becomes old AND new. One operation.

        Raises:
            PowerCut: see :attr:`cut`.
            FlashError: a sector of ``faults.fail_program``.
        """
        length = len(data)
        self._check_range(offset, length)
        if not length:
            return
        with self._begin_operation("program", offset, length, data) as torn:
            for sector in range(offset // SECTOR, (offset + length - 1) // SECTOR + 1):
                if sector in self.faults.fail_program:
                    raise FlashError
            if torn is not None:
                length = torn.randrange(length + 1)
                data = bytes(data[:length])
            self._store_bytes(offset, _and_bytes(self._data[offset : offset + length], data))

    def snapshot(self) -> bytes:
        """Return the whole content."""
        return bytes(self._data)

    def restore(self, content: bytes) -> None:
        """Make ``content`` the content, without any operation; ends cut and faults."""
        if len(content) != self.size:
            raise ValueError("the snapshot is of another size")
        self._data[:] = content
        self.cut = None
        self.faults = FlashFaults()
        self.powered = True

    def overwrite(self, offset: int, data: bytes) -> None:
        """Store ``data`` as it is, without any operation (for tests and tools)."""
        self._check_range(offset, len(data))
        self._data[offset : offset + len(data)] = data

    @contextlib.contextmanager
    def _begin_operation(
        self, kind: str, offset: int, length: int, data: Buffer = b""
    ) -> Iterator[random.Random | None]:
        if not self.powered:
            raise PowerCut
        number = self.ops
        cut = self.cut if self.cut is not None and self.cut.number == number else None
        if cut is not None and cut.when == "before":
            self._cut_power()
        self.ops += 1
        self.busy += self.timing.duration_of(kind, offset, length)
        if self.record:
            self.journal.append(FlashOperation(number, kind, offset, length, bytes(data)))
        yield random.Random(cut.seed) if cut is not None and cut.when == "inside" else None
        if cut is not None:
            self._cut_power()

    def _cut_power(self) -> None:
        self.cut = None
        self.powered = False
        raise PowerCut

    def _store_bytes(self, offset: int, data: bytes) -> None:
        stored = bytearray(data)
        for at, bits in self.faults.stuck.items():
            if offset <= at < offset + len(stored):
                stored[at - offset] &= ~bits
        self._data[offset : offset + len(stored)] = stored

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{offset:#x}+{length:#x} lies outside the flash")


def _and_bytes(old: bytes | bytearray, new: bytes | bytearray | memoryview) -> bytes:
    both = int.from_bytes(old, "little") & int.from_bytes(new, "little")
    return both.to_bytes(len(old), "little")


def _lock_file(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UsageError("flash_busy", f"{path} is in use by another beacon") from None


def _open_anonymous() -> int:
    """Return a file descriptor of a file without a name, in memory where that exists."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("flash", os.MFD_CLOEXEC)
    fd, name = tempfile.mkstemp(prefix="beacon-flash-")
    os.unlink(name)
    return fd
