"""Serial ports: their names, resets, and named errors for ports that cannot be used."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from beacon_ota.errors import ReachError

if TYPE_CHECKING:
    from serial import Serial

_PULSE_S = 0.1  # of the reset line
_BUSY = ("exclusively lock", "in use", "resource busy", "access is denied")


class DeviceError(ReachError):
    """A device on a serial port is missing, or does not do what it should."""


def port_names() -> list[str]:
    """Return the serial ports there are."""
    from serial.tools import list_ports

    return sorted(found.device for found in list_ports.comports())


def check_port(port: str) -> None:
    """Refuse a port that is missing (``port_missing``) or not permitted (``port_denied``)."""
    if not port.startswith("/"):
        return  # COM3, socket://…, rfc2217://…: opening it will tell
    if not Path(port).exists():
        raise _missing_error(port)
    if not os.access(port, os.R_OK | os.W_OK):
        raise DeviceError(
            "port_denied",
            f"no permission for {port}: is the user in the group that owns it (dialout, uucp)?",
            found=port,
        )


@contextlib.contextmanager
def name_port_errors(port: str) -> Iterator[None]:
    """Turn what pyserial raises into named errors.

    Raises:
        DeviceError: ``port_missing``, ``port_busy``, ``port_lost`` (e.g. unplugged).
    """
    import serial

    try:
        yield
    except (serial.SerialException, OSError) as error:
        raise explain_port_error(port, str(error), error.errno) from error


def explain_port_error(port: str, text: str, number: int | None = None) -> DeviceError:
    """Return the named error for what an attempt to use a port said."""
    if number == errno.EBUSY or any(word in text.lower() for word in _BUSY):
        return DeviceError(
            "port_busy", f"{port} is used by another program: a terminal, a monitor?", found=port
        )
    if number == errno.ENOENT or "FileNotFoundError" in text or "Errno 2]" in text:
        return _missing_error(port)
    return DeviceError("port_lost", f"{port} cannot be used: {text}")


def pulse_reset(serial: "Serial") -> None:
    """Reset the chip with the port's lines into what is in its flash. Errors are swallowed."""
    with contextlib.suppress(OSError):
        serial.dtr = False  # GPIO 9 high: the app, not the chip's loader
        serial.rts = True
        time.sleep(_PULSE_S)
        serial.rts = False


def reset_chip(port: str) -> None:
    """Reset the chip on a port that is not open; nothing happens where that is impossible."""
    import serial

    with (
        contextlib.suppress(OSError, ValueError),
        contextlib.closing(serial.serial_for_url(port, exclusive=True)) as opened,
    ):
        pulse_reset(opened)


def _missing_error(port: str) -> DeviceError:
    there = port_names()
    return DeviceError(
        "port_missing",
        f"there is no port {port}",
        found=port,
        expected=", ".join(there) or "a serial port; none is there",
    )
