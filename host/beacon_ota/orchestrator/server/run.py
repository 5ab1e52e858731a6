"""Serves the orchestrator on a bound socket: uvicorn, background tasks, the first token."""

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
from beacon_ota.orchestrator.beacon_api.app import BeaconApp
from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.http.body_limit import BodySizeLimitMiddleware
from beacon_ota.orchestrator.http.connections import ConnectionTable, connection_capacity
from beacon_ota.orchestrator.http.forwarded import ForwardedMiddleware
from beacon_ota.orchestrator.http.head_method import HeadMethodMiddleware
from beacon_ota.orchestrator.http.prefix import PrefixMiddleware
from beacon_ota.orchestrator.http.protocol import BoundedHttpProtocol
from beacon_ota.orchestrator.http.secure_headers import SecureHeadersMiddleware
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.mirror.watch import MirrorWatch
from beacon_ota.orchestrator.server.cluster import Cluster
from beacon_ota.orchestrator.server.first_token import FirstToken
from beacon_ota.orchestrator.server.listen import ListenOptions, url_of
from beacon_ota.orchestrator.server.mdns import mdns_announcement
from beacon_ota.orchestrator.server.tls import HandshakeProtocol, ReloadableCertificate
from beacon_ota.orchestrator.webhooks.dispatcher import WebhookDispatcher


class _UvicornServer(uvicorn.Server):
    """uvicorn's server, which reports when it listens, and leaves the cleaning up to its caller.

    Args:
        ready: set when the server listens.
        stopping: called before the graceful shutdown, to end streams.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        ready: asyncio.Event,
        stopping: Callable[[], None],
        certificate: ReloadableCertificate | None,
    ):
        super().__init__(config)
        self._ready = ready
        self._stopping = stopping
        self._certificate = certificate

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            yield  # signal handlers need the main thread; the caller stops the server
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_stop_signal)
        loop.add_signal_handler(signal.SIGHUP, self._reload_certificate)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            loop.remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _reload_certificate(self) -> None:
        """Read the certificate again; without TLS, SIGHUP does nothing."""
        if self._certificate is not None:
            self._certificate.reload()

    def _on_stop_signal(self) -> None:
        self.force_exit = self.should_exit  # a second signal ends at once
        self.stop()

    def stop(self) -> None:
        """Accept no new connection, and end the streams."""
        self.should_exit = True
        self._stopping()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready.set()


def _start_mirror(service: Service, engine: Engine, address: str) -> None:
    from beacon_ota.orchestrator.mirror.engine import MirrorEngine
    from beacon_ota.orchestrator.mirror.sync import Mirror

    assert isinstance(engine, MirrorEngine)
    service.mirror = mirror = Mirror(service, engine)
    mirror.address = address
    mirror.start()


async def run_service(
    service: Service, engine: Engine, sock: socket.socket, listen: ListenOptions
) -> None:
    """Start a service, serve it on a bound socket until it is told to stop, and stop it."""
    dispatcher = WebhookDispatcher(service)
    cluster = Cluster(service, engine, dispatcher) if service.shared else None
    if cluster is not None:
        cluster.note_position()
    url = url_of(listen, sock)
    await service.start()
    try:
        engine.start()
        dispatcher.start()
        if cluster is not None:
            cluster.start()
        if service.settings.upstream:
            _start_mirror(service, engine, url)
        else:
            MirrorWatch(service).start()
        certificate = _load_certificate(listen)
        capacity, backlog = connection_capacity()
        table = ConnectionTable(capacity, listen.proxies)
        app = create_app(service, engine, dispatcher)
        app.router.routes.extend(dashboard.dashboard_routes())

        def end_streams() -> None:
            service.hub.close()
            app.state.previews.close()

        config = uvicorn.Config(
            PrefixMiddleware(
                listen.path_prefix,
                listen.proxies,
                ForwardedMiddleware(
                    listen.proxies,
                    BeaconApp(
                        service,
                        SecureHeadersMiddleware(HeadMethodMiddleware(BodySizeLimitMiddleware(app))),
                    ),
                ),
            ),
            http=partial(_make_protocol, table, certificate),  # type: ignore[arg-type]
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
        server = _UvicornServer(config, ready, end_streams, certificate)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        try:
            if ready.is_set() and not server.should_exit:  # told to stop while it started
                async with mdns_announcement(listen, sock):
                    await _announce_ready(service, listen, url)
                    stopping = asyncio.create_task(listen.stop.wait())
                    await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
                    stopping.cancel()
        finally:
            server.stop()
            await serving
    finally:
        await service.stop()


async def _announce_ready(service: Service, listen: ListenOptions, url: str) -> None:
    """Announce the URL; the first admin token is made now, when it can be shown."""
    first = FirstToken(listen.token_file)
    if listen.first_token:
        await service.db.write(first.create, service.clock.now())
    if not first.show(lambda token: listen.on_ready(url, token)):
        await service.db.write(first.take_back)


def _load_certificate(listen: ListenOptions) -> ReloadableCertificate | None:
    if listen.tls_cert is None or listen.tls_key is None:
        return None
    return ReloadableCertificate(listen.tls_cert, listen.tls_key)


def _make_protocol(
    table: ConnectionTable, certificate: ReloadableCertificate | None, **named: Any
) -> Any:
    """Return the protocol of a new connection: HTTP, or the TLS handshake before it."""
    if certificate is None:
        return BoundedHttpProtocol(table=table, **named)
    return HandshakeProtocol(
        certificate, table, partial(BoundedHttpProtocol, table=table, admitted=True, **named)
    )
