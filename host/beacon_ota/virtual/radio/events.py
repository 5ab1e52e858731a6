"""The one task of NimBLE's host: packets and events in their order, each handler awaited."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

CENTRAL_CONNECT = 1
CENTRAL_DISCONNECT = 2
GATTS_WRITE = 3
GATTS_READ_REQUEST = 4
SCAN_RESULT = 5
SCAN_DONE = 6
GATTC_NOTIFY = 18
GATTC_INDICATE = 19
GATTS_INDICATE_DONE = 20
MTU_EXCHANGED = 21
CONNECTION_UPDATE = 27
ENCRYPTION_UPDATE = 28
GET_SECRET = 29
SET_SECRET = 30

# Calls the handler of beacon code in its interpreter; returns its result, None without a handler
# and after an exception.
Handler = Callable[[int, tuple[Any, ...]], Awaitable[object]]


class IrqQueue:
    """Packets and events in the order of the single task of NimBLE, which waits for every handler.

    Args:
        handler: runs the IRQ handler of beacon code.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def call_handler(
        self, event: int, *data: Any, before: Callable[[], None] | None = None
    ) -> object:
        """Call the handler and return its result.

        Args:
            event: number of the event.
            data: its tuple.
            before: called when the turn of the event has come, before the handler.
        """
        async with self._turn:
            if before is not None:
                before()
            return await self._handler(event, data)

    async def call_in_turn(self, event: int, *data: Any) -> object:
        """Call the handler in the turn of a packet: inside of :meth:`run_in_turn`."""
        return await self._handler(event, data)

    def run_in_turn(self, step: Callable[[], Awaitable[None]]) -> None:
        """Run a step of the host when everything before it is done."""

        async def body() -> None:
            async with self._turn:
                await step()

        self.spawn_task(body())

    def post_event(self, event: int, *data: Any, before: Callable[[], None] | None = None) -> None:
        """Queue a call of the handler without waiting for it."""
        self.spawn_task(self.call_handler(event, *data, before=before))

    def spawn_task(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine until it is done or :meth:`cancel_all`."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel_all(self) -> None:
        """Cancel all queued events and tasks: the interpreter is gone."""
        for task in tuple(self._tasks):
            task.cancel()
        self._tasks.clear()
        self._turn = asyncio.Lock()
