"""Runs slow work for administrators in threads, apart from the event loop and the beacons' pools.

Each kind of work has its own threads, and a bound on the number of waiting requests. Work whose
client has left is not begun.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.limits import LIMITS

T = TypeVar("T")
_CLIENT_CHECK_S = 0.5  # between two checks whether the client is still there


class BackgroundPool:
    """Threads for one kind of work.

    Args:
        name: prefix of the threads' names.
        threads: pieces of work at once; all threads share the interpreter with the beacons' calls.
        most: pieces of work under way and waiting.
    """

    def __init__(self, name: str, threads: int = 1, most: int = LIMITS.background_jobs):
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most = most
        self._unfinished = 0

    async def run(
        self, is_gone: Callable[[], Awaitable[bool]], work: Callable[..., T], *args: Any
    ) -> T:
        """Run ``work`` in a thread and return its result.

        Args:
            is_gone: tells whether the client has left.

        Raises:
            Problem: 503 ``busy`` when too much waits; 503 ``client_gone`` when the client has left.
        """
        if self._unfinished >= self._most:
            raise Problem(
                503, "busy", "too many ask for this at once", headers={"retry-after": "5"}
            )
        loop = asyncio.get_running_loop()
        self._unfinished += 1
        done: Future[T] = self._threads.submit(work, *args)
        done.add_done_callback(lambda _: _call_in_loop(loop, self._count_finished))
        waiting = asyncio.wrap_future(done)
        try:
            while not (await asyncio.wait((waiting,), timeout=_CLIENT_CHECK_S))[0]:
                if await is_gone():
                    raise Problem(503, "client_gone", "the client has left")
            return waiting.result()
        finally:
            waiting.cancel()  # work that has not begun never begins

    def _count_finished(self) -> None:
        self._unfinished -= 1


def _call_in_loop(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(work)
    except RuntimeError:
        work()  # the loop is closed
