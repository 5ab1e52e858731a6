"""The channel to an interpreter, on the side of the supervisor (peer: ``modules/_chip.py``).

A stream socket carries calls and answers. A call is two lengths (u32 LE: of the encoded
tuple, of a buffer that follows it), the tuple (name of the operation, arguments) and the
buffer. An answer is a kind (0 value, else the class of exception), a length and a value.

Events wait in a queue; two pipes announce them: one wakes the polls of the interpreter, the other
its interrupt thread. The interpreter fetches each event with the call ``event``, which carries the
result of the handler of the previous event.
"""

import asyncio
import contextlib
import inspect
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

Value = None | bool | int | str | bytes | tuple["Value", ...]
Operation = Callable[..., Value | Awaitable[Value]]

_CALL = struct.Struct("<II")
_ANSWER = struct.Struct("<BI")
_CALL_MAX = 0x10000  # bytes of an encoded call; buffers come separately
_BLOB_MAX = 0x1000000
_KINDS = {OSError: 1, ValueError: 2, RuntimeError: 3, TypeError: 4}
PATIENCE = 0.02  # seconds until a waiting event interrupts a blocking call
_QUEUE_MAX = 256  # queued events; further ones are dropped, like interrupts that come too fast


class InterpreterGone(Exception):
    """A call gets no answer: the chip no longer runs the code that called."""


def pack_value(value: Any) -> bytes:
    """Encode what travels; dicts, floats and the like do not."""
    if value is None:
        return b"N"
    if value is True:
        return b"T"
    if value is False:
        return b"F"
    if isinstance(value, int):
        return b"I" + struct.pack("<q", value)
    if isinstance(value, tuple | list):
        return b"(" + bytes([len(value)]) + b"".join(map(pack_value, value))
    if isinstance(value, str):
        raw, kind = value.encode(), b"S"
    elif isinstance(value, bytes | bytearray | memoryview):
        raw, kind = bytes(value), b"B"
    else:
        raise TypeError(f"{type(value).__name__} does not travel")
    return kind + struct.pack("<I", len(raw)) + raw


def unpack_value(raw: bytes) -> Any:
    """Decode one value (ValueError when it is malformed)."""
    try:
        value, end = _unpack(raw, 0, 0)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"malformed message: {error}") from error
    if end != len(raw):
        raise ValueError("malformed message: bytes left over")
    return value


def _unpack(raw: bytes, at: int, depth: int) -> tuple[Any, int]:
    kind = raw[at : at + 1]
    at += 1
    if kind == b"I":
        return struct.unpack_from("<q", raw, at)[0], at + 8
    if kind in (b"S", b"B"):
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4
        if at + length > len(raw):
            raise IndexError("a length leads beyond the end")
        body = raw[at : at + length]
        return (body.decode() if kind == b"S" else body), at + length
    if kind == b"(" and depth < 16:
        count, values = raw[at], []
        at += 1
        for _ in range(count):
            value, at = _unpack(raw, at, depth + 1)
            values.append(value)
        return tuple(values), at
    if kind in (b"N", b"T", b"F"):
        return {b"N": None, b"T": True, b"F": False}[kind], at
    raise IndexError(f"no value begins with {kind!r}")


class InterpreterChannel(asyncio.Protocol):
    """One interpreter's line. Made in the loop; the interpreter inherits :attr:`passed`.

    Args:
        operations: name → function of the arguments, called in the loop. It may return an
            awaitable. OSError, ValueError, RuntimeError and TypeError reach beacon code with
            their arguments; :class:`InterpreterGone` leaves the caller without an answer.
        lost: called when the interpreter hangs up, or with the error that an operation raised.
        nudge: called when events wait although the interpreter was told.
        called: called before every operation.
    """

    def __init__(
        self,
        operations: dict[str, Operation],
        lost: Callable[[Exception | None], None],
        nudge: Callable[[], None],
        called: Callable[[], None],
    ):
        self._operations = {**operations, "event": self._next_event}
        self._lost, self._nudge, self._called = lost, nudge, called
        self._impatience: asyncio.TimerHandle | None = None
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._events: deque[tuple[tuple, asyncio.Future | None]] = deque()
        self._answering: asyncio.Future | None = None
        self._rung = False
        self._asking: asyncio.Task | None = None
        self._ours, self._theirs = socket.socketpair()
        self._bell_in, self._bell_out = os.pipe()
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._bell_out, False)
        self._closed = False

    @property
    def passed(self) -> tuple[int, int, int, int]:
        """Descriptors for the interpreter: calls, bell, wake pipe both ways."""
        return self._theirs.fileno(), self._bell_in, self._wake_in, self._wake_out

    async def open(self) -> None:
        """Begin to listen."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, sock=self._ours)

    def inherited(self) -> None:
        """Close our copies of what only the interpreter needs."""
        self._theirs.close()
        os.close(self._bell_in)

    def close(self) -> None:
        """Hang up. Whoever waits for an event's result gets None."""
        if self._closed:
            return
        self._closed = True
        if self._transport is not None:
            self._transport.abort()
        self._ours.close()
        for fd in (self._bell_out, self._wake_in, self._wake_out):
            os.close(fd)
        if self._impatience is not None:
            self._impatience.cancel()
        self._resolve_waiting(None)
        while self._events:
            _, waiting = self._events.popleft()
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    def queue_event(self, *event: Value, once: bool = False) -> bool:
        """Queue an event for the interpreter; False when it was dropped.

        Args:
            event: kind and fields.
            once: drop it when the same event still waits.
        """
        return self._append_event(event, None, once)

    def call_handler(self, *event: Value) -> asyncio.Future:
        """Queue an event and return a future of the result of its handler (None without one)."""
        waiting: asyncio.Future = asyncio.get_running_loop().create_future()
        if not self._append_event(event, waiting, False):
            waiting.set_result(None)
        return waiting

    def _append_event(self, event: tuple, waiting: asyncio.Future | None, once: bool) -> bool:
        if self._closed or len(self._events) >= _QUEUE_MAX:
            return False
        if once and any(queued == event for queued, _ in self._events):
            return False
        self._events.append((event, waiting))
        if not self._rung:
            self._rung = True
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(self._wake_out, b"!")
                os.write(self._bell_out, b"!")
            loop = asyncio.get_running_loop()
            self._impatience = loop.call_later(PATIENCE, self._interrupt_again, PATIENCE)
        return True

    def _interrupt_again(self, waited: float) -> None:
        """Interrupt a blocking system call that keeps events waiting, repeatedly."""
        if self._rung and not self._closed:
            self._nudge()
            waited = min(2 * waited, 1)
            loop = asyncio.get_running_loop()
            self._impatience = loop.call_later(waited, self._interrupt_again, waited)

    def cancel_events(self, *prefix: Value) -> None:
        """Remove queued events that begin with ``prefix``."""
        kept = [e for e in self._events if e[0][: len(prefix)] != prefix]
        self._events = deque(kept)

    @property
    def pending_events(self) -> int:
        """Events that the interpreter has not fetched."""
        return len(self._events)

    def _next_event(self, result: Value) -> Value:
        self._resolve_waiting(result)
        if not self._events:
            self._rung = False
            if self._impatience is not None:
                self._impatience.cancel()
            return None
        event, self._answering = self._events.popleft()
        return event

    def _resolve_waiting(self, result: Value) -> None:
        waiting, self._answering = self._answering, None
        if waiting is not None and not waiting.done():
            waiting.set_result(result)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._asking is not None:
            self._asking.cancel()
        self._lost(None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= _CALL.size:
            size, extra = _CALL.unpack_from(self._buffer)
            if size > _CALL_MAX or extra > _BLOB_MAX:
                self._lost(ValueError("a message beyond the size limit"))
                return
            end = _CALL.size + size + extra
            if len(self._buffer) < end:
                return
            head = bytes(self._buffer[_CALL.size : _CALL.size + size])
            blob = bytes(self._buffer[_CALL.size + size : end])
            del self._buffer[:end]
            self._handle_call(head, blob)

    def _handle_call(self, head: bytes, blob: bytes) -> None:
        self._called()
        try:
            name, *args = unpack_value(head)
            operation = self._operations[name]
            result = operation(*args, blob) if blob else operation(*args)
            if inspect.isawaitable(result):
                self._asking = asyncio.ensure_future(self._answer_later(result))
                return
        except Exception as error:
            self._answer_error(error)
        else:
            self._send_answer(0, result)

    async def _answer_later(self, result: Awaitable[Value]) -> None:
        try:
            value = await result
        except Exception as error:
            self._answer_error(error)
        else:
            self._send_answer(0, value)

    def _answer_error(self, error: Exception) -> None:
        if isinstance(error, InterpreterGone):
            return
        kind = _KINDS.get(type(error))
        if kind is None and isinstance(error, OSError):
            kind = 1
        if kind is None:
            self._lost(error)
        else:
            self._send_answer(kind, tuple(error.args))

    def _send_answer(self, kind: int, value: Value) -> None:
        if self._transport is None or self._closed:
            return
        body = pack_value(value)
        self._transport.write(_ANSWER.pack(kind, len(body)) + body)
