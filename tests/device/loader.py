"""The serial loader of an ESP32-C3, ROM and flasher stub, on a pseudo terminal.

The real esptool talks to it: SLIP frames, commands, registers, MD5, compressed blocks. Behind it
lies NOR flash that must be erased before it is written, and can be made to fail.
"""

import contextlib
import hashlib
import os
import pty
import select
import struct
import threading
import tty
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from beacon_ota.virtual.flash.nor import Flash

SPI = 0x60002000
SPI_CMD, SPI_USR2, SPI_W0 = SPI, SPI + 0x20, SPI + 0x58
EFUSE_MAC = 0x60008844
WDT_CONFIG = 0x60008090  # of the RTC's watchdog
RUN_USR = 1 << 18
READ_ID = 0x9F
SIZES = {2 << 20: 0x15, 4 << 20: 0x16, 8 << 20: 0x17}
MAC = bytes.fromhex("60558f010203")


@dataclass
class Chip:
    """A chip in its loader.

    Args:
        flash: what is written to.
        chip_id: what it says it is; 5 is the C3.
        mac: its address.
        silent: it answers nothing.
        dies_at: commands after which it stops answering, or None.
    """

    flash: Flash
    chip_id: int = 5
    silent: bool = False
    dies_at: int | None = None
    port: str = ""
    stub: bool = False
    mac: bytes = MAC
    registers: dict[int, int] = field(default_factory=dict)
    commands: list[int] = field(default_factory=list)
    at: int = 0
    erased_to: int = 0
    inflate: object = None

    def watchdog_started(self) -> bool:
        """Whether it was told to reset itself (``watchdog-reset``)."""
        return bool(self.registers.get(WDT_CONFIG, 0) >> 31)

    def answer(self, frame: bytes) -> list[bytes]:
        """Execute one command; return the frames that answer it."""
        if len(frame) < 8 or frame[0] != 0:
            return []
        op, size, _ = struct.unpack_from("<xBHI", frame)
        body = frame[8 : 8 + size]
        self.commands.append(op)
        if self.silent or (self.dies_at is not None and len(self.commands) > self.dies_at):
            return []
        handler = getattr(self, f"on_{op:02x}", None)
        if handler is None:
            return [struct.pack("<BBHI", 1, op, 4, 0) + b"\1\5\0\0"]
        found = handler(body)
        value, data, more = found if isinstance(found, tuple) else (found or 0, b"", [])
        status = b"\0\0" if self.stub else b"\0\0\0\0"
        reply = struct.pack("<BBHI", 1, op, len(data) + len(status), value) + data + status
        return [reply] * (8 if op == 0x08 else 1) + more

    def on_08(self, body):  # SYNC; only the ROM answers with a value that is not 0
        return 0 if self.stub else 0x20120707

    def on_14(self, body):  # GET_SECURITY_INFO
        return 0, struct.pack("<I8BII", 0, 0, *(0,) * 7, self.chip_id, 0), []

    def on_0a(self, body):  # READ_REG
        address = struct.unpack("<I", body)[0]
        if address == EFUSE_MAC:
            return int.from_bytes(self.mac[2:], "big")
        if address == EFUSE_MAC + 4:
            return int.from_bytes(self.mac[:2], "big")
        if address == EFUSE_MAC + 12:
            return 3 << 18  # revision 0.3
        return self.registers.get(address, 0)

    def on_09(self, body):  # WRITE_REG
        address, value = struct.unpack_from("<II", body)
        self.registers[address] = value
        if address == SPI_CMD and value & RUN_USR:
            self.registers[SPI_CMD] = 0
            reading = self.registers.get(SPI_USR2, 0) & 0xFF == READ_ID
            size = SIZES[self.flash.size]
            self.registers[SPI_W0] = 0xC8 | 0x40 << 8 | size << 16 if reading else 0

    def on_0d(self, body):  # SPI_ATTACH
        return 0

    on_0b = on_0f = on_05 = on_07 = on_04 = on_0d  # params, baud rate, RAM download, end

    def on_06(self, body):  # MEM_END: runs what was downloaded, which is the stub
        if self.stub or struct.unpack_from("<I", body)[0]:
            return 0
        reply = struct.pack("<BBHI", 1, 6, 4, 0) + b"\0\0\0\0"
        self.stub = True
        raise Started([reply, b"OHAI"])

    def on_02(self, body):  # FLASH_BEGIN
        size, _, _, self.at = struct.unpack_from("<IIII", body)
        self.erased_to = self.at
        if not self.stub:
            self.erase(self.at, size)

    def on_10(self, body):  # FLASH_DEFL_BEGIN
        self.on_02(body)
        self.inflate = zlib.decompressobj()

    def on_03(self, body):  # FLASH_DATA
        size = struct.unpack_from("<I", body)[0]
        self.program(body[16 : 16 + size])

    def on_11(self, body):  # FLASH_DEFL_DATA
        size = struct.unpack_from("<I", body)[0]
        self.program(self.inflate.decompress(body[16 : 16 + size]))  # type: ignore[attr-defined]

    def on_12(self, body):  # FLASH_DEFL_END
        return 0

    def on_13(self, body):  # SPI_FLASH_MD5
        offset, size = struct.unpack_from("<II", body)
        digest = hashlib.md5(self.flash.read(offset, size))
        return 0, digest.digest() if self.stub else digest.hexdigest().encode(), []

    def on_d0(self, body):  # ERASE_FLASH
        self.flash.erase(0, self.flash.size)

    def on_d1(self, body):  # ERASE_REGION
        self.erase(*struct.unpack("<II", body))

    def erase(self, offset: int, size: int) -> None:
        first, last = offset // 4096 * 4096, -(-(offset + size) // 4096) * 4096
        if last > self.erased_to:
            start = max(first, self.erased_to // 4096 * 4096)
            self.flash.erase(start, last - start)
            self.erased_to = last

    def program(self, data: bytes) -> None:
        """Write on; the stub erases each sector when it comes to it."""
        data = data[: self.flash.size - self.at]
        if self.stub and data:
            self.erase(self.at, len(data))
        if data:
            self.flash.program(self.at, data)
        self.at += len(data)


class Started(Exception):
    """The stub runs; its frames."""

    def __init__(self, frames: list[bytes]):
        super().__init__()
        self.frames = frames


def _escape(frame: bytes) -> bytes:
    body = frame.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc")
    return b"\xc0" + body + b"\xc0"


def _unescape(frame: bytes) -> bytes:
    return frame.replace(b"\xdb\xdc", b"\xc0").replace(b"\xdb\xdd", b"\xdb")


@contextlib.contextmanager
def plugged(chip: Chip) -> Iterator[Chip]:
    """Give a chip a serial port, ``chip.port``, for the time of a test."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    chip.port = os.ttyname(theirs)
    wake, done = os.pipe()
    thread = threading.Thread(target=_serve, args=(chip, ours, wake), daemon=True)
    thread.start()
    try:
        yield chip
    finally:
        os.write(done, b"!")
        thread.join()
        for end in (ours, theirs, wake, done):
            os.close(end)


def _serve(chip: Chip, port: int, wake: int) -> None:
    pending = b""
    while True:
        ready = select.select([port, wake], [], [])[0]
        if wake in ready:
            return
        pending += os.read(port, 65536)
        while pending.count(b"\xc0") >= 2:
            frame, pending = pending.split(b"\xc0", 2)[1:]
            if not frame:  # the end of one frame was taken for the start of the next
                pending = b"\xc0" + pending
                continue
            try:
                frames = chip.answer(_unescape(frame))
            except Started as started:
                frames = started.frames
            out = b"".join(map(_escape, frames))
            while out:
                out = out[os.write(port, out) :]
