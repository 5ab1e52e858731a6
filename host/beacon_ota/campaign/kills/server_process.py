"""Runs the orchestrator as a process that a campaign can kill."""

import contextlib
import os
import signal
import sqlite3
import sys
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from beacon_ota import lifeline
from beacon_ota.campaign.rig.orchestrator import empty_database
from beacon_ota.client import Client
from beacon_ota.errors import ReachError

START = 60.0  # seconds
# Imports take most of the second of a start: processes are forked from one that has them.
_PRELOAD = ["beacon_ota.campaign.kills.server_process", "beacon_ota.orchestrator.api.app"]


def _run_server(
    data: Path, token_file: Path, log_file: Path, ready: Connection, more: dict[str, Any]
) -> None:
    """Run ``beacon-ota serve --insecure --port 0`` with the settings ``more``."""
    from beacon_ota.orchestrator.server.listen import ListenOptions
    from beacon_ota.orchestrator.server.start import run_orchestrator
    from beacon_ota.orchestrator.settings import Settings

    lifeline.hold_on_to_parent(signal.SIGKILL)
    log = os.open(log_file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.dup2(log, sys.stderr.fileno())
    settings = Settings(data, 1.0, insecure=True, **more)
    run_orchestrator(
        settings,
        ListenOptions(port=0, token_file=token_file, on_ready=lambda url, _: ready.send(url)),
    )


class ServerProcess:
    """``beacon-ota serve`` over a data folder, on a free port that changes with every start.

    Args:
        token_file: of another server on the same database.
        settings: of the service, such as ``database`` and ``images``.
    """

    def __init__(self, folder: Path, token_file: Path | None = None, **settings: Any):
        self.data = folder / "data"
        self.settings = settings
        self.token_file = token_file or folder / "token"
        self.log_file = folder / "log"
        self.url = self.token = ""
        self.process: BaseProcess | None = None
        if not self.data.exists():
            self.data.mkdir(parents=True)
        if "database" not in settings and not (self.data / "beacon-ota.db").exists():
            (self.data / "beacon-ota.db").write_bytes(empty_database())

    def start(self) -> None:
        """Start the server (ReachError ``server_start``)."""
        context = get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        ready, told = context.Pipe(duplex=False)
        self.process = context.Process(
            target=_run_server,
            args=(self.data, self.token_file, self.log_file, told, self.settings),
            daemon=True,
        )
        self.process.start()
        told.close()
        with ready, contextlib.suppress(EOFError):
            self.url = ready.recv() if ready.poll(START) else ""
        if not self.url:
            self.kill()
            raise ReachError(
                "server_start", "the orchestrator did not start", found=self.log_tail()
            )
        self.token = self.token_file.read_text().strip()

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None
            self.url = ""

    def stop(self) -> int:
        """Stop the server gracefully; return its exit code."""
        process = self.process
        if process is None or process.pid is None:
            return 0
        os.kill(process.pid, signal.SIGINT)
        process.join(30)
        code = process.exitcode
        self.kill()
        return -1 if code is None else code

    def admin_client(self) -> Client:
        """Return an administrator's client."""
        return Client(self.url, self.token)

    def log_tail(self) -> str:
        """Return the last 4,000 characters of its log."""
        return self.log_file.read_text()[-4000:] if self.log_file.exists() else ""

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the process in bytes."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def query_rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of an SQL query on its SQLite file."""
        database = sqlite3.connect(
            f"file:{self.data / 'beacon-ota.db'}?mode=ro", uri=True, timeout=30
        )
        try:
            return database.execute(query).fetchall()
        finally:
            database.close()

    def __enter__(self) -> "ServerProcess":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def wait_until(condition, timeout: float, what: str) -> Any:
    """Wait for a condition and return its value (ReachError ``not_in_time``)."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > end:
            raise ReachError("not_in_time", f"not within {timeout:g} s: {what}")
        time.sleep(0.05)
    return found
