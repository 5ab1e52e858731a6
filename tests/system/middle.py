"""Somebody between a beacon and the orchestrator, who changes one thing at a time."""

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from beacon_ota.wire import auth, auth_header

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Request:
    """A request as it passes by."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def kind(self) -> str:
        """Return ``poll``, ``index``, ``download`` or ``report``."""
        if self.method == "POST":
            return "report"
        if "/blocks?" in self.target:
            return "index"
        return "poll" if self.target.startswith("/firmwares/latest/") else "download"

    @property
    def nonce(self) -> str:
        parsed = auth_header.parse_header(self.headers.get("authorization", ""))
        return parsed[2] if parsed else ""


@dataclass(frozen=True)
class Answer:
    """What comes back."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    def offer(self, **changes: Any) -> "Answer":
        """Return the same with some fields of its JSON changed."""
        return replace(self, body=json.dumps({**json.loads(self.body), **changes}).encode())


Change = Callable[[Request, Answer], Answer]
Forward = Callable[[Request], Request]


@dataclass
class Middle:
    """A proxy that speaks HTTP, so that it knows what it is looking at.

    Attributes:
        change: what it does to answers; forward: to requests.
        key: a beacon's key, for one who has stolen it: answers that were changed are sealed anew.
        seen: everything that passed, as it left here.
        changed: how many answers or requests were altered.
    """

    url: str
    change: Change | None = None
    forward: Forward | None = None
    key: bytes | None = None
    seen: list[tuple[Request, Answer]] = field(default_factory=list)
    changed: int = 0

    def __enter__(self) -> "Middle":
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def pass_on(self, request: Request) -> Answer:
        """Let a request through, and its answer back."""
        if self.forward is not None:
            sent = self.forward(request)
            self.changed += sent != request
            request = sent
        answer = self.ask(request)
        if self.change is not None:
            altered = self.change(request, answer)
            if altered != answer:
                self.changed += 1
                answer = altered if self.key is None else self.seal(request, altered)
        self.seen.append((request, answer))
        return answer

    def ask(self, request: Request) -> Answer:
        """Ask the orchestrator."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            headers = {k: v for k, v in request.headers.items() if k != "connection"}
            connection.request(request.method, request.target, request.body or None, headers)
            found = connection.getresponse()
            headers = {name.lower(): value for name, value in found.getheaders()}
            return Answer(found.status, headers, found.read())

    def seal(self, request: Request, answer: Answer) -> Answer:
        """Sign an answer as the orchestrator would."""
        assert self.key is not None
        digest = hashlib.sha256(answer.body).hexdigest()
        if request.kind == "download" and answer.status in (200, 206):
            digest = answer.headers["etag"].strip('"')
        text = auth.answer_text(request.nonce, answer.status, digest)
        mac = hmac.digest(self.key, text, "sha256").hex()
        return replace(answer, headers={**answer.headers, "x-beacon-mac": mac})


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64


class _Handler(socketserver.StreamRequestHandler):
    owner: Middle
    timeout = TIMEOUT_S

    def handle(self) -> None:
        # A beacon may go at any moment, and so may the orchestrator.
        with contextlib.suppress(OSError, http.client.HTTPException):
            request = self._read()
            if request is not None:
                self._write(self.owner.pass_on(request))

    def _read(self) -> Request | None:
        line = self.rfile.readline(8192).decode("latin-1").split()
        if len(line) != 3:
            return None
        headers: dict[str, str] = {}
        while text := self.rfile.readline(8192).decode("latin-1").strip():
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        body = self.rfile.read(int(headers.get("content-length", 0)))
        return Request(line[0], line[1], headers, body)

    def _write(self, answer: Answer) -> None:
        headers = {k: v for k, v in answer.headers.items() if k != "transfer-encoding"}
        if answer.status != 204:
            headers["content-length"] = str(len(answer.body))
        headers["connection"] = "close"
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.wfile.write(f"HTTP/1.1 {answer.status} X\r\n{head}\r\n".encode("latin-1"))
        self.wfile.write(answer.body)


def flip(data: bytes, bit: int) -> bytes:
    """Return the bytes with one bit flipped."""
    return (int.from_bytes(data) ^ 1 << bit % (8 * len(data))).to_bytes(len(data))


def bent(text: str, bit: int = 7) -> str:
    """Return base64 with one bit of what it stands for flipped."""
    return base64.b64encode(flip(base64.b64decode(text), bit)).decode()
