"""``serve --workers N``: a supervisor that binds the sockets, and N forked workers that serve.

The supervisor forks before anything runs in it. Each worker has its own socket at the same
address, so that the kernel distributes the connections. The supervisor keeps the sockets open:
connections that wait at the socket of a killed worker are accepted by its replacement. The clock,
the replay guard and the counters are made before the fork, because all workers share them.

uvicorn's supervisor is not used: its workers answer its pings from a thread, so a worker whose
event loop hangs counts as alive for ever. Here each event loop writes a heartbeat to shared memory
every second, and a worker without one for ``LIMITS.worker_silence`` (60 s) is replaced.
"""

import asyncio
import contextlib
import logging
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from beacon_ota.errors import ReachError
from beacon_ota.orchestrator.clock import Clock
from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.core.replay import REPLAYS_FILE, ReplayGuard
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.core.shared_counters import SharedCounters
from beacon_ota.orchestrator.core.stop_board import StopBoard
from beacon_ota.orchestrator.db.connection import connect, storage_errors
from beacon_ota.orchestrator.db.schema_version import migrate_if_due
from beacon_ota.orchestrator.db.tables import beacons
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.server.first_token import FirstToken
from beacon_ota.orchestrator.server.listen import ListenOptions, bind_socket, url_of
from beacon_ota.orchestrator.server.run import run_service
from beacon_ota.orchestrator.settings import Settings

log = logging.getLogger("beacon_ota.orchestrator")

_READY = b"r"
_EARLY_EXIT_S = 5.0  # a worker that ends sooner is started again with a delay
_START_TIMEOUT_S = 120.0  # until the first heartbeat
_POLL_INTERVAL_S = 0.25  # between two checks of the workers
_HEARTBEAT_S = 1.0


class Heartbeats:
    """The time of each worker's last heartbeat, in shared memory."""

    _STAMP = struct.Struct("@d")  # seconds of the monotonic clock, one aligned store

    def __init__(self, places: int):
        self._map = mmap.mmap(-1, places * self._STAMP.size)

    def beat(self, place: int) -> None:
        """Record that the event loop of a worker turns."""
        self._STAMP.pack_into(self._map, place * self._STAMP.size, time.monotonic())

    def last(self, place: int) -> float:
        """Return the monotonic time of a worker's last heartbeat, 0.0 before the first."""
        return self._STAMP.unpack_from(self._map, place * self._STAMP.size)[0]

    def reset(self, place: int) -> None:
        """Forget the heartbeats of a place, for its next worker."""
        self._STAMP.pack_into(self._map, place * self._STAMP.size, 0.0)


class Supervisor:
    """Holds everything that workers inherit, starts them, and replaces those that end or hang.

    Attributes:
        parent_alive_pipe: only the supervisor has its writing end, so that it closes with the
            supervisor; its workers stop then.
        ready_pipe: each worker writes one byte when it listens.
        alive: process id -> (place, monotonic time of its start).
        stop_by: monotonic time at which stopping workers are killed.
    """

    hold: int | None = None  # file descriptor of the data folder's lock; workers close it

    def __init__(self, settings: Settings, listen: ListenOptions, hold: int | None = None):
        self.settings, self.listen, self.hold = settings, listen, hold
        self.clock = Clock(listen.time_scale)
        engine = connect(settings.database or "")
        try:
            migrate_if_due(engine)
            with storage_errors(), engine.begin() as conn:
                registered = beacons.count(conn)
        finally:
            engine.dispose()
        self.tallies = SharedCounters(settings.workers)
        self.beats = Heartbeats(settings.workers)
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.replays = ReplayGuard(
            settings.data / REPLAYS_FILE, self.clock.now(), fresh=not registered, shared=True
        )
        self.stops = StopBoard(settings.data, settings.workers)
        # Fails if another orchestrator listens here; SO_REUSEPORT would share the port silently.
        bind_socket(listen).close()
        first = bind_socket(listen, many=True)
        port = first.getsockname()[1]
        self.sockets = [first] + [
            bind_socket(listen, port=port, many=True) for _ in range(settings.workers - 1)
        ]
        for sock in self.sockets:
            sock.listen(LIMITS.backlog)
        self.parent_alive_pipe = os.pipe()
        self.ready_pipe = os.pipe()
        self.alive: dict[int, tuple[int, float]] = {}
        self.stopping = False
        self.stop_by = 0.0  # monotonic time

    def run(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop_workers)
        signal.signal(signal.SIGHUP, self._reload_workers)
        for index in range(self.settings.workers):
            self._fork_worker(index)
        try:
            self._wait_until_ready()
            if not self.stopping:
                self._announce_ready(url_of(self.listen, self.sockets[0]))
            self._replace_ended()
        finally:
            self._stop_workers()
            self._replace_ended()

    def _replace_ended(self) -> None:
        """Replace workers that end or hang; return when there are none left."""
        while self.alive:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.alive.clear()
                return
            if pid:
                self._reap(pid, status)
                continue
            self._kill_hung(time.monotonic())
            time.sleep(_POLL_INTERVAL_S)  # resumes after a signal (PEP 475)

    def _kill_hung(self, now: float) -> None:
        for pid, (index, born) in list(self.alive.items()):
            if self.stopping:
                hangs = now > self.stop_by
            else:
                last = self.beats.last(index)
                hangs = now - (last or born) > (LIMITS.worker_silence if last else _START_TIMEOUT_S)
            if hangs:
                log.error("worker %d does not answer any more and is killed", pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _announce_ready(self, url: str) -> None:
        """Announce the URL, and make the first admin token."""
        first = FirstToken(self.listen.token_file)
        engine = connect(self.settings.database or "")
        try:
            with storage_errors(), engine.begin() as conn:
                first.create(conn, self.clock.now())
            if not first.show(lambda token: self.listen.on_ready(url, token)):
                with storage_errors(), engine.begin() as conn:
                    first.take_back(conn)
        finally:
            engine.dispose()

    def _reload_workers(self, *_signal: object) -> None:
        """Make every worker read its TLS certificate again."""
        for pid in list(self.alive):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)

    def _stop_workers(self, *_signal: object) -> None:
        if not self.stopping:
            self.stop_by = time.monotonic() + LIMITS.worker_stop
        self.stopping = True
        for pid in list(self.alive):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _wait_until_ready(self) -> None:
        waiting = self.settings.workers
        end = time.monotonic() + _START_TIMEOUT_S
        while waiting and not self.stopping:
            there, _, _ = select.select([self.ready_pipe[0]], [], [], 0.1)
            if there:
                waiting -= len(os.read(self.ready_pipe[0], 64))
            pid, _status = os.waitpid(-1, os.WNOHANG)
            if pid or time.monotonic() > end:
                self.alive.pop(pid, None)
                raise ReachError("worker_failed", "a worker did not start; the log says why")

    def _reap(self, pid: int, status: int) -> None:
        """Take an ended worker out of the table, and start another in its place."""
        index, born = self.alive.pop(pid, (-1, 0.0))
        if index < 0 or self.stopping:
            return
        log.error("worker %d ended (status %d); another takes its place", pid, status)
        self.beats.reset(index)
        if time.monotonic() - born < _EARLY_EXIT_S:
            time.sleep(1.0)  # resumes after a signal (PEP 475); `stopping` is checked below
        if not self.stopping:
            self._fork_worker(index)

    def _fork_worker(self, index: int) -> None:
        """Start a worker: the child serves and exits, the parent enters it in its table."""
        sys.stdout.flush()
        sys.stderr.flush()
        with signals_blocked():
            pid = os.fork()
            if pid:
                self.alive[pid] = (index, time.monotonic())
                if self.stopping:  # the stop came just before the fork
                    os.kill(pid, signal.SIGTERM)
                return
            # Reset before signals are unblocked: the supervisor's handlers would swallow a request
            # to stop this worker.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it listens
        code = 1
        try:
            os.setpgid(0, 0)  # Ctrl-C reaches only the supervisor, which forwards it
            os.close(self.parent_alive_pipe[1])
            if self.hold is not None:
                os.close(self.hold)
            self._run_worker(index)
            code = 0
        except BaseException:
            log.exception("worker %d failed", os.getpid())
        finally:
            os._exit(code)

    def _run_worker(self, index: int) -> None:
        import uvloop

        sock = self.sockets[index]
        for other in self.sockets:
            if other is not sock:
                other.close()

        def report_ready(_url: str, _token: str | None) -> None:
            with contextlib.suppress(OSError):  # the supervisor is gone or has stopped counting
                os.write(self.ready_pipe[1], _READY)

        listen = replace(
            self.listen,
            announce=self.listen.announce and index == 0,
            first_token=False,
            on_ready=report_ready,
            stop=asyncio.Event(),
        )
        uvloop.run(self._serve_worker(index, sock, listen))

    async def _serve_worker(self, index: int, sock: socket.socket, listen: ListenOptions) -> None:
        def orphaned() -> None:
            loop.remove_reader(self.parent_alive_pipe[0])
            listen.stop.set()

        loop = asyncio.get_running_loop()
        loop.add_reader(self.parent_alive_pipe[0], orphaned)
        self.stops.adopt_place(index)
        service = Service(self.settings, self.clock, self.replays, self.stops)
        service.resume_counts(self.tallies, index)
        service.run_in_background(self._send_heartbeats(index))
        await run_service(service, Engine(service), sock, listen)

    async def _send_heartbeats(self, index: int) -> None:
        while True:
            self.beats.beat(index)
            await asyncio.sleep(_HEARTBEAT_S)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block signals until a new worker is entered in the supervisor's table."""
    numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def run_workers(settings: Settings, listen: ListenOptions, hold: int | None = None) -> None:
    """Run several workers until interrupted; a worker that dies is replaced.

    Args:
        hold: file descriptor of the lock on the data folder, kept by the supervisor alone.
    """
    Supervisor(settings, listen, hold).run()
