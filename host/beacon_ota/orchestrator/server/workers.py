"""``serve --workers N``: one parent that binds and watches, N processes that serve.

The parent forks before anything runs in it; each worker has a socket of its own at the same
address, so that the kernel shares the connections out. The parent keeps the sockets open: what
waits at the one of a worker that was killed is taken up by the next in its place. What must be
the same for all, the clock and what is remembered against replays, is made before the fork.

A worker that hangs is as good as dead: its event loop shows in shared memory that it turns, and
one that stands still is killed.
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
from beacon_ota.orchestrator.core.replay import FILE, ReplayGuard
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.core.shared_counters import SharedTallies
from beacon_ota.orchestrator.core.stops import StopBoard
from beacon_ota.orchestrator.db.database import connect, migrate, storage_errors
from beacon_ota.orchestrator.db.tables import beacons
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.server.first_token import FirstToken
from beacon_ota.orchestrator.server.listen import ListenOptions, bind_socket, url_of
from beacon_ota.orchestrator.server.run import run_service
from beacon_ota.orchestrator.settings import Settings

log = logging.getLogger("beacon_ota.orchestrator")

_READY = b"r"
_EARLY_EXIT_S = 5.0  # a worker that ends within this is not started again at once
_START_TIMEOUT_S = 120.0  # to the first sign of life
_POLL_INTERVAL_S = 0.25  # between two looks at the workers
_HEARTBEAT_S = 1.0


class Heartbeats:
    """When each worker's event loop last turned, in memory that all share."""

    _STAMP = struct.Struct("@d")  # seconds of the monotonic clock, one aligned store

    def __init__(self, places: int):
        self._map = mmap.mmap(-1, places * self._STAMP.size)

    def beat(self, place: int) -> None:
        """Show that the loop turns."""
        self._STAMP.pack_into(self._map, place * self._STAMP.size, time.monotonic())

    def last(self, place: int) -> float:
        """Return when it last did; 0.0 when it has not yet."""
        return self._STAMP.unpack_from(self._map, place * self._STAMP.size)[0]

    def reset(self, place: int) -> None:
        """Another process takes the place."""
        self._STAMP.pack_into(self._map, place * self._STAMP.size, 0.0)


class Supervisor:
    """What the workers inherit, and who of them is alive."""

    hold: int | None = None  # the data folder's lock; not the workers'

    def __init__(self, settings: Settings, listen: ListenOptions, hold: int | None = None):
        self.settings, self.listen, self.hold = settings, listen, hold
        self.clock = Clock(listen.time_scale)
        engine = connect(settings.database or "")
        try:
            migrate(engine)
            with storage_errors(), engine.begin() as conn:
                registered = beacons.count(conn)
        finally:
            engine.dispose()
        self.tallies = SharedTallies(settings.workers)
        self.beats = Heartbeats(settings.workers)
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.replays = ReplayGuard(
            settings.data / FILE, self.clock.now(), fresh=not registered, shared=True
        )
        self.stops = StopBoard(settings.data, settings.workers)
        bind_socket(listen).close()  # else two that were started twice would share, unknowingly
        first = bind_socket(listen, many=True)
        port = first.getsockname()[1]
        self.sockets = [first] + [
            bind_socket(listen, port=port, many=True) for _ in range(settings.workers - 1)
        ]
        for sock in self.sockets:
            sock.listen(2048)
        self.parent_alive_pipe = (
            os.pipe()
        )  # its writing end is the parent's alone: it closes with the parent
        self.ready_pipe = os.pipe()
        self.alive: dict[int, tuple[int, float]] = {}
        self.stopping = False
        self.stop_by = 0.0  # of the monotonic clock

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
        """Replace workers that end or hang; return when there are none any more."""
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
            time.sleep(_POLL_INTERVAL_S)  # goes on after a signal

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
        """Say that we listen; the first admin token is made when that worked."""
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
        """Have every worker read its TLS certificate again."""
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
        index, born = self.alive.pop(pid, (-1, 0.0))
        if index < 0 or self.stopping:
            return
        log.error("worker %d ended (status %d); another takes its place", pid, status)
        self.beats.reset(index)
        if time.monotonic() - born < _EARLY_EXIT_S:
            time.sleep(1.0)  # a signal interrupts neither this nor what follows from it
        if not self.stopping:
            self._fork_worker(index)

    def _fork_worker(self, index: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        with signals_blocked():
            pid = os.fork()
            if pid:
                self.alive[pid] = (index, time.monotonic())
                if self.stopping:  # told just before this one was made
                    os.kill(pid, signal.SIGTERM)
                return
            # Before signals come through again: what the parent has for them would take a request
            # to stop, and serve on.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it listens
        code = 1
        try:
            os.setpgid(0, 0)  # an interrupt at the terminal is the parent's to hand on
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
            with contextlib.suppress(OSError):  # nobody counts any more
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
        self.stops.take_place(index)
        service = Service(self.settings, self.clock, self.replays, self.stops)
        service.take_place(self.tallies, index)
        service.run(self._send_heartbeats(index))
        await run_service(service, Engine(service), sock, listen)

    async def _send_heartbeats(self, index: int) -> None:
        while True:
            self.beats.beat(index)
            await asyncio.sleep(_HEARTBEAT_S)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Let no signal come between a fork and its being noted."""
    numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def run_workers(settings: Settings, listen: ListenOptions, hold: int | None = None) -> None:
    """Run several workers until interrupted; one that dies is replaced.

    Args:
        hold: a file descriptor that locks the data folder, for as long as the parent lives.
    """
    Supervisor(settings, listen, hold).run()
