"""Starts the orchestrator: one process, or several workers, set up as a server should be."""

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
from beacon_ota.orchestrator.db.database import is_shared
from beacon_ota.orchestrator.server import tls
from beacon_ota.orchestrator.server.listen import ListenOptions, bind_socket
from beacon_ota.orchestrator.server.run import run_service
from beacon_ota.orchestrator.settings import Settings


def run_orchestrator(settings: Settings, listen: ListenOptions) -> None:
    """Run until interrupted.

    Raises:
        ReachError: ``address_in_use`` and the like.
        UsageError: ``keys_missing`` for a secure fleet that trusts no key.
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
        tls.load_tls_context(
            listen.tls_cert, listen.tls_key
        )  # before anything is made that would be lost
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # later: read the certificate again
    # The writer gives the interpreter's lock away at every statement, and would wait for it this
    # long each time while requests keep the event loop busy.
    sys.setswitchinterval(0.0005)
    limit_to_one_arena()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder.make(settings.data)
    with folder.held(settings.data) as hold:
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
        from beacon_ota.orchestrator.mirror.engine import LocalEngine  # with what it takes: 5 MB

        engine = LocalEngine(service)
    await run_service(service, engine, sock, listen)
