"""One interpreter process: from its start to its end, or to a reset that ends it."""

import asyncio
import codecs
import os
import subprocess
from collections.abc import Callable
from typing import NamedTuple

from beacon_ota.virtual.process.channel import InterpreterChannel, InterpreterGone, Operation, Value
from beacon_ota.virtual.process.interpreter import INTERRUPT_SIGNAL, Interpreter

HEAP_MISFIT, SOFT_RESET, PROCESS_ENDED = "again", "soft_reset", "lost"
_READ = 0x10000


class CpuUsage(NamedTuple):
    """A process as the machine's scheduler sees it.

    Attributes:
        cpu: seconds that it ran.
        waited: seconds for which it was ready to run and had no CPU, before it ran last.
        ready: whether it runs, or waits for that.
    """

    cpu: float = 0.0
    waited: float = 0.0
    ready: bool = False


class InterpreterSession:
    """A running interpreter.

    Args:
        heap: bytes of heap for beacon code.
        flash: descriptor of the flash content.
        operations: what it may ask for, see :class:`~beacon_ota.virtual.process.channel.Line`.
        start: returns what the start-up script is told (see ``modules/_start.py``).
        failed: called when an operation ends the run by an exception.
        printed: called with every piece of output.
    """

    def __init__(
        self,
        heap: int,
        flash: int,
        operations: dict[str, Operation],
        start: Callable[[], Value],
        failed: Callable[[Exception], None],
        printed: Callable[[str], None],
    ):
        self._heap, self._start = heap, start
        self._overhead = 0
        self._cpu = -1
        self._failed, self._printed = failed, printed
        self._run_end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._interpreter = Interpreter.shared()
        self._size = self._interpreter.heap_size(heap)
        own = {"start": self._start_interpreter, "soft_reset": self._soft_reset}
        self.channel = InterpreterChannel(
            {**operations, **own}, self._on_hang_up, self._interrupt_call, self._read_console
        )
        self._console, write = os.pipe()
        os.set_blocking(self._console, False)
        try:
            fds = (*self.channel.passed, flash)
            self._process = self._interpreter.spawn_process(self._size, fds, write)
        finally:
            os.close(write)
            self.channel.inherited()

    async def run(self, ended: asyncio.Future) -> str | None:
        """Serve the interpreter until it is over or ``ended`` is done, then end it.

        Returns:
            ``soft_reset``, ``again`` (it must be started anew for its heap to be right),
            ``lost`` (it ended by itself), None when ``ended`` came first.
        """
        loop = asyncio.get_running_loop()
        await self.channel.open()
        loop.add_reader(self._console, self._read_console)
        try:
            await asyncio.wait((ended, self._run_end), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._process.kill()
            self.channel.close()
            self._process.wait()
            loop.remove_reader(self._console)
            self._read_console()
            os.close(self._console)
        return None if ended.done() else self._run_end.result()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The interpreter's process."""
        return self._process

    @property
    def overhead(self) -> int:
        """Bytes of heap that the stand-ins take."""
        return self._overhead

    @property
    def cpu_usage(self) -> CpuUsage:
        """How much of a CPU the interpreter has had; nothing where nobody tells."""
        pid = self._process.pid
        try:
            with open(f"/proc/{pid}/task/{pid}/stat") as file:
                ready = file.read().rpartition(")")[2].split()[0] == "R"
        except (OSError, IndexError):
            return CpuUsage()
        cpu, waited = _scheduler_times(pid)
        return CpuUsage(cpu / 1e9, waited / 1e9, ready)

    def _start_interpreter(self, free: int, used: int) -> Value:
        self._overhead = used
        if not self._interpreter.calibrate_overhead(self._heap, self._size, free):
            self._end_run(HEAP_MISFIT)
            raise InterpreterGone
        return self._start()

    def _soft_reset(self) -> Value:
        self._end_run(SOFT_RESET)
        raise InterpreterGone

    def _on_hang_up(self, error: Exception | None) -> None:
        if error is not None:
            self._failed(error)
        else:
            self._end_run(PROCESS_ENDED)

    def _end_run(self, how: str) -> None:
        if not self._run_end.done():
            self._run_end.set_result(how)

    def _interrupt_call(self) -> None:
        """Interrupt a blocking call: only when the interpreter did nothing since the last look.

        One that computes takes its events by itself, and while it collects garbage a signal
        would do harm.
        """
        done, _ = _scheduler_times(self._process.pid)
        if not done or done == self._cpu:
            self._process.send_signal(INTERRUPT_SIGNAL)
        self._cpu = done

    def _read_console(self) -> None:
        """Take what is in the console; also before every call, so that nothing overtakes it."""
        while True:
            try:
                data = os.read(self._console, _READ)
            except BlockingIOError:
                return
            if not data:
                asyncio.get_running_loop().remove_reader(self._console)
                return
            self._printed(self._decoder.decode(data))


def _scheduler_times(pid: int) -> tuple[int, int]:
    """Return nanoseconds that a process's main thread ran, and that it waited for a CPU.

    Zeros where nobody tells.
    """
    try:
        with open(f"/proc/{pid}/task/{pid}/schedstat") as file:
            cpu, waited, _ = file.read().split()
        return int(cpu), int(waited)
    except (OSError, ValueError):
        return 0, 0
