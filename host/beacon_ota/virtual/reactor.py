"""The one event loop, in a thread of its own, that all virtual beacons of a process share."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Reactor:
    """An asyncio loop in a daemon thread.

    Everything that plays a chip runs in it, one call at a time; other threads hand their
    calls over with :meth:`call` and :meth:`run`.
    """

    _shared: "Reactor | None" = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="virtual-beacons", daemon=True)
        self._thread.start()

    @classmethod
    def shared(cls) -> "Reactor":
        """Return the process's reactor; it is started when first asked for."""
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    @property
    def inside(self) -> bool:
        """Whether the caller runs in the loop's thread."""
        return threading.current_thread() is self._thread

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call ``function`` in the loop's thread and return its result."""
        if self.inside:
            return function(*args)
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def call_and_resolve() -> None:
            try:
                done.set_result(function(*args))
            except BaseException as error:
                done.set_exception(error)

        self.loop.call_soon_threadsafe(call_and_resolve)
        return done.result()

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine in the loop from another thread and return its result."""
        if self.inside:
            raise RuntimeError("the loop cannot wait for itself: await the coroutine")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
