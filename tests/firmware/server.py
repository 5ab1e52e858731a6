"""An orchestrator made for beacons' tests: speaks their side of the contract, misbehaves to order.

Real sockets on 127.0.0.1, one thread a connection. It checks every request's signature and every
report's shape with the product's own rules, and keeps all it saw. What it does wrong is a list of
faults, used up one download (or report, or poll) after the other.
"""

import contextlib
import hashlib
import hmac
import json
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from beacon_ota.wire import auth, auth_header, report

BEACON = "beacon-1"
KEY = bytes(range(32))
ATTEMPT = "0123456789abcdef0123"  # and four digits: the number of the offer


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer.

    Args:
        status: answer this instead, with a problem document.
        code: the problem's code.
        retry_after: seconds, as the header.
        close: close the connection after so many bytes of the body.
        stall: send no more after so many bytes of the body, and keep the connection open.
        drip: seconds between the bytes of the body (or of `raw`), sent one by one.
        body: serve these bytes instead, under the same signature.
        length: announce this Content-Length, whatever is sent; None leaves it out.
        chunked: send the body in chunks.
        etag: send this ETag.
        content_range: send this Content-Range, with status 206.
        ignore_range: answer 200 with everything.
        mac: send this X-Beacon-Mac.
        raw: send exactly this and close.
        silent: take the request and never answer.
        restart: afterwards this is a server that was just started, whose clock is so many seconds
            ahead of the one before; it takes nothing that was signed before its start.
    """

    status: int = 0
    code: str = ""
    retry_after: int | None = None
    close: int | None = None
    stall: int | None = None
    drip: float = 0
    body: bytes | None = None
    length: int | None = -1
    chunked: bool = False
    etag: str | None = None
    content_range: str | None = None
    ignore_range: bool = False
    mac: str | None = None
    raw: bytes | None = None
    silent: bool = False
    restart: int | None = None


def _page(status: str, body: bytes = b"<h1>Sign in</h1>", *headers: str) -> Fault:
    lines = [f"HTTP/1.1 {status}", "Content-Type: text/html", f"Content-Length: {len(body)}"]
    head = "\r\n".join([*lines, *headers, "", ""]).encode()
    return Fault(raw=head + body)


# What somebody says who has the orchestrator's address and none of its keys.
STRANGERS = {
    "200": _page("200 OK"),
    "204": _page("204 No Content", b""),
    "302": _page("302 Found", b"", "Location: http://portal.example/"),
    "401": _page("401 Unauthorized", b'{"code":"unknown_beacon"}'),
    "403": _page("403 Forbidden"),
    "404": _page("404 Not Found"),
    "409": _page("409 Conflict", b'{"code":"attempt_over"}'),
    "503": _page("503 Service Unavailable", b"", "Retry-After: 3600"),
    "garbage": Fault(raw=b"SSH-2.0-OpenSSH_9.2p1\r\n"),
    "closed": Fault(raw=b""),
    "short": Fault(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"),
    "silent": Fault(silent=True),
}


@dataclass
class Request:
    """One request as it came: when (monotonic), what, and whether its signature was right."""

    at: float
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    nonce: str = ""

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        """The query's fields."""
        pairs = self.target.partition("?")[2].split("&")
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


@dataclass
class Server:
    """The orchestrator. Set ``offer`` to make it offer; read ``reports`` for what came of it."""

    image: bytes = b""
    plain: bytes | None = None  # the release, where the image that is served is encrypted
    version: str = "2.0.0"
    offering: bool = False
    required: bool = False
    extra: dict[str, Any] = field(default_factory=dict)  # more fields of the offer
    manifest: Callable[[], dict | None] = lambda: None
    poll_s: int = 5
    keys: dict[str, bytes] = field(default_factory=lambda: {BEACON: KEY})
    # Faults for the next answers, one each; None for a sound one.
    downloads: list[Any] = field(default_factory=list)
    polls: list[Any] = field(default_factory=list)
    posts: list[Any] = field(default_factory=list)
    indexes: list[Any] = field(default_factory=list)
    # The block index that is served; None: 404, as for a release that has none.
    blocks: bytes | None = None
    knows_blocks: bool = True  # False: an older server, which has no such route
    # Somebody else who answers at this address: what he says to a request, None to let it through.
    stranger: Callable[[Request], Fault | None] = lambda request: None
    # What the orchestrator itself does wrong with an authentic request: sealed.
    judge: Callable[[Request], Fault | None] = lambda request: None
    over: set[str] = field(default_factory=set)  # update_status words that get 409
    away: bool = False  # accept nothing
    fetches: bool = True  # acknowledge the journal
    skew: int = 0  # seconds that this server's clock is off
    started: int = 0  # UTC; nothing signed before is accepted
    scale: float = 1  # how much faster it runs, like its beacons'
    rekey: bytes | None = None
    requests: list[Request] = field(default_factory=list)
    reports: list[dict] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    attempts: int = 0
    tls: ssl.SSLContext | None = None
    epoch: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)

    # -- running

    @contextlib.contextmanager
    def run(self) -> Iterator["Server"]:
        """Serve until the end of the block."""
        self.changed = threading.Condition()
        self.stopped = threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self})
        server = _Threads(("127.0.0.1", 0), handler)
        if self.tls:
            server.socket = self.tls.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.stopped.set()
            server.shutdown()
            server.server_close()
            thread.join()

    def wait(self, condition: Callable[[], Any], timeout: float = 90.0) -> Any:
        """Return the condition's value as soon as it is true (AssertionError after timeout)."""
        end = time.monotonic() + timeout
        with self.changed:
            while not (value := condition()):
                left = end - time.monotonic()
                assert left > 0, f"waited in vain; saw {self.story()}"
                self.changed.wait(min(left, 0.25))
            return value

    def ranges(self) -> list[str]:
        """What the downloads asked for, "" for the whole image."""
        return [r.headers.get("range", "") for r in self.requests if r.path.endswith("/download")]

    def statuses(self) -> list[str]:
        """The reported words in order, idle ones left out."""
        return [r["update_status"] for r in self.reports if r["update_status"] != "idle"]

    def last(self, status: str) -> dict | None:
        """The newest report with this word."""
        found = [r for r in self.reports if r["update_status"] == status]
        return found[-1] if found else None

    def journal(self) -> list[list]:
        """All journal entries delivered."""
        return [entry for r in self.reports for entry in r.get("journal", [])]

    def count(self, prefix: str) -> int:
        """How many requests went to paths that begin like this."""
        return sum(r.path.startswith(prefix) for r in self.requests)

    def story(self) -> list[str]:
        """What happened, for a failed assertion."""
        lines = [f"{r.method} {r.target}" for r in self.requests[-20:]]
        for doc in self.reports[-8:]:
            words = ("update_status", "stage", "code", "detail", "progress", "journal")
            lines.append(str({w: doc[w] for w in words if w in doc}))
        return lines + self.refused

    # -- what it knows

    @property
    def checksum(self) -> str:
        """SHA-256 of the release, hex."""
        return hashlib.sha256(self.image if self.plain is None else self.plain).hexdigest()

    @property
    def index(self) -> bytes:
        """The block index of the release."""
        plain = self.image if self.plain is None else self.plain
        sectors = (plain[at : at + 4096] for at in range(0, len(plain), 4096))
        return b"".join(hashlib.sha256(sector).digest()[:8] for sector in sectors)

    @property
    def firmware_id(self) -> str:
        """The release's identity."""
        return hashlib.sha256(self.version.encode()).hexdigest()[:24]

    def now(self) -> int:
        """UTC as this server sees it."""
        past = time.monotonic() - self.began
        return int(self.epoch + past * self.scale) + self.skew

    def make_offer(self) -> dict:
        """A new attempt at the release."""
        self.attempts += 1
        attempt = f"{ATTEMPT}{self.attempts:04d}"
        return {
            "firmware_id": self.firmware_id,
            "version": self.version,
            "checksum": self.checksum,
            "size": len(self.image),
            "download_url": f"/firmwares/{self.firmware_id}/download?attempt={attempt}",
            "required": self.required,
            "description": "a release",
            "attempt_id": attempt,
            "manifest": self.manifest(),
            "poll_after_s": self.poll_s,
            "server_time": self.now(),
        } | self.extra


class _Threads(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64


class _Handler(socketserver.StreamRequestHandler):
    owner: Server
    timeout = 60

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # a beacon may go at any moment, TLS may fail
            request = self._read()
            if request is None or self.owner.away:
                return
            with self.owner.changed:
                self.owner.requests.append(request)
            self._answer(request)
            with self.owner.changed:
                self.owner.changed.notify_all()

    def _read(self) -> Request | None:
        line = self.rfile.readline(2000).decode().split()
        if len(line) != 3:
            return None
        headers = {}
        while (text := self.rfile.readline(2000).decode().strip()) != "":
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        body = self.rfile.read(int(headers.get("content-length", 0)))
        return Request(time.monotonic(), line[0], line[1], headers, body)

    # -- signatures

    def _mac(self, nonce: str, status: int, digest: str) -> str:
        return hmac.new(
            self.key, auth.answer_text(nonce, status, digest), hashlib.sha256
        ).hexdigest()

    def _check(self, request: Request) -> str:
        """A refusal's code, or nothing."""
        found = auth_header.parse_header(request.headers.get("authorization", ""))
        if found is None or found[0] not in self.owner.keys:
            return "unknown_beacon"
        beacon, ts, request.nonce, mac = found
        self.key = self.owner.keys[beacon]
        digest = hashlib.sha256(request.body).hexdigest()
        text = auth.request_text(request.method, request.target, beacon, ts, request.nonce, digest)
        if not hmac.compare_digest(mac, hmac.new(self.key, text, hashlib.sha256).hexdigest()):
            return "bad_mac"
        if abs(ts - self.owner.now()) > auth_header.MAX_SKEW or ts < self.owner.started:
            return "clock_skew"
        return ""

    # -- answers

    def _send(
        self,
        request: Request,
        status: int,
        doc: dict | None = None,
        headers: dict | None = None,
        fault: Fault | None = None,
    ) -> None:
        body = b"" if doc is None else json.dumps(doc).encode()
        digest = hashlib.sha256(body).hexdigest()
        lines = {"Content-Length": str(len(body))} | (headers or {})
        if request.nonce:
            lines["X-Beacon-Mac"] = self._mac(request.nonce, status, digest)
        if fault and fault.mac is not None:
            lines["X-Beacon-Mac"] = fault.mac
        self._head(status, lines)
        self.wfile.write(body)

    def _head(self, status: int, headers: dict) -> None:
        lines = [f"HTTP/1.1 {status} X"] + [f"{k}: {v}" for k, v in headers.items()]
        self.wfile.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    def _fault(self, faults: list) -> Fault | None:
        return faults.pop(0) if faults else None

    def _problem(self, request: Request, fault: Fault) -> bool:
        """Play the faults that need no body; True when that was the answer."""
        if fault.silent:
            self.owner.stopped.wait(30)
            return True
        if fault.raw is not None:
            self._drip(fault.raw, fault.drip)
            return True
        if fault.status:
            extra = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            doc = {"code": fault.code or "fault", "status": fault.status}
            self._send(request, fault.status, doc, extra, fault)
            return True
        return False

    def _drip(self, data: bytes, pause: float) -> None:
        for piece in [bytes([byte]) for byte in data] if pause else [data]:
            self.wfile.write(piece)
            if pause and self.owner.stopped.wait(pause):
                return

    def _answer(self, request: Request) -> None:
        owner = self.owner
        strange = owner.stranger(request)
        if strange and self._problem(request, strange):
            return
        refusal = self._check(request)
        if refusal:
            owner.refused.append(refusal)
            doc = {"code": refusal, "status": 401, "server_time": owner.now()}
            self._send(request, 401, doc)
            return
        fault = owner.judge(request)
        if fault and self._problem(request, fault):
            return
        if request.method == "POST":
            self._report(request)
        elif request.path.startswith("/firmwares/latest/"):
            self._poll(request)
        elif request.path.endswith("/blocks"):
            self._blocks(request)
        else:
            self._download(request)

    def _poll(self, request: Request) -> None:
        owner = self.owner
        fault = self._fault(owner.polls)
        if fault and self._problem(request, fault):
            return
        if "version" not in request.query:
            self._send(request, 422, {"code": "poll_query"})
            return
        due = owner.offering and request.query["state"] == "valid"
        if not due or unquote(request.query["version"]) == owner.version:
            self._send(request, 204, None, {"Retry-After": str(owner.poll_s)}, fault)
            return
        doc = owner.make_offer()
        if fault and fault.body is not None:
            doc = json.loads(fault.body)
        self._send(request, 200, doc, None, fault)

    def _report(self, request: Request) -> None:
        owner = self.owner
        fault = self._fault(owner.posts)
        if fault and self._problem(request, fault):
            return
        assert len(request.body) <= report.MAX_BODY
        doc = json.loads(request.body)
        try:
            report.check_report(doc)
        except report.ReportError as error:
            owner.refused.append(f"report {error}")
            self._send(request, 422, {"code": "report"})
            return
        with owner.changed:
            owner.reports.append(doc)
        if doc["update_status"] in owner.over:
            self._send(request, 409, {"code": "over"})
            return
        answer: dict[str, Any] = {"ok": True, "server_time": owner.now()}
        if doc.get("journal") and owner.fetches:
            answer["journal_ack"] = doc["journal"][-1][0]
        if owner.rekey is not None:
            pad = hmac.new(self.key, auth.rekey_text(request.nonce), hashlib.sha256).digest()
            answer["rekey"] = bytes(a ^ b for a, b in zip(owner.rekey, pad, strict=True)).hex()
        self._send(request, 200, answer, None, fault)
        if owner.rekey is not None:
            owner.keys[BEACON], owner.rekey = owner.rekey, None

    def _download(self, request: Request) -> None:
        owner = self.owner
        fault = self._fault(owner.downloads) or Fault()
        if fault.restart is not None:
            owner.skew += fault.restart
            owner.started = owner.now()
        if self._problem(request, fault):
            return
        self._serve(request, owner.image, fault)

    def _blocks(self, request: Request) -> None:
        owner = self.owner
        fault = self._fault(owner.indexes) or Fault()
        if self._problem(request, fault):
            return
        if not owner.knows_blocks:
            request.nonce = ""  # not sealed
            self._send(request, 404, {"detail": "Not Found"})
        elif owner.blocks is None:
            self._send(request, 404, {"code": "blocks_missing"})
        else:
            self._serve(request, owner.blocks, fault)

    def _serve(self, request: Request, body: bytes, fault: Fault) -> None:
        digest = hashlib.sha256(body).hexdigest()
        status, first, end = 200, 0, len(body)
        headers = {"ETag": f'"{digest}"' if fault.etag is None else fault.etag}
        wanted = request.headers.get("range", "")
        same = request.headers.get("if-range") == f'"{digest}"'
        if wanted.startswith("bytes=") and same and not fault.ignore_range:
            begin, _, last = wanted[6:].partition("-")
            first, end = int(begin), int(last) + 1 if last else len(body)
            status = 206
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(body)}"
            if fault.content_range is not None:
                headers["Content-Range"] = fault.content_range
        if fault.body is not None:
            body = fault.body
        body = body[first:end]
        if fault.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif fault.length is not None:
            headers["Content-Length"] = str(len(body) if fault.length < 0 else fault.length)
        mac = self._mac(request.nonce, status, digest)
        headers["X-Beacon-Mac"] = mac if fault.mac is None else fault.mac
        self._head(status, headers)
        stop = min(x for x in (fault.close, fault.stall, len(body)) if x is not None)
        if fault.chunked:
            for at in range(0, stop, 1000):
                piece = body[at : min(at + 1000, stop)]
                self.wfile.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            if stop == len(body):
                self.wfile.write(b"0\r\n\r\n")
        elif fault.drip:
            self._drip(body, fault.drip)
        else:
            self.wfile.write(body[:stop])
        self.wfile.flush()
        if fault.stall is not None and stop < len(body):
            self.owner.stopped.wait(30)
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_WR)
