"""Makes SIGTERM and SIGHUP end a command as Ctrl-C does: with clean-up, and its processes ended."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

_NAMES = ("SIGTERM", "SIGHUP")


@contextlib.contextmanager
def as_interrupts() -> Iterator[None]:
    """Take them for interrupts during a block; the exit code is 128 and the signal's number.

    What ignores one (``nohup``) goes on ignoring it; ``serve`` has handlers of its own later.
    """
    told: list[int] = []

    def end(number: int, _frame: object) -> None:
        if told:
            return  # it is ending
        told.append(number)
        if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL, None):
            raise KeyboardInterrupt  # a shell lets what it starts in the background ignore it
        signal.raise_signal(signal.SIGINT)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    except SystemExit as done:
        if told and done.code in (1, 130):
            sys.exit(128 + told[0])
        raise
    except KeyboardInterrupt:
        sys.exit(128 + (told[0] if told else signal.SIGINT))
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is end:
                signal.signal(number, handler)
