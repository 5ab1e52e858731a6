"""Copies the app to a board that runs MicroPython, over its REPL, for development.

Stage 0 goes to ``/``, the compiled app to ``/app``; stage 0 finds it there when no release with
an app filesystem is in the running slot. Only files that differ are sent, and those that the app
no longer has are removed.
"""

import contextlib
import hashlib
import io
import json
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from beacon_ota.device import ports
from beacon_ota.device.ports import DeviceError
from beacon_ota.images import appfs, flash
from beacon_ota.images.appfs import AppInfo

if TYPE_CHECKING:
    from mpremote.transport_serial import SerialTransport
    from serial import Serial

BAUD = 115_200
FOLDER = "app"
VERSION = "0.0.0-dev"
_CHUNK = 512  # bytes sent at a time: the board holds them in RAM
_ANSWER_S = 30
_READ_S = 2  # between two bytes of a handshake
_DRAIN_S = 0.1  # until what the board was saying is here
_TAKEN = b">OK"  # the raw prompt, and that it executes what it was sent
_OWN = ("boot.py", "main.py")  # files of / that a deployment replaces

Progress = Callable[[int], None]  # bytes sent so far

# Prints {path: SHA-256} of stage 0 and everything below /app; folders end with /. A watchdog that
# the app has started survives a soft reset and cannot be stopped, only be given more time.
_LIST = """
import os, json, binascii, hashlib
try:
    from machine import WDT
    WDT(timeout=600000)
except ImportError:
    pass
found = {}
buf = bytearray(512)
def add(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while True:
            n = f.readinto(buf)
            if not n:
                break
            digest.update(memoryview(buf)[:n])
    found[path] = binascii.hexlify(digest.digest()).decode()
def walk(path):
    found[path + "/"] = ""
    for name, kind, *_ in os.ilistdir(path):
        if kind == 0x4000:
            walk(path + "/" + name)
        else:
            add(path + "/" + name)
there = os.listdir("/")
for name in OWN:
    if name in there:
        add("/" + name)
if FOLDER in there:
    walk("/" + FOLDER)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Deployed:
    """The result of a deployment: paths on the board, and the bytes that were sent."""

    port: str
    written: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: int
    size: int
    seconds: float


def board_files(
    texts: Mapping[str, bytes], device_type: str, version: str = VERSION
) -> dict[str, bytes]:
    """Return what a board gets: path → content.

    Raises:
        AppError: as :func:`beacon_ota.images.appfs.compile_sources`.
    """
    info = AppInfo(version, device_type, "0" * 64, insecure=True)
    appfs.check_version(version)
    found = {f"/{name}": data for name, data in flash.stage0_files().items()}
    app = {**appfs.compile_sources(texts), appfs.INFO: info.pack()}
    return found | {f"/{FOLDER}/{name}": data for name, data in app.items()}


def deploy_app(
    port: str,
    wanted: Mapping[str, bytes],
    *,
    baud: int = BAUD,
    fresh: bool = True,
    patience: int = 10,
    progress: Progress | None = None,
) -> Deployed:
    """Make a board's files what is wanted, then reset it: also when that fails or is interrupted.

    Args:
        port: serial port, or a URL that pyserial knows.
        wanted: as :func:`board_files` returns them.
        baud: speed.
        fresh: soft-reset the interpreter first, for an empty heap.
        patience: seconds to wait for the prompt.
        progress: is told how far it is.

    Raises:
        DeviceError: ``port_missing``, ``port_denied``, ``port_busy``, ``port_lost``,
            ``board_silent`` (no MicroPython answers), ``board_release`` (a release runs there),
            ``board_full``, ``board_failed``.
    """
    from mpremote.transport import TransportError, TransportExecError

    ports.check_port(port)
    begun = time.monotonic()
    try:
        with (
            ports.name_port_errors(port),
            _silence_output(),
            _open_board(port, baud, fresh, patience) as board,
        ):
            there = _list_files(board)
            changed = {
                path: data
                for path, data in wanted.items()
                if there.get(path) != hashlib.sha256(data).hexdigest()
            }
            stale = sorted((path for path in there if not _is_kept(path, wanted)), reverse=True)
            _send_files(board, changed, there, progress)
            for path in stale:
                verb = "rmdir" if path.endswith("/") else "remove"
                board.exec(f"import os\nos.{verb}({path.rstrip('/')!r})")
            _check_files(board, changed)
    except TransportExecError as error:
        raise _refusal_error(port, error.error_output) from error
    except (TransportError, struct.error) as error:
        if str(error).startswith("failed to access"):  # mpremote drops the reason
            _raise_port_error(port)
        raise DeviceError(
            "board_silent",
            f"no MicroPython prompt on {port}: is it flashed, does something else run there?",
            found=str(error)[:200],
        ) from error
    return Deployed(
        port=port,
        written=tuple(sorted(changed)),
        removed=tuple(stale),
        unchanged=len(wanted) - len(changed),
        size=sum(map(len, changed.values())),
        seconds=time.monotonic() - begun,
    )


def _list_files(board: "SerialTransport") -> dict[str, str]:
    code = _LIST.replace("OWN", repr(_OWN)).replace("FOLDER", repr(FOLDER))
    said = board.exec_raw(code, timeout=_ANSWER_S)
    return _parse_answer(board, said)


def _parse_answer(board: "SerialTransport", said: tuple[bytes, bytes]) -> dict[str, str]:
    from mpremote.transport import TransportError, TransportExecError

    out, error = said
    if error:
        raise TransportExecError(out, error.decode("utf-8", "replace"))
    try:
        return json.loads(out.strip().split(b"\n")[-1])
    except ValueError as broken:
        raise TransportError(f"unexpected answer {out[-80:]!r}") from broken


def _is_kept(path: str, wanted: Mapping[str, bytes]) -> bool:
    if path.endswith("/"):
        return any(name.startswith(path) for name in wanted)
    return path in wanted


def _send_files(
    board: "SerialTransport",
    changed: Mapping[str, bytes],
    there: Mapping[str, str],
    progress: Progress | None,
) -> None:
    made = {path for path in there if path.endswith("/")}
    done = 0
    for path, data in sorted(changed.items()):
        parts = path.split("/")[1:-1]
        for depth in range(1, len(parts) + 1):
            folder = "/" + "/".join(parts[:depth])
            if folder + "/" not in made:
                board.exec(f"import os\nos.mkdir({folder!r})")
                made.add(folder + "/")
        board.exec(f"_file = open({path!r}, 'wb')")
        for at in range(0, len(data), _CHUNK):
            board.exec(f"_file.write({data[at : at + _CHUNK]!r})")
            done += len(data[at : at + _CHUNK])
            if progress is not None:
                progress(done)
        board.exec("_file.close()")


def _check_files(board: "SerialTransport", changed: Mapping[str, bytes]) -> None:
    there = _list_files(board)
    for path, data in changed.items():
        if there.get(path) != hashlib.sha256(data).hexdigest():
            raise DeviceError("board_failed", f"{path} did not arrive as it was sent")


def _refusal_error(port: str, text: str) -> DeviceError:
    last = text.strip().split("\n")[-1]
    if "30" in last or "EROFS" in last:
        return DeviceError(
            "board_release",
            f"on {port} a release runs from its slot: it is updated over the air, or with flash",
            found=last,
        )
    if "28" in last or "ENOSPC" in last:
        return DeviceError("board_full", f"the board on {port} has no room left", found=last)
    return DeviceError("board_failed", f"the board on {port} refuses: {last}")


@contextlib.contextmanager
def _open_board(port: str, baud: int, fresh: bool, patience: int) -> Iterator["SerialTransport"]:
    """Stop what runs on a board, for its prompt; start it again afterwards, whatever happens."""
    from mpremote.transport_serial import SerialTransport

    board = SerialTransport(port, baud)
    serial = cast("Serial", board.serial)
    try:
        try:
            # mpremote's own reads and writes have no limit.
            serial.timeout = serial.write_timeout = _READ_S
            board.enter_raw_repl(soft_reset=fresh, timeout_overall=patience)
            yield board
        finally:
            _restart_board(serial)
    finally:
        with contextlib.suppress(OSError):
            board.close()


def _restart_board(serial: "Serial") -> None:
    """Reset a board, whatever it is at; with the port's lines if its prompt does not take it.

    One reset and not two: stage 0 counts them.
    """
    with contextlib.suppress(OSError):
        # Ctrl-C ends code that runs, and input that is half typed; Ctrl-A asks for the raw prompt.
        serial.write(b"\r\x03\x03")
        time.sleep(_DRAIN_S)
        serial.reset_input_buffer()
        serial.write(b"\r\x01import machine\nmachine.reset()\x04")
        said, end = b"", time.monotonic() + _READ_S
        while _TAKEN not in said and time.monotonic() < end:
            said += serial.read(1)
        if _TAKEN in said:
            return
    ports.pulse_reset(serial)


def _raise_port_error(port: str) -> None:
    """Raise the named error for a port that cannot be opened."""
    from serial import serial_for_url

    with ports.name_port_errors(port):
        serial_for_url(port, exclusive=True).close()


@contextlib.contextmanager
def _silence_output() -> Iterator[None]:
    """Drop mpremote's messages about failures, which come as exceptions as well."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
