"""Runs the orchestrator on a bound socket: uvicorn, the tasks beside it, the first token."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import uvicorn

from beacon_ota.orchestrator import dashboard
from beacon_ota.orchestrator.api.app import create_app
from beacon_ota.orchestrator.beacon_api.app import Hot
from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.http.body_limit import Bounded
from beacon_ota.orchestrator.http.connections import Connections, room
from beacon_ota.orchestrator.http.forwarded import Forwarded
from beacon_ota.orchestrator.http.head_method import HeadMethod
from beacon_ota.orchestrator.http.protocol import Protocol
from beacon_ota.orchestrator.http.secure_headers import SecureHeaders
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.mirror.watch import MirrorWatch
from beacon_ota.orchestrator.server.cluster import Cluster
from beacon_ota.orchestrator.server.first_token import FirstToken
from beacon_ota.orchestrator.server.listen import Listen, url_of
from beacon_ota.orchestrator.server.mdns import announced
from beacon_ota.orchestrator.server.tls import Certificate, Door
from beacon_ota.orchestrator.webhooks.dispatcher import Webhooks


class _Server(uvicorn.Server):
    """uvicorn's, that says when it listens, and lets us clean up after a signal."""

    def __init__(
        self,
        config: uvicorn.Config,
        ready: asyncio.Event,
        stopping: Callable[[], None],
        certificate: Certificate | None,
    ):
        super().__init__(config)
        self._ready = ready
        self._stopping = stopping
        self._certificate = certificate

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            yield  # whoever runs us in a thread stops us by hand
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._exit)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            loop.remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _reload(self) -> None:
        """Read the certificate again; without one there is nothing that a SIGHUP could mean."""
        if self._certificate is not None:
            self._certificate.reload()

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
    from beacon_ota.orchestrator.mirror.engine import LocalEngine
    from beacon_ota.orchestrator.mirror.sync import Mirror

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
        else:
            MirrorWatch(service).start()
        certificate = _certificate(listen)
        capacity, backlog = room()
        table = Connections(capacity, listen.proxies)
        app = create_app(service, engine, telling)
        app.router.routes.extend(dashboard.routes())

        def end_what_goes_on() -> None:
            service.hub.close()
            app.state.previews.close()

        config = uvicorn.Config(
            Forwarded(listen.proxies, Hot(service, SecureHeaders(HeadMethod(Bounded(app))))),
            http=partial(_connection, table, certificate),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            log_config=None,
            timeout_keep_alive=int(LIMITS.keep_alive),
            timeout_graceful_shutdown=5,
            backlog=backlog,
        )
        ready = asyncio.Event()
        server = _Server(config, ready, end_what_goes_on, certificate)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        try:
            if ready.is_set():
                async with announced(listen, sock):
                    await _greet(service, listen, url_of(listen, sock))
                    stopping = asyncio.create_task(listen.stop.wait())
                    await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
                    stopping.cancel()
        finally:
            server.stop()
            await serving
    finally:
        await service.stop()


async def _greet(service: Service, listen: Listen, url: str) -> None:
    """Say that we listen; the first admin token is made when there is somebody to show it to."""
    first = FirstToken(listen.token_file)
    if listen.first_token:
        await service.db.write(first.make, service.clock.now())
    if not first.show(lambda token: listen.on_ready(url, token)):
        await service.db.write(first.take_back)


def _certificate(listen: Listen) -> Certificate | None:
    if listen.tls_cert is None or listen.tls_key is None:
        return None
    return Certificate(listen.tls_cert, listen.tls_key)


def _connection(table: Connections, certificate: Certificate | None, **named: Any) -> Any:
    """Return what handles a new connection: HTTP, or the handshake before it."""
    if certificate is None:
        return Protocol(table=table, **named)
    return Door(certificate, table, partial(Protocol, table=table, admitted=True, **named))
