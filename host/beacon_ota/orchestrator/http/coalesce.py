"""Write coalescing: sends head and body of a small answer in one system call.

uvicorn writes head and body one after the other. Each write is a system call, a packet and a
wake-up of the reader: half of the cost of answering a poll. So a head waits for the body that
follows in the same turn of the event loop, and is sent alone when none does.
"""

import asyncio
from typing import Any

_HEAD = b"HTTP/1.1 "
_COPY_MAX = 16 * 1024  # bytes; a larger body is written by reference instead of copied


class CoalescingTransport:
    """A transport that delays a response head until the next write or turn of the event loop."""

    __slots__ = ("_pending_head", "_loop", "_transport")

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop):
        self._transport = transport
        self._loop = loop
        self._pending_head = b""

    def write(self, data: Any) -> None:
        """Send data in order; data for a closing connection is dropped.

        A body that looks like a head waits for one turn of the loop.
        """
        if self._transport.is_closing():
            return
        head = self._pending_head
        if head:
            self._pending_head = b""
            if len(data) <= _COPY_MAX:
                self._transport.write(b"".join((head, data)))
            else:
                self._transport.write(head)
                self._transport.write(data)
        elif data[:9] == _HEAD:
            self._pending_head = data
            self._loop.call_soon(self._flush)
        elif data:
            self._transport.write(data)

    def close(self) -> None:
        """Send the delayed head, then close."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._pending_head = b""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Tell whether the connection is closed or closing."""
        return self._transport.is_closing()

    def _flush(self) -> None:
        head, self._pending_head = self._pending_head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
