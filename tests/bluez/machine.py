"""The machine: qemu, its adapter in a radio space, and commands in it."""

import contextlib
import itertools
import json
import queue
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bluez.image import Image

BOOT_S = 240.0
MEMORY_MB = 1024
HOST = "10.0.2.2"  # this computer, as the machine sees it
_CLI = ["python3", "-c", "from beacon_ota.cli import main; main()"]


@dataclass(frozen=True)
class Result:
    """How a command in the machine has ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> Any:
        """What the command has printed, as JSON."""
        return json.loads(self.out)


class Machine:
    """A running machine; :func:`run_machine` makes one."""

    def __init__(self, process: subprocess.Popen, control: socket.socket, log: Path) -> None:
        self._process, self._control, self._log = process, control, log
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.SimpleQueue[Result]] = {0: queue.SimpleQueue()}
        self._environment: dict[str, str] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with self._control.makefile("rb") as lines:
            for line in lines:
                told = json.loads(line)
                number = told.pop("id")
                self._answers[number].put(Result(**told))

    def set_environment(self, **variables: str) -> None:
        """Set variables for all commands."""
        self._environment.update(variables)

    def wait(self, number: int, seconds: float) -> Result:
        """Return the result of a command that was started; 0: of the start of the machine."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                return self._answers[number].get(timeout=0.5)
            assert self._process.poll() is None, self.console
        raise AssertionError(f"no answer in {seconds} s\n{self.console}")

    def start(self, *argv: str, files: dict[str, str] | None = None) -> int:
        """Start a program; returns its number."""
        number = next(self._numbers)
        self._answers[number] = queue.SimpleQueue()
        asked = {"id": number, "argv": argv, "env": self._environment, "files": files or {}}
        self._control.sendall(json.dumps(asked).encode() + b"\n")
        return number

    def start_command(self, *args: str) -> int:
        """Start a command of ``beacon-ota``; returns its number."""
        return self.start(*_CLI, *args)

    def send_signal(self, number: int, signal: int) -> None:
        """Send a signal to a program."""
        self._control.sendall(json.dumps({"id": number, "signal": signal}).encode() + b"\n")

    def run(self, *argv: str, files: dict[str, str] | None = None, seconds: float = 120) -> Result:
        """Run a program to its end."""
        return self.wait(self.start(*argv, files=files), seconds)

    def command(self, *args: str, code: int = 0, seconds: float = 120) -> Result:
        """Run a command of ``beacon-ota``, and check its exit code."""
        done = self.run(*_CLI, *args, seconds=seconds)
        assert done.code == code, f"{args}: {done}\n{self.console[-3000:]}"
        return done

    @property
    def console(self) -> str:
        """What the machine has printed."""
        return self._log.read_text(errors="replace")


@contextlib.contextmanager
def run_machine(image: Image, room: Path) -> Iterator[Machine]:
    """Boot a machine whose adapter is a radio of a space.

    Args:
        room: path of the space's socket.
    """
    with tempfile.TemporaryDirectory(prefix="bluez-") as name:
        folder = Path(name)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "control"))
            listener.listen(1)
            process = subprocess.Popen(_qemu_command(image, room, folder), stdin=subprocess.DEVNULL)
            try:
                listener.settimeout(30)
                control, _ = listener.accept()
                with control:
                    machine = Machine(process, control, folder / "console")
                    machine.wait(0, BOOT_S)
                    yield machine
            finally:
                process.kill()
                process.wait()


def _qemu_command(image: Image, room: Path, folder: Path) -> list[str]:
    return [
        "qemu-system-x86_64",
        *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"),
        *("-m", str(MEMORY_MB), "-nodefaults", "-no-user-config", "-display", "none"),
        *("-kernel", str(image.kernel), "-initrd", str(image.ramdisk)),
        *("-append", "console=ttyS0 quiet panic=-1 net.ifnames=0 mitigations=off"),
        *("-serial", f"file:{folder / 'console'}", "-no-reboot"),
        *("-nic", "user,model=virtio-net-pci"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=hci,path={room}"),
        *("-device", "virtserialport,chardev=hci,name=hci"),
        *("-chardev", f"socket,id=control,path={folder / 'control'}"),
        *("-device", "virtserialport,chardev=control,name=control"),
    ]
