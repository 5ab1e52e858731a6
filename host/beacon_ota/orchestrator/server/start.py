"""Starts the orchestrator: checks the settings, prepares the process, serves in one or several."""

import asyncio
import contextlib
import resource
import signal
import sys
import threading

from beacon_ota.errors import UsageError
from beacon_ota.malloc import limit_to_one_arena
from beacon_ota.orchestrator import folder
from beacon_ota.orchestrator.clock import Clock
from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.connection import is_shared
from beacon_ota.orchestrator.server import tls
from beacon_ota.orchestrator.server.listen import ListenOptions, bind_socket
from beacon_ota.orchestrator.server.run import run_service
from beacon_ota.orchestrator.settings import Settings


def run_orchestrator(settings: Settings, listen: ListenOptions) -> None:
    """Serve until interrupted.

    Raises:
        ReachError: ``address_in_use``, ``address_unusable``, ``worker_failed``.
        UsageError: ``keys_missing`` for a secure fleet without trusted keys; ``workers_sqlite``,
            ``mirror_database``; those of ``tls.load_tls_context`` and ``FirstToken.create``.
    """
    if settings.workers > 1 and not is_shared(settings.database or "sqlite"):
        raise UsageError(
            "workers_sqlite",
            "SQLite serves one process; several workers need PostgreSQL",
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
    if listen.tls_cert is not None and listen.tls_key is not None:
        # Raises before a database or a token is made.
        tls.load_tls_context(listen.tls_cert, listen.tls_key)
    if threading.current_thread() is threading.main_thread():
        # Ignored until the server listens; from then on SIGHUP reloads the certificate.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # The writer thread releases the GIL at every statement. While requests keep the event loop
    # busy, it waits this long (seconds) for the GIL each time.
    sys.setswitchinterval(0.0005)
    limit_to_one_arena()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder.make_folder(settings.data)
    with folder.lock_folder(settings.data) as hold:
        if settings.workers > 1:
            from beacon_ota.orchestrator.server.workers import run_workers

            run_workers(settings, listen, hold)
            return
        work = _run_single_process(settings, listen)
        if sys.platform == "win32":
            asyncio.run(work)
        else:
            import uvloop

            uvloop.run(work)


async def _run_single_process(settings: Settings, listen: ListenOptions) -> None:
    sock = bind_socket(listen)
    service = Service(settings, Clock(listen.time_scale))
    engine = Engine(service)
    if settings.upstream:
        from beacon_ota.orchestrator.mirror.engine import MirrorEngine  # costs 5 MB of memory

        engine = MirrorEngine(service)
    await run_service(service, engine, sock, listen)
