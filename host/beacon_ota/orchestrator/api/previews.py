"""Computes previews of rollouts in one thread, each only while its client waits.

A preview of a large fleet takes seconds. Its own thread keeps the threads of uploads, downloads
and sign-in free. Few previews may wait; the next is refused. A preview ends early when its client
leaves, when the server stops, or after ``LIMITS.preview_s`` seconds.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request

from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.limits import LIMITS

T = TypeVar("T")
_CLIENT_CHECK_S = 0.1  # between two checks whether the client is still there


class ClientLeft(Exception):
    """The client of the preview has disconnected."""


class _Stopped(Exception):
    """A preview was stopped before it had a result."""


class Previews:
    """The thread of previews, and the previews that wait for it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="preview")
        self._unfinished = 0
        self._closed = False

    def close(self) -> None:
        """Stop all previews, because the server stops."""
        self._closed = True

    async def run(self, request: Request, compute: Callable[[Callable[[], bool]], T]) -> T:
        """Return the result of ``compute(should_stop)``, computed in the thread.

        Args:
            compute: ends early when ``should_stop()`` returns True.

        Raises:
            Problem: 503 ``previews_busy`` when ``LIMITS.previews`` are waiting already;
                503 ``stopping`` when the server stops; 422 ``preview_too_long`` after
                ``LIMITS.preview_s`` seconds of computing.
            ClientLeft: the client has disconnected.
        """
        if self._unfinished >= LIMITS.previews:
            raise Problem(
                503,
                "previews_busy",
                "other previews are being computed; ask again in a moment",
                expected=LIMITS.previews,
            )
        client_gone = threading.Event()
        deadline_passed = threading.Event()

        def compute_until_stopped() -> T:
            ends = time.monotonic() + LIMITS.preview_s

            def should_stop() -> bool:
                if time.monotonic() > ends:
                    deadline_passed.set()
                return client_gone.is_set() or deadline_passed.is_set()

            found = compute(should_stop)
            if client_gone.is_set() or deadline_passed.is_set():
                raise _Stopped
            return found

        self._unfinished += 1
        computing = asyncio.get_running_loop().run_in_executor(self._thread, compute_until_stopped)
        computing.add_done_callback(self._on_computed)
        try:
            while not (await asyncio.wait((computing,), timeout=_CLIENT_CHECK_S))[0]:
                if self._closed:
                    raise Problem(503, "stopping", "the orchestrator is being stopped")
                if await request.is_disconnected():
                    raise ClientLeft
            return computing.result()
        except _Stopped:
            raise Problem(
                422,
                "preview_too_long",
                "the preview takes too long; a shorter horizon_s or a simpler plan may do",
                expected=LIMITS.preview_s,
            ) from None
        finally:
            client_gone.set()
            computing.cancel()  # a waiting preview never begins

    def _on_computed(self, computing: "asyncio.Future[T]") -> None:
        self._unfinished -= 1
        if not computing.cancelled():
            computing.exception()  # marks the exception as retrieved
