"""A clock for a room's air that a test can stop and wind."""

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any

from beacon_ota.virtual.radio.space import RadioSpace


class ManualTimers:
    """Flows as the loop's clock does until it is stopped; then only :meth:`advance` moves it.

    Everything but the constructor runs in the room's loop; the functions below call from outside.
    """

    def __init__(self) -> None:
        self._stopped: float | None = None  # at this time
        self._lost = 0.0  # seconds that the loop's clock is ahead
        self._waiting: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self._alarm: asyncio.TimerHandle | None = None

    def time(self) -> float:
        if self._stopped is not None:
            return self._stopped
        return asyncio.get_running_loop().time() - self._lost

    def call_soon(self, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        return asyncio.get_running_loop().call_soon(callback, *args)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        handle = _Timer(when, callback, args, asyncio.get_running_loop())
        heapq.heappush(self._waiting, (when, next(self._numbers), handle))
        self._set_alarm()
        return handle

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._stopped is None and self._waiting:
            when = self._waiting[0][0] + self._lost
            self._alarm = asyncio.get_running_loop().call_at(when, self._ring)

    def _ring(self) -> None:
        now = self.time()
        while self._stopped is None and self._waiting and self._waiting[0][0] <= now:
            heapq.heappop(self._waiting)[2]._run()
        self._set_alarm()

    async def stop(self) -> None:
        """Stand still."""
        self._stopped = self.time()
        self._set_alarm()

    async def go_on(self) -> None:
        """Flow again."""
        assert self._stopped is not None
        self._lost, self._stopped = asyncio.get_running_loop().time() - self._stopped, None
        self._set_alarm()

    async def advance(self, seconds: float) -> None:
        """Let time pass at once, with everything that is due in it, in its order."""
        assert self._stopped is not None
        end = self._stopped + seconds
        while self._waiting and self._waiting[0][0] <= end:
            when, _, handle = heapq.heappop(self._waiting)
            self._stopped = max(when, self._stopped)
            handle._run()
            for _ in range(3):
                await asyncio.sleep(0)  # what follows from it at once
        self._stopped = end


class _Timer(asyncio.TimerHandle):
    """A handle that the loop knows nothing of: it may be cancelled without telling the loop."""

    def __init__(self, when: float, callback: Any, args: Any, loop: Any) -> None:
        super().__init__(when, callback, args, loop)
        self._scheduled = False

    def _run(self) -> None:
        if not self.cancelled():
            super()._run()


class Stopped:
    """A room whose time stands still, for a ``with`` block in any thread."""

    def __init__(self, room: RadioSpace, timers: ManualTimers) -> None:
        self._room, self._timers = room, timers

    def __enter__(self) -> "Stopped":
        self._room.run(self._timers.stop())
        return self

    def __exit__(self, *_: object) -> None:
        self._room.run(self._timers.go_on())

    def advance(self, seconds: float) -> None:
        self._room.run(self._timers.advance(seconds))
