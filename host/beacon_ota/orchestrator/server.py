"""Runs the orchestrator on a bound socket: uvicorn, the tasks beside it, the first token."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from sqlalchemy import Connection

from beacon_ota.orchestrator.announce import announced
from beacon_ota.orchestrator.api.app import create_app
from beacon_ota.orchestrator.bounded import Bounded
from beacon_ota.orchestrator.cluster import Cluster
from beacon_ota.orchestrator.engine import Engine
from beacon_ota.orchestrator.hot import Hot
from beacon_ota.orchestrator.listen import Listen, url_of
from beacon_ota.orchestrator.protocol import Protocol
from beacon_ota.orchestrator.service import Service
from beacon_ota.orchestrator.store import audit, tokens
from beacon_ota.orchestrator.webhooks import Webhooks


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
        app = create_app(service, engine, telling)

        def end_what_goes_on() -> None:
            service.hub.close()
            app.state.previews.close()

        config = uvicorn.Config(
            Hot(service, Bounded(app)),
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
        server = _Server(config, ready, end_what_goes_on)
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
