"""An emulated ESP32-C3: the real core in QEMU, with flash, console, WiFi and a power switch.

QEMU writes flash operations straight into the file, so SIGKILL is what a power cut is to a chip.
Time on the chip is counted in instructions, 8 ns each: a slow machine makes everything slower, not
later.
"""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beacon_ota.images import flash as flashes
from beacon_ota.images import settings
from beacon_ota.virtual.flash import bootloader
from beacon_ota.virtual.flash.nor import Flash
from beacon_ota.virtual.flash.nvs import Nvs
from tests.orchestrator.world import until

# The emulator's access points have names of their own, and no passwords. The machine that it runs
# on is the gateway.
SSID = b"Espressif"
ELSEWHERE = b"not to be found"
HOST = "192.168.4.2"
DEADLINE_S = 400.0  # emulated, on a machine that does other things as well

_MAC = bytes.fromhex("7cdfa1123456")
_EFUSE = 1024
_MAC_AT, _REVISION_AT = 0x18, 0x24
_REVISION = 3 << 18  # v0.3: the bootloader refuses older ones
RESET = re.compile(rb"rst:0x[0-9a-f]+ \((\w+)\)")
PANIC = b"Guru Meditation"


def efuse() -> bytes:
    """Return the one-time memory of a chip: its address and its revision."""
    fuses = bytearray(_EFUSE)
    fuses[_MAC_AT : _MAC_AT + 6] = _MAC[::-1]
    fuses[_REVISION_AT : _REVISION_AT + 4] = _REVISION.to_bytes(4, "little")
    return bytes(fuses)


class Chip:
    """A chip with this flash, without power at first.

    Args:
        qemu: the emulator's program.
        folder: where flash and console lie; the chip's own.
        content: what the flash holds.
        watchdogs: the timer groups' watchdogs bite.
    """

    def __init__(self, qemu: str, folder: Path, content: bytes, *, watchdogs: bool = True):
        folder.mkdir(parents=True, exist_ok=True)
        self._qemu, self._watchdogs = qemu, watchdogs
        self._flash, self._fuses = folder / "flash.bin", folder / "efuse.bin"
        self._log, self._errors = folder / "console.log", folder / "qemu.log"
        self._log.touch()
        self._flash.write_bytes(content)
        self._fuses.write_bytes(efuse())
        self._process: subprocess.Popen[bytes] | None = None

    # -- power

    def power_on(self) -> None:
        """Start it; its console goes on behind what it said before."""
        assert self._process is None
        drive = "format=raw,file="
        arguments = [
            self._qemu,
            *("-M", "esp32c3-picsimlab"),
            *("-drive", f"if=mtd,{drive}{self._flash}"),
            *("-drive", f"if=none,id=efuse,{drive}{self._fuses}"),
            *("-global", "driver=nvram.esp32c3.efuse,property=drive,value=efuse"),
            *("-icount", "shift=3,align=off,sleep=on"),
            *("-nic", "user,model=esp32c3_wifi,net=192.168.4.0/24"),
            *("-display", "none", "-monitor", "none"),
            *("-chardev", "stdio,id=console,signal=off"),
            *("-serial", "chardev:console"),
        ]
        if not self._watchdogs:
            arguments += ["-global", "driver=timer.esp32c3.timg,property=wdt_disable,value=true"]
        with self._log.open("ab") as console, self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=console, stderr=errors
            )

    def power_cut(self) -> None:
        """Take the power away, whatever it is doing."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process = None

    @property
    def powered(self) -> bool:
        """Does it run? An emulator that ended by itself is an error of its own."""
        if self._process is None:
            return False
        assert self._process.poll() is None, self._errors.read_text()[-2000:]
        return True

    def __enter__(self) -> "Chip":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.power_cut()

    # -- what it says

    @property
    def console(self) -> str:
        """All that it said."""
        return self._log.read_bytes().decode(errors="replace").replace("\r", "")

    @property
    def resets(self) -> list[str]:
        """The causes of all its boots, as its ROM names them."""
        return [found.decode() for found in RESET.findall(self._log.read_bytes())]

    @property
    def panics(self) -> int:
        """How often the core itself crashed."""
        return self._log.read_bytes().count(PANIC)

    def until(self, condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
        """Wait while it runs; a failure tells what it said."""
        try:
            return until(lambda: self.powered and condition(), deadline_s=deadline_s, what=what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.console[-4000:]}") from None

    def says(self, text: str, times: int = 1) -> None:
        """Wait until it has said something so many times."""
        self.until(lambda: self.console.count(text) >= times, text)

    # -- its flash

    @property
    def content(self) -> bytes:
        """What is in the flash."""
        return self._flash.read_bytes()

    @property
    def parts(self) -> flashes.Flash:
        """The same, taken apart."""
        return flashes.parse_flash(self.content)

    @property
    def settings(self) -> dict[str, int | str | bytes]:
        """NVS, the beacon's namespace."""
        found = self.parts.settings
        assert found is not None, self.parts.errors
        return found.namespace(settings.NAMESPACE)

    def set(self, key: str, value: int | bytes) -> None:
        """Write a setting into the NVS of a chip without power."""
        assert self._process is None
        flash = Flash(self.content)
        try:
            part = bootloader.read_table(flash).nvs
            assert part is not None
            store = Nvs(flash, part)
            store.set(store.open_namespace(settings.NAMESPACE), key, value)
            self._flash.write_bytes(flash.snapshot())
        finally:
            flash.close()
