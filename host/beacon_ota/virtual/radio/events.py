"""How a beacon's Bluetooth tells the beacon's code: one event at a time, and each is waited for."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

CENTRAL_CONNECT = 1
CENTRAL_DISCONNECT = 2
GATTS_WRITE = 3
GATTS_READ_REQUEST = 4
SCAN_RESULT = 5
SCAN_DONE = 6
GATTS_INDICATE_DONE = 20
MTU_EXCHANGED = 21
CONNECTION_UPDATE = 27

# Calls the beacon's handler in its interpreter; returns what it returned, None when there is none
# or it failed.
Handler = Callable[[int, tuple[Any, ...]], Awaitable[object]]


class IrqQueue:
    """NimBLE's one task: events wait for their turn, and for the handler to return.

    Args:
        handler: runs the beacon's IRQ handler.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def call_handler(
        self, event: int, *data: Any, before: Callable[[], None] | None = None
    ) -> object:
        """Call the handler and return what it returned.

        Args:
            event: its number.
            data: its tuple.
            before: done when the event's turn has come, before the handler sees it.
        """
        async with self._turn:
            if before is not None:
                before()
            return await self._handler(event, data)

    def post_event(self, event: int, *data: Any, before: Callable[[], None] | None = None) -> None:
        """The same without waiting here."""
        self.spawn_task(self.call_handler(event, *data, before=before))

    def spawn_task(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something on the side, until it is done or :meth:`clear`."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel_all(self) -> None:
        """Drop what waits: there is nobody any more to tell."""
        for task in tuple(self._tasks):
            task.cancel()
        self._tasks.clear()
        self._turn = asyncio.Lock()
