"""Runs the orchestrator on a socket: uvicorn with uvloop and httptools, and bounds of our own."""

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy import Connection
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from beacon_ota.errors import ReachError, UsageError
from beacon_ota.orchestrator.announce import announced
from beacon_ota.orchestrator.api.app import create_app
from beacon_ota.orchestrator.asgi import ABORT
from beacon_ota.orchestrator.bounded import Bounded
from beacon_ota.orchestrator.clock import Clock
from beacon_ota.orchestrator.cluster import Cluster
from beacon_ota.orchestrator.database import is_shared
from beacon_ota.orchestrator.engine import Engine
from beacon_ota.orchestrator.hot import Hot
from beacon_ota.orchestrator.joined import Joined
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.service import Service, Settings
from beacon_ota.orchestrator.store import audit, tokens
from beacon_ota.orchestrator.webhooks import Webhooks

_HEAD_BYTES = 32 * 1024  # of a request line and its headers
_HEAD_S = 20.0  # until they are complete; also for a connection that says nothing


# What the kernel does for each connection, where it can: give up on a peer that acknowledges
# nothing any more, and hold no more than this of what was not sent yet (it would take whole images
# for slow readers, and we would not see that they stand still).
_TCP = tuple(
    (getattr(socket, name), value)
    for name, value in (
        ("TCP_USER_TIMEOUT", int(LIMITS.send_stall * 1000)),
        ("TCP_NOTSENT_LOWAT", LIMITS.chunk // 2),
    )
    if hasattr(socket, name)
)


@dataclass(frozen=True, slots=True)
class Listen:
    """Where and how to listen."""

    host: str = "127.0.0.1"
    port: int = 8080
    tls_cert: Path | None = None
    tls_key: Path | None = None
    announce: bool = False
    token_file: Path | None = None
    time_scale: float = 1.0
    on_ready: Callable[[str, str | None], None] = field(default=lambda url, token: None)
    stop: asyncio.Event = field(default_factory=asyncio.Event)


class Protocol(HttpToolsProtocol):
    """uvicorn's, with bounds on what a peer may leave unfinished.

    A request head is bounded in bytes and time; a peer that takes nothing of what was sent is
    dropped by the kernel, so that a reader that went away does not hold its image for ever.
    """

    _timer: asyncio.TimerHandle | None = None
    _head = 0
    _heading = True

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.transport = Joined(transport, self.loop)  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        for option, value in _TCP:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._heading:
            self._head += len(data)
            if self._head > _HEAD_BYTES + LIMITS.chunk:
                self.transport.abort()
                return
            if self._timer is None:
                self._arm()
        super().data_received(data)
        if self._heading and self._head > _HEAD_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore

    def on_headers_complete(self) -> None:
        self._heading = False
        self._head = 0
        self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._heading = True
        super().on_message_complete()

    def _arm(self) -> None:
        self._timer = self.loop.call_later(_HEAD_S, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()


class _Server(uvicorn.Server):
    """uvicorn's, that says when it listens, and lets us clean up after a signal."""

    def __init__(self, config: uvicorn.Config, ready: asyncio.Event, stopping: Callable[[], None]):
        super().__init__(config)
        self._ready = ready
        self._stopping = stopping

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            yield  # whoever runs us in a thread stops us by hand
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._exit)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _exit(self) -> None:
        self.force_exit = self.should_exit  # the second time means at once
        self.stop()

    def stop(self) -> None:
        """Take nothing new, and end what would go on for ever."""
        self.should_exit = True
        self._stopping()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready.set()


def serve(settings: Settings, listen: Listen) -> None:
    """Run until interrupted.

    Raises:
        ReachError: ``address_in_use`` and the like.
        UsageError: ``keys_missing`` for a secure fleet that trusts no key.
    """
    if settings.workers > 1 and not is_shared(settings.database or "sqlite"):
        raise UsageError(
            "workers_sqlite",
            "SQLite is one process's; several workers need PostgreSQL",
            found=settings.workers,
            expected="--database postgresql://user@host/name, or --workers 1",
        )
    if settings.upstream and is_shared(settings.database or "sqlite"):
        raise UsageError("mirror_database", "a mirror keeps SQLite in its data folder")
    if settings.trusted is None and not settings.insecure:
        raise UsageError(
            "keys_missing",
            "no trusted keys: every release would be refused",
            expected="--keys keys.json, or --insecure for a fleet that runs unsigned releases",
        )
    # The writer gives the interpreter's lock away at every statement, and would wait for it this
    # long each time while requests keep the event loop busy.
    sys.setswitchinterval(0.0005)
    _one_arena()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if settings.workers > 1:
        from beacon_ota.orchestrator.workers import supervise

        supervise(settings, listen)
        return
    work = _serve(settings, listen)
    if sys.platform == "win32":
        asyncio.run(work)
    else:
        import uvloop

        uvloop.run(work)


def _one_arena() -> None:
    """Have glibc keep one heap for all threads, and give back what is free at its end.

    The threads hardly run at once, and each would keep its own free memory. Other C libraries
    have no such settings.
    """
    trim_threshold, arena_max = -1, -8  # M_TRIM_THRESHOLD and M_ARENA_MAX of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(arena_max, 1)
        libc.mallopt(trim_threshold, 256 * 1024)


async def _serve(settings: Settings, listen: Listen) -> None:
    sock = bind(listen)
    service = Service(settings, Clock(listen.time_scale))
    engine = Engine(service)
    if settings.upstream:
        from beacon_ota.orchestrator.mirror import LocalEngine  # with what it takes: 5 MB

        engine = LocalEngine(service)
    await run(service, engine, sock, listen)


def _mirror(service: Service, engine: Engine, address: str) -> None:
    from beacon_ota.orchestrator.mirror import LocalEngine, Mirror

    assert isinstance(engine, LocalEngine)
    service.mirror = mirror = Mirror(service, engine)
    mirror.address = address
    mirror.start()


async def run(service: Service, engine: Engine, sock: socket.socket, listen: Listen) -> None:
    """Start a service, serve it on a bound socket until told to stop, and stop it."""
    telling = Webhooks(service)
    cluster = Cluster(service, engine, telling) if service.shared else None
    if cluster is not None:
        cluster.begin()
    await service.start()
    try:
        engine.start()
        telling.start()
        if cluster is not None:
            cluster.start()
        if service.settings.upstream:
            _mirror(service, engine, url_of(listen, sock))
        token = await first_token(service, listen.token_file)
        config = uvicorn.Config(
            Hot(service, Bounded(create_app(service, engine, telling))),
            http=Protocol,
            ws="none",
            lifespan="off",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            log_config=None,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
            ssl_certfile=listen.tls_cert,
            ssl_keyfile=listen.tls_key,
            backlog=2048,
        )
        ready = asyncio.Event()
        server = _Server(config, ready, service.hub.close)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if ready.is_set():
            async with announced(listen, sock):
                listen.on_ready(url_of(listen, sock), token)
                stopping = asyncio.create_task(listen.stop.wait())
                await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                server.stop()
        await serving
    finally:
        await service.stop()


def bind(listen: Listen, *, port: int | None = None, many: bool = False) -> socket.socket:
    """Return a socket bound to where we listen.

    Args:
        port: instead of the one asked for.
        many: others of ours are bound there, too; the kernel shares the connections out.

    Raises:
        ReachError: ``address_in_use``, ``address_unusable``.
    """
    try:
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if many:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((listen.host, listen.port if port is None else port))
        return sock
    except OSError as error:
        raise ReachError(
            "address_in_use" if error.errno == 98 else "address_unusable",
            f"cannot listen on {listen.host}:{listen.port}: {error.strerror}",
            found=f"{listen.host}:{listen.port}",
        ) from None


def url_of(listen: Listen, sock: socket.socket) -> str:
    """Return where a bound socket is reached."""
    scheme = "https" if listen.tls_cert else "http"
    host = f"[{listen.host}]" if ":" in listen.host else listen.host
    return f"{scheme}://{host}:{sock.getsockname()[1]}"


async def first_token(service: Service, file: Path | None) -> str | None:
    """Make the first admin token when there is none that works; into ``file`` if one is named.

    Returns:
        The token to be shown once, None when it was written, or there is one already.
    """

    return keep_token(await service.db.write(make_token, service.clock.now()), file)


def make_token(conn: Connection, now: float) -> str | None:
    """Make the first admin token, None when there is one that works."""
    if tokens.usable_admins(conn, now):
        return None
    row, token = tokens.create(conn, "first", "admin", now)
    audit.add(conn, now, "orchestrator", "token.created", row["name"], "first start")
    return token


def keep_token(token: str | None, file: Path | None) -> str | None:
    """Write a token into ``file`` if one is named; returns what is left to be shown."""
    if token is None or file is None:
        return token
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        os.fchmod(out.fileno(), 0o600)
        out.write(token + "\n")
    return None
