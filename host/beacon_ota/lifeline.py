"""Ends child processes with the process that started them, even when that one is killed.

The parent holds one end of a pipe, which closes when the parent ends. A child holds the other end,
and has asked the kernel for a signal when the pipe closes, so it needs no thread for that. On
kernels without this signal the children stay.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

VARIABLE = "BEACON_OTA_LIFELINE"  # the descriptor that a process of ours was given to hold on to
_SET_SIGNAL = 10  # F_SETSIG of Linux
_ends: tuple[int, int] | None = None  # of the pipe that closes with this process

# For any program: hold on, then become it. Its arguments: the descriptor, the signal, a descriptor
# for the number of the error when the program cannot be executed, and the program.
LAUNCH = """
import os, sys, fcntl
line, number, failed = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
os.set_inheritable(failed, False)
{hold}
try:
    os.execvp(sys.argv[4], sys.argv[4:])
except OSError as error:
    os.write(failed, b"%d" % error.errno)
    os._exit(127)
"""
# With a descriptor in ``line`` and a signal in ``number``; the flags are those of an opened file,
# so each process opens the pipe anew. For interpreters that import nothing of this package.
HOLD = """
try:
    own = os.open("/proc/self/fd/%d" % line, os.O_RDONLY | os.O_NONBLOCK)
    os.set_inheritable(own, True)
    fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(own, 10, number)
    fcntl.fcntl(own, fcntl.F_SETFL, fcntl.fcntl(own, fcntl.F_GETFL) | os.O_ASYNC)
    os.close(line)
    try:
        os.read(own, 1)
        os.kill(os.getpid(), number)
    except BlockingIOError:
        pass
except (OSError, AttributeError):
    pass
"""


def end() -> int:
    """Return the descriptor that a process which this one starts is given (``pass_fds``)."""
    global _ends
    if _ends is None:
        _ends = os.pipe()
    return _ends[0]


def hold_on(line: int, number: int = signal.SIGTERM) -> None:
    """Be sent a signal when the other end of a pipe closes; at once if it has.

    Args:
        line: a descriptor of the pipe; it stays open.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        own = os.open(f"/proc/self/fd/{line}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # no /proc
        return
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(own, _SET_SIGNAL, number)
        fcntl.fcntl(own, fcntl.F_SETFL, fcntl.fcntl(own, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([own], [], [], 0)[0]:
        os.kill(os.getpid(), number)


def hold_on_to_starter(number: int = signal.SIGTERM) -> None:
    """Hold on to whoever has started this process with :func:`options`, if somebody has."""
    given = os.environ.pop(VARIABLE, "")  # not for those that this one starts
    if given.isdecimal():
        hold_on(int(given), number)


def hold_on_to_parent(number: int = signal.SIGTERM) -> None:
    """Hold on to the process that has started this one by multiprocessing."""
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is not None and isinstance(parent.sentinel, int):
        hold_on(parent.sentinel, number)


def options(env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return what starts a process of this package: it has to hold on by itself.

    Args:
        env: its environment; None: that of this process.
    """
    if os.name == "nt":
        return {} if env is None else {"env": dict(env)}
    line = end()
    return {
        "pass_fds": (line,),
        "env": {**(os.environ if env is None else env), VARIABLE: str(line)},
    }


def run(
    command: Sequence[str], *, number: int = signal.SIGTERM, **how: Any
) -> "subprocess.CompletedProcess[Any]":
    """Run any program like :func:`subprocess.run`; it gets a signal when this process ends.

    Raises:
        OSError: there is no such program, or it cannot be executed: it is none, or its interpreter
            is missing.
    """
    if os.name == "nt":
        return subprocess.run(command, **how)
    _refuse(command[0])
    line = end()
    launch = LAUNCH.format(hold=HOLD)
    reader, failed = os.pipe()
    try:
        numbers = map(str, (line, int(number), failed))
        starting = [sys.executable, "-S", "-I", "-c", launch, *numbers]
        done = subprocess.run([*starting, *command], pass_fds=(line, failed), **how)
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            if said := os.read(reader, 16):
                raise OSError(int(said), os.strerror(int(said)), command[0])
        return done
    finally:
        os.close(reader)
        os.close(failed)


def _refuse(program: str) -> None:
    """Raise what starting a program would raise, while there is somebody to hear it."""
    import errno
    import shutil

    if shutil.which(program) is None:
        number = errno.EACCES if os.path.exists(program) else errno.ENOENT
        raise OSError(number, os.strerror(number), program)


def _forked() -> None:
    """A fork has the writing end, too: it would keep its parent's children alive."""
    global _ends
    if _ends is not None:
        for one in _ends:
            with contextlib.suppress(OSError):
                os.close(one)
        _ends = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
