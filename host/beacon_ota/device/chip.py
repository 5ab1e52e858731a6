"""Write flash images onto a chip with esptool, and verify what was written.

Only what the image uses is written: its stretches that are not blank, and the whole of settings
and otadata, where leftovers of an earlier use would matter. Slots that the image leaves empty
keep whatever is in them; the bootloader does not look there.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from beacon_ota.device import ports
from beacon_ota.device.ports import DeviceError
from beacon_ota.errors import InputError
from beacon_ota.images import flash, partition_table, partitions

if TYPE_CHECKING:
    from esptool.loader import ESPLoader

CHIP = "ESP32-C3"
ROM_BAUD = 115_200
BAUD = 460_800

Progress = Callable[[int], None]  # bytes written so far


@dataclass(frozen=True)
class Written:
    """The result of a write: ``regions`` are (offset, length), ``seconds`` is the duration."""

    port: str
    chip: str
    mac: str
    flash_size: int | None
    regions: tuple[tuple[int, int], ...]
    size: int
    seconds: float


def flash_regions(image: bytes, *, whole: bool = False) -> list[tuple[int, int]]:
    """Return the (offset, length) of all that has to be written of a flash image.

    Args:
        whole: everything, blank or not.

    Raises:
        InputError: ``flash_expected``: not a flash image.
    """
    if not partitions.is_table(image, partition_table.TABLE_OFFSET):
        raise InputError(
            "flash_expected",
            "not a flash image: a release goes over the air, or into one with image flash",
            expected="a partition table at 0x8000",
        )
    if whole:
        return [(0, len(image))]
    table = flash.parse_flash(image).table
    wanted = flash.used_regions(image)
    wanted += [(part.offset, part.size) for part in (table.nvs, table.otadata) if part]
    merged: list[tuple[int, int]] = []
    for offset, length in sorted(wanted):
        if merged and offset <= sum(merged[-1]):
            first = merged[-1][0]
            merged[-1] = first, max(sum(merged[-1]), offset + length) - first
        else:
            merged.append((offset, length))
    return merged


def write_image(
    port: str,
    image: bytes,
    *,
    baud: int = BAUD,
    erase_all: bool = False,
    stub: bool = True,
    before: str = "default-reset",
    after: str = "hard-reset",
    attempts: int = 7,
    progress: Progress | None = None,
) -> Written:
    """Write a flash image and verify it by the MD5 that the chip computes of its flash.

    A chip that was not written to after all runs on as it did before. One that was written to in
    part stays in its loader: its flash holds parts of two images.

    Args:
        port: serial port, or a URL that pyserial knows.
        image: the image.
        baud: speed of the transfer.
        erase_all: erase the whole flash first.
        stub: run esptool's flasher on the chip, much faster than its ROM.
        before: how the chip gets into its loader, as esptool calls it.
        after: how it leaves it.
        attempts: to connect.
        progress: is told how far it is.

    Raises:
        InputError: ``flash_expected``, ``PartitionError``.
        DeviceError: ``port_missing``, ``port_denied``, ``port_busy``, ``port_lost``,
            ``chip_silent``, ``chip_other``, ``chip_label``, ``chip_flash_small``,
            ``chip_write``, ``chip_verify``.
    """
    wanted = flash_regions(
        image, whole=erase_all and not stub
    )  # the ROM erases only what it writes
    meant_for = flash.read_address(image)
    ports.check_port(port)

    from esptool.cmds import attach_flash, detect_flash_size, reset_chip, run_stub
    from esptool.util import FatalError, flash_size_bytes

    begun = time.monotonic()
    with _capture_messages(progress) as log, ports.name_port_errors(port):
        esp = _connect_chip(port, before, after, attempts)
        touched = False
        try:
            _check_chip(esp, port)
            if stub:
                esp = run_stub(esp)
                if baud != ROM_BAUD:
                    esp.change_baud(baud)
            attach_flash(esp)
            size = flash_size_bytes(detect_flash_size(esp))
            if size is not None and size < len(image):
                raise DeviceError(
                    "chip_flash_small",
                    f"the chip on {port} has too little flash",
                    found=size,
                    expected=len(image),
                )
            mac = _read_mac(esp)
            _check_label(mac, meant_for, port)
            touched = True
            _write_regions(esp, image, wanted, erase_all and stub, log)
            _verify_regions(esp, image, wanted)
            touched = False
        except FatalError as error:
            raise _write_error(port, error) from error
        finally:
            if not touched:  # it is written, or it is not; whatever the reset does
                with contextlib.suppress(FatalError, OSError):
                    reset_chip(esp, after)
            esp._port.close()
    return Written(
        port=port,
        chip=esp.CHIP_NAME,
        mac=mac,
        flash_size=size,
        regions=tuple(wanted),
        size=sum(length for _, length in wanted),
        seconds=time.monotonic() - begun,
    )


def read_mac_address(
    port: str, *, before: str = "default-reset", after: str = "hard-reset", attempts: int = 7
) -> str:
    """Return a chip's own address, ``7c:df:a1:00:11:22``; it runs on as it did before.

    Args:
        port, before, after, attempts: as of :func:`write_image`.

    Raises:
        DeviceError: ``port_missing``, ``port_denied``, ``port_busy``, ``port_lost``,
            ``chip_silent``, ``chip_other``.
    """
    ports.check_port(port)

    from esptool.cmds import reset_chip
    from esptool.util import FatalError

    with _capture_messages(None), ports.name_port_errors(port):
        esp = _connect_chip(port, before, after, attempts)
        try:
            _check_chip(esp, port)
            return _read_mac(esp)
        except FatalError as error:
            raise _write_error(port, error) from error
        finally:
            with contextlib.suppress(FatalError, OSError):
                reset_chip(esp, after)
            esp._port.close()


def _connect_chip(port: str, before: str, after: str, attempts: int) -> "ESPLoader":
    from esptool.cmds import detect_chip
    from esptool.util import FatalError

    try:
        return detect_chip(port, ROM_BAUD, before, connect_attempts=attempts)
    except BaseException as error:
        if "no-reset" not in (before, after):
            ports.reset_chip(port)  # it may be in its loader, and not heard
        if isinstance(error, FatalError):
            raise _connection_error(port, error) from error
        raise


def _check_chip(esp: "ESPLoader", port: str) -> None:
    if esp.CHIP_NAME != CHIP:
        raise DeviceError(
            "chip_other",
            f"the chip on {port} is another one",
            found=esp.CHIP_NAME,
            expected=CHIP,
        )


def _check_label(mac: str, meant_for: bytes, port: str) -> None:
    """Refuse an image with the label of another chip: its PIN would never be right."""
    if not bytes.fromhex(mac.replace(":", "")).endswith(meant_for):
        raise DeviceError(
            "chip_label",
            f"this image has the label of another chip than the one on {port}",
            found=mac,
            expected=meant_for.hex(":"),
        )


def _read_mac(esp: "ESPLoader") -> str:
    from esptool.targets.esp32c3 import ESP32C3ROM

    return ":".join(f"{byte:02x}" for byte in cast(ESP32C3ROM, esp).read_mac() or ())


def _write_regions(
    esp: "ESPLoader",
    image: bytes,
    wanted: list[tuple[int, int]],
    erase_all: bool,
    log: "_ProgressLog",
) -> None:
    from esptool.cmds import erase_flash, write_flash

    if erase_all:
        erase_flash(esp, False)
    for offset, length in wanted:
        log.begin_region(length)
        data = image[offset : offset + length]
        # "keep": esptool would otherwise change the header of a bootloader as it writes it.
        write_flash(
            esp,
            [(offset, data)],
            flash_freq="keep",
            flash_mode="keep",
            flash_size="keep",
        )
        log.end_region()


def _verify_regions(esp: "ESPLoader", image: bytes, wanted: list[tuple[int, int]]) -> None:
    for offset, length in wanted:
        found = esp.flash_md5sum(offset, length)
        expected = hashlib.md5(image[offset : offset + length]).hexdigest()
        if found != expected:
            raise _verify_error(f"{length} bytes at {offset:#x}", found, expected)


def _connection_error(port: str, error: Exception) -> DeviceError:
    lines = str(error).split("\n")
    if "Could not open" in lines[0]:
        return ports.explain_port_error(port, lines[1] if len(lines) > 1 else lines[0])
    return DeviceError(
        "chip_silent",
        f"no ESP32 answers on {port}: hold BOOT (GPIO 9) while it is reset, then try again",
        found=_first_line(error),
    )


def _write_error(port: str, error: Exception) -> DeviceError:
    if "MD5" in str(error):  # esptool compares after each write
        return _verify_error(f"{_first_line(error)} ({port})", None, None)
    return DeviceError("chip_write", f"{_first_line(error)} ({port})")


def _verify_error(where: str, found: str | None, expected: str | None) -> DeviceError:
    return DeviceError(
        "chip_verify",
        f"the flash does not hold what was written, is it worn out? {where}",
        found=found,
        expected=expected,
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(". ")


class _ProgressLog:
    """Counts esptool's progress in bytes of the whole image."""

    def __init__(self, progress: Progress | None):
        self.progress = progress
        self.done = 0
        self.length = 0

    def begin_region(self, length: int) -> None:
        self.length = length

    def report_share(self, share: float) -> None:
        if self.progress is not None:
            self.progress(self.done + int(self.length * min(share, 1.0)))

    def end_region(self) -> None:
        self.report_share(1.0)
        self.done += self.length
        self.length = 0


@contextlib.contextmanager
def _capture_messages(progress: Progress | None) -> Iterator[_ProgressLog]:
    """Replace esptool's logger for one job: its progress is passed on, its messages are dropped.

    Failures come as exceptions.
    """
    from esptool.logger import EsptoolLogger, TemplateLogger, log
    from esptool.reset import ResetStrategy

    found = _ProgressLog(progress)

    class Logger(TemplateLogger):
        def print(self, *args, **kwargs):
            pass

        def note(self, message):
            pass

        def warning(self, message):
            pass

        def error(self, message):
            pass

        def stage(self, finish=False):
            pass

        def progress_bar(self, cur_iter, total_iters, prefix="", suffix="", bar_length=30):
            found.report_share(cur_iter / total_iters if total_iters else 1.0)

        def set_verbosity(self, verbosity):
            pass

    swap = cast(EsptoolLogger, log)  # a proxy; what it stands for changes with each swap
    EsptoolLogger.set_logger(swap, Logger())
    # It keeps the logger that there was when it was imported, to say once that lines are missing.
    once = ResetStrategy.print_once
    cast(Any, ResetStrategy).print_once = lambda *_: None
    try:
        yield found
    finally:
        ResetStrategy.print_once = once
        EsptoolLogger.set_logger(swap, EsptoolLogger())
