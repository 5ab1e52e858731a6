"""Head and body of a small answer in one system call.

The server software writes them one after the other, and each write is a call into the kernel, a
packet, and a reader woken up: half of what answering a poll costs. So a head waits for the body
that follows in the same turn of the event loop, and leaves alone when none does.
"""

import asyncio
from typing import Any

_HEAD = b"HTTP/1.1 "
_COPY_MAX = 16 * 1024  # bytes worth copying; more than that goes by reference


class CoalescingTransport:
    """A transport that holds back what looks like a head until the next write, or turn."""

    __slots__ = ("_pending_head", "_loop", "_transport")

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop):
        self._transport = transport
        self._loop = loop
        self._pending_head = b""

    def write(self, data: Any) -> None:
        """Send, in order; to a connection that is being closed, nothing.

        A body that begins like a head waits for a turn, no more.
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
        """Send what is held, then close."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._pending_head = b""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Is it closed, or about to be?"""
        return self._transport.is_closing()

    def _flush(self) -> None:
        head, self._pending_head = self._pending_head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
