"""A faulty HTTP/1.1 server before an orchestrator in this process, one request per connection.

It hands requests to an ASGI application and injects faults into the answers: with the right
signature, as an orchestrator with a defect, or without one, as a stranger at its address.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

from beacon_ota.orchestrator.http.asgi import (
    ABORT_EXTENSION,
    App,
    ClientDisconnected,
    Message,
    Scope,
)

HEAD = 8 * 1024  # bytes of a request's head
BODY = 64 * 1024
PATIENCE = 30.0  # seconds for a request to arrive

Headers = dict[str, str]


@dataclass(frozen=True)
class HttpRequest:
    """One request."""

    method: str
    target: str
    headers: Headers
    body: bytes

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


@dataclass(frozen=True)
class AnswerFault:
    """The fault of one answer.

    Args:
        status: answer this instead.
        retry_after: seconds, as the header.
        close: close after so many bytes of the body.
        other: send other bytes, as many.
        more: send so many bytes more than there are, and say so.
        lie: announce so many bytes more than are sent (fewer, when negative).
        etag: send this ETag.
        foreign: send exactly this instead, without a signature or a call of the application.
        silent: take the request and never answer.
    """

    status: int = 0
    retry_after: int | None = None
    close: int | None = None
    other: bool = False
    more: int = 0
    lie: int = 0
    etag: str = ""
    foreign: bytes | None = None
    silent: bool = False


def _foreign_page(status: str, *headers: str) -> AnswerFault:
    body = b"<h1>Sign in</h1>"
    head = [f"HTTP/1.1 {status}", "Content-Type: text/html", f"Content-Length: {len(body)}"]
    return AnswerFault(foreign="\r\n".join([*head, *headers, "", ""]).encode() + body)


# Answers of a stranger: a captive portal, another web server, another service, silence.
FOREIGN_ANSWERS = (
    _foreign_page("200 OK"),
    _foreign_page("302 Found", "Location: http://portal.example/"),
    _foreign_page("403 Forbidden"),
    AnswerFault(silent=True),
    _foreign_page("404 Not Found"),
    AnswerFault(foreign=b"SSH-2.0-OpenSSH_9.2p1\r\n"),
    _foreign_page("409 Conflict"),
    AnswerFault(foreign=b""),
)


def refuse_index(request: HttpRequest) -> AnswerFault | None:
    """Answer as an orchestrator without block indexes: a fault to be chosen for every request."""
    return AnswerFault(status=404) if request.path.endswith("/blocks") else None


@dataclass
class _Answer:
    """An answer that is being sent."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0


SignAnswer = Callable[[HttpRequest, int, bytes], tuple[str, str]]


class FaultyHttpServer:
    """A listener on 127.0.0.1; made and used in one event loop.

    Attributes:
        app: the application; without one, connections are dropped.
        judge: returns the fault for a request, or None.
        seal: signs an answer that the front makes up.
        answering: awaited when an answer is about to leave; the request, its status.
        requests: everything that came.
    """

    def __init__(self) -> None:
        self.app: App | None = None
        self.choose_fault: Callable[[HttpRequest], AnswerFault | None] = lambda request: None
        self.sign_answer: SignAnswer | None = None
        self.before_answer: Callable[[HttpRequest, int], Awaitable[None]] | None = None
        self.requests: list[HttpRequest] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """Accept connections, at the same port as before."""
        self._server = await asyncio.start_server(
            self._serve_connection, "127.0.0.1", self.port, limit=HEAD, backlog=256
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Refuse connections, and drop those there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            async with asyncio.timeout(PATIENCE):
                request = await _read_request(reader)
            if request is not None and self.app is not None:
                self.requests.append(request)
                await _Exchange(self, self.app, request, reader, writer).run()
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            pass  # the peer disconnected, or sent a malformed request: campaigns cause both
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._open.discard(task)
            writer.close()


class _Exchange:
    """One request and its answer."""

    def __init__(
        self,
        front: FaultyHttpServer,
        app: App,
        request: HttpRequest,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._front, self._app = front, app
        self._request, self._reader, self._writer = request, reader, writer
        self._fault = front.choose_fault(request) or AnswerFault()
        self._answer = _Answer()
        self._body_received = False
        self._left = self._fault.close

    async def run(self) -> None:
        if self._fault.silent:
            await self._reader.read(1)  # until the beacon disconnects
        elif self._fault.foreign is not None:
            self._writer.write(self._fault.foreign)
        elif self._fault.status:
            await self._send_made_up()
        else:
            await self._app(_make_scope(self._request, self._writer), self._receive, self._send)
        await self._writer.drain()

    async def _send_made_up(self) -> None:
        fault = self._fault
        body = b'{"code":"fault","status":%d}' % fault.status
        headers = [("Content-Type", "application/problem+json"), ("Content-Length", str(len(body)))]
        if fault.retry_after is not None:
            headers.append(("Retry-After", str(fault.retry_after)))
        if self._front.sign_answer is not None:
            headers.append(self._front.sign_answer(self._request, fault.status, body))
        await self._write_head(fault.status, headers)
        self._writer.write(body)

    async def _receive(self) -> Message:
        if self._body_received:
            await asyncio.get_running_loop().create_future()
        self._body_received = True
        return {"type": "http.request", "body": self._request.body, "more_body": False}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in message["headers"]
            ]
            await self._write_head(message["status"], self._change_headers(headers))
            return
        body = bytes(message.get("body", b""))
        if self._fault.other:
            body = bytes(255 - byte for byte in body)
        if not message.get("more_body"):
            body += b"\xa5" * self._fault.more
        await self._write_body(body)

    def _change_headers(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        fault = self._fault
        changed = []
        for name, value in headers:
            if name == "content-length":
                value = str(int(value) + fault.more + fault.lie)
            if name == "etag" and fault.etag:
                value = fault.etag
            changed.append((name, value))
        return changed

    async def _write_head(self, status: int, headers: list[tuple[str, str]]) -> None:
        if self._front.before_answer is not None:
            await self._front.before_answer(self._request, status)
        lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in headers)]
        self._writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))

    async def _write_body(self, body: bytes) -> None:
        if self._left is not None:
            body, self._left = body[: self._left], self._left - len(body)
        self._writer.write(body)
        try:
            await self._writer.drain()
        except ConnectionError:
            raise ClientDisconnected from None
        if self._left is not None and self._left <= 0:
            raise ClientDisconnected  # the application need not go on


async def _read_request(reader: asyncio.StreamReader) -> HttpRequest | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
        return None
    method, target, _ = head[0].split(" ", 2)
    headers = {}
    for line in head[1:-2]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    length = int(headers.get("content-length", "0"))
    if not 0 <= length <= BODY:
        return None
    return HttpRequest(method, target, headers, await reader.readexactly(length))


def _make_scope(request: HttpRequest, writer: asyncio.StreamWriter) -> Scope:
    path, _, query = request.target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": request.method,
        "path": unquote(path),
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "headers": [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in request.headers.items()
        ],
        "client": writer.get_extra_info("peername"),
        "extensions": {ABORT_EXTENSION: writer.transport.abort},
    }
