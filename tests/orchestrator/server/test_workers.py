"""Several workers on one PostgreSQL: what one does the others know, and one may be killed."""

import os
import re
import signal
import threading
import time
from dataclasses import replace

import pytest

from beacon_ota.client import Client
from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.core.service import ServedCounts
from beacon_ota.orchestrator.core.shared_counters import SharedCounters
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.server import workers
from beacon_ota.orchestrator.server.listen import ListenOptions
from beacon_ota.orchestrator.server.start import run_orchestrator
from beacon_ota.orchestrator.server.workers import Heartbeats, Supervisor
from beacon_ota.orchestrator.settings import Settings
from tests.orchestrator.postgres import cluster
from tests.orchestrator.test_counts import EVERYBODY, Life
from tests.orchestrator.world import Local, Server, TestBeacon, beacons, until, upload

DEADLINE_S = 60.0


def test_processes_count_together_and_go_on_where_one_was_killed():
    tallies = SharedCounters(3)
    one, two = ServedCounts(), ServedCounts()
    one.polls["offer"], one.bytes_sent, one.reading = 2, 10, 1
    two.polls["offer"], two.polls["windows"] = 3, 1
    two.downloads["206"] = 4
    tallies.write(0, one.dump())
    tallies.write(1, two.dump())
    for number in range(5):
        one.polls["offer"] = 2 + number
        tallies.write(0, one.dump())
    total = ServedCounts()
    for found in tallies.read_others(2):
        total = total.add(found)
    assert total.polls == {"offer": 9, "windows": 1}
    assert (total.bytes_sent, total.reading, total.downloads) == (10, 1, {"206": 4})
    assert one.dump()["polls"] == {"offer": 6}
    assert ServedCounts().add(tallies.read(0)).dump() == one.dump() and tallies.read(2) == {}


def test_sqlite_has_one_worker(tmp_path):
    with pytest.raises(UsageError) as caught:
        run_orchestrator(
            Settings(tmp_path / "data", insecure=True, workers=2), ListenOptions(port=0)
        )
    assert caught.value.code == "workers_sqlite"


# ---- the parent, with workers that do nothing but what a test wants ----


class Parent(Supervisor):
    """Watches workers that have no orchestrator in them."""

    def __init__(self, work, count: int = 1):
        self.work, self.count = work, count
        self.alive, self.stopping, self.stop_by = {}, False, 0.0
        self.parent_alive_pipe = os.pipe()
        self.beats = Heartbeats(count)

    def _run_worker(self, index: int) -> None:
        self.work(self, index)

    def __enter__(self) -> "Parent":
        self.before = [signal.signal(number, self._stop_workers) for number in STOPPING]
        return self

    def __exit__(self, *_exception: object) -> None:
        for pid in self.alive:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for number, handler in zip(STOPPING, self.before, strict=True):
            signal.signal(number, handler)


STOPPING = (signal.SIGINT, signal.SIGTERM)


def serve_on(_parent, _index) -> None:
    while True:
        signal.pause()


@pytest.mark.parametrize("number", STOPPING)
def test_a_parent_that_is_told_to_stop_while_it_forks_leaves_no_worker(monkeypatch, number):
    fork = os.fork
    for _ in range(40):
        with Parent(serve_on) as parent:

            def told_in_between() -> int:
                pid = fork()
                if pid:
                    os.kill(os.getpid(), number)
                return pid

            monkeypatch.setattr(os, "fork", told_in_between)
            parent._fork_worker(0)
            monkeypatch.setattr(os, "fork", fork)
            parent._replace_ended()
            assert not parent.alive and time.monotonic() < parent.stop_by


def test_a_worker_that_is_made_after_the_parent_was_told_to_stop_is_stopped(monkeypatch):
    fork = os.fork

    def told_before() -> int:
        if not parent.stopping:
            parent._stop_workers()
        return fork()

    with Parent(serve_on) as parent:
        monkeypatch.setattr(os, "fork", told_before)
        parent._fork_worker(0)
        parent._replace_ended()
        assert not parent.alive and time.monotonic() < parent.stop_by


def test_a_worker_that_does_not_stop_is_killed(monkeypatch):
    monkeypatch.setattr(workers, "LIMITS", replace(LIMITS, worker_stop=0.2))
    ready, told = os.pipe()

    def deaf(_parent, _index) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(told, b"x")
        serve_on(None, 0)

    with Parent(deaf) as parent:
        parent._fork_worker(0)
        os.read(ready, 1)
        parent._stop_workers()
        parent._replace_ended()
        assert not parent.alive


def test_a_worker_whose_loop_stands_still_is_replaced(monkeypatch):
    monkeypatch.setattr(workers, "LIMITS", replace(LIMITS, worker_silence=0.5))
    monkeypatch.setattr(workers, "_EARLY_EXIT_S", 0.0)
    made, told = os.pipe()

    def hangs(parent, index) -> None:
        parent.beats.beat(index)
        os.write(told, b"x")
        serve_on(None, 0)

    with Parent(hangs, 2) as parent:
        for index in range(2):
            parent._fork_worker(index)
        first = set(parent.alive)
        seen = 0

        def stop_after_two_more() -> None:
            nonlocal seen
            while seen < 4:
                seen += len(os.read(made, 1))
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=stop_after_two_more).start()
        parent._replace_ended()
        assert seen == 4 and not parent.alive
        assert not any(os.path.exists(f"/proc/{pid}") for pid in first)


def test_a_worker_whose_loop_turns_is_left_alone(monkeypatch):
    beats = Heartbeats(3)
    assert beats.last(1) == 0.0
    before = time.monotonic()
    beats.beat(1)
    assert before <= beats.last(1) <= time.monotonic() and beats.last(0) == beats.last(2) == 0.0
    with Parent(serve_on, 3) as parent:
        parent.beats = beats
        parent._fork_worker(1)
        last = beats.last(1)
        parent._kill_hung(last + LIMITS.worker_silence - 1)
        (pid,) = parent.alive
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        parent._kill_hung(last + LIMITS.worker_silence + 1)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        parent.alive.clear()
    beats.reset(1)
    assert beats.last(1) == 0.0


# ---- two orchestrators on one database, and a clock of ours ----


@pytest.fixture
def pair(tmp_path, caplog):
    url = cluster().create_database()
    with Local(tmp_path / "one", database=url) as one:
        until(lambda: one.service.is_leader, deadline_s=DEADLINE_S)
        (tmp_path / "two.token").write_text(one.token)
        with Local(tmp_path / "two", clock=one.clock, database=url) as two:
            (tmp_path / "two" / "blobs").rmdir()
            (tmp_path / "two" / "blobs").symlink_to(tmp_path / "one" / "blobs")
            yield one, two
    failures = [record for record in caplog.records if record.exc_info]
    assert not failures, caplog.text


def at(beacon: TestBeacon, where: Local) -> TestBeacon:
    """Have a beacon talk to another one."""
    beacon.connect(where.url)
    return beacon


def test_what_one_has_done_the_other_knows(pair, tmp_path):
    one, two = pair
    firmware = upload(one.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]
    (beacon,) = one.beacons(1)
    assert at(beacon, two).poll().status == 204  # registered at the first
    rollout = two.admin().create_rollout(firmware, EVERYBODY)["rollout_id"]
    assert one.admin().get_rollout(rollout)["status"] == "active"
    offer = at(beacon, one).offered()
    assert at(beacon, two).offered()["attempt_id"] == offer["attempt_id"]
    assert at(beacon, two).download(offer).status == 200
    assert at(beacon, one).report("rebooting", offer).status == 200
    beacon.install(offer)
    assert at(beacon, two).report("success", offer, previous_version="1.0.0").status == 200
    again = at(beacon, one).report("success", offer, previous_version="1.0.0")
    assert again.json["recorded"] == "repeated"
    for where in pair:
        assert where.admin().get_rollout(rollout)["results"] == {"success": 1}
    one.step()
    assert two.admin().get_rollout(rollout)["status"] == "completed"
    assert two.admin().verify_audit()["entries"] == one.admin().verify_audit()["entries"]


def opened(side, rollout: str) -> bool:
    """Whether a side has heard that the first stage is open."""
    entry = side.service.fleet.rollouts.get(rollout)
    return entry is not None and entry.state.waves[0].stage >= 0


def test_a_halt_at_one_stops_what_the_other_serves(pair, tmp_path):
    one, two = pair
    firmware = upload(one.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]
    (beacon,) = one.beacons(1)
    rollout = one.admin().create_rollout(firmware, EVERYBODY)["rollout_id"]
    until(lambda: opened(two, rollout))
    offer = at(beacon, two).offered()
    assert beacon.download(offer).status == 200
    one.admin().post_rollout_action(rollout, "halt", "enough")
    until(lambda: two.service.fleet.rollouts[rollout].state.status == "halted")
    assert beacon.report("rebooting", offer).status in (409, 410)
    two.admin().post_rollout_action(rollout, "resume", "go on")
    until(lambda: one.service.fleet.rollouts[rollout].state.status != "halted")
    one.admin().call("DELETE", f"/api/beacons/{beacon.id}")
    until(lambda: beacon.id not in two.service.fleet.beacons)
    assert beacon.call("GET", "/firmwares/latest/esp32c3?version=1.0.0", check=False).status == 401


def test_both_offer_at_once_and_it_is_one_attempt(pair, tmp_path):
    one, two = pair
    firmware = upload(one.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]
    fleet = one.beacons(12)
    rollout = one.admin().create_rollout(firmware, EVERYBODY)["rollout_id"]
    until(lambda: opened(two, rollout))
    twins = [TestBeacon(two.url, beacon.id, beacon.key) for beacon in fleet]
    found: dict[str, set[str]] = {}

    def ask(beacon: TestBeacon) -> None:
        beacon.clock = one.clock.now
        found.setdefault(beacon.id, set()).add(beacon.offered()["attempt_id"])

    threads = [threading.Thread(target=ask, args=(beacon,)) for beacon in [*fleet, *twins]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12 and all(len(ids) == 1 for ids in found.values())
    assert len(list(one.admin().list_attempts(rollout))) == 12


def test_events_of_both_are_followed_at_either_in_one_order(pair):
    one, two = pair
    queue = two.call(_follow(two))
    for number in range(20):
        where = pair[number % 2]
        where.admin().call("POST", "/api/sites", json={"path": f"s{number}"})
    one.loop.call_soon_threadsafe(
        one.service.hub.broadcast_transient, 1.0, "attempt.downloading", "a", {}
    )
    until(lambda: queue.qsize() >= 21, deadline_s=DEADLINE_S)
    told = [queue.get_nowait() for _ in range(21)]
    stored = [event for event in told if event["id"] is not None]
    assert [event["id"] for event in stored] == sorted(event["id"] for event in stored)
    assert [event["subject"] for event in stored] == [f"s{number}" for number in range(20)]


async def _follow(where: Local):
    return where.service.hub.subscribe()


def test_the_lead_passes_on(pair):
    one, two = pair
    assert one.service.is_leader and not two.service.is_leader
    one.stop()
    until(lambda: two.service.is_leader, deadline_s=DEADLINE_S)


# ---- processes ----


def workers_of(parent: int) -> list[int]:
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        return [int(pid) for pid in file.read().split()]


@pytest.mark.timeout(600)
def test_kill_one_of_four_workers_in_the_middle_of_a_rollout(tmp_path):
    """Again and again, the leader too: nothing acknowledged is lost, nothing counted twice."""
    options = (f"--database={cluster().create_database()}", "--workers=4", "-v")
    with Server(tmp_path / "data", *options) as server:
        assert len(workers_of(server.process.pid)) == 4
        fleet = beacons(server, 24)
        firmware = upload(server.admin(), "1.1.0", tmp_path, channel="stable")
        rollout = server.admin().create_rollout(firmware["firmware_id"], EVERYBODY)["rollout_id"]
        up = threading.Event()
        up.set()
        lives = [Life(server, beacon, up) for beacon in fleet]
        try:
            for beacon_thread in lives:
                beacon_thread.start()
            for goal in (3, 8, 14):
                until(lambda n=goal: _done(lives) >= n, deadline_s=DEADLINE_S)
                leader = re.findall(r"worker (\d+) leads", server.log())
                victims = workers_of(server.process.pid)
                promised = {
                    beacon_thread.beacon.id for beacon_thread in lives if beacon_thread.acknowledged
                }
                victim = int(leader[-1]) if leader and int(leader[-1]) in victims else victims[0]
                os.kill(victim, signal.SIGKILL)
                known = {
                    one["beacon_id"]
                    for one in _insist(lambda: list(server.admin().list_attempts(rollout)))
                    if one["result"] == "success"
                }
                assert promised <= known
            until(lambda: _done(lives) == 24, deadline_s=DEADLINE_S)
        finally:
            for beacon_thread in lives:
                beacon_thread.over = True
        until(lambda: len(workers_of(server.process.pid)) == 4, deadline_s=DEADLINE_S)
        rows = _insist(lambda: list(server.admin().list_attempts(rollout)))
        assert sorted(one["beacon_id"] for one in rows) == sorted(one.id for one in fleet)
        assert {one["result"] for one in rows} == {"success"}
        until(
            lambda: _insist(lambda: server.admin().get_rollout(rollout))["status"] == "completed",
            deadline_s=DEADLINE_S,
            what="the next leader to complete it",
        )
        shown = server.admin().get_rollout(rollout)
        assert shown["total"]["healthy"] == 24
        kinds = [one["kind"] for one in shown["transitions"]]
        assert kinds.count("stage_opened") == 1 and kinds.count("completed") == 1
        assert server.admin().verify_audit()["entries"] > 24
        assert server.stop() == 0
        assert "Traceback" not in server.log(), server.log()


def test_a_request_that_one_worker_answered_no_other_answers(tmp_path):
    options = (f"--database={cluster().create_database()}", "--workers=3")
    with Server(tmp_path / "data", *options) as server:
        (beacon,) = beacons(server, 1)
        target = "/firmwares/latest/esp32c3?version=1.0.0"
        header = {"Authorization": beacon.sign("GET", target)}
        answers = []
        for _ in range(24):  # the kernel picks the worker by the connection
            beacon.connect(server.url)
            answers.append(beacon.call("GET", target, headers=header, check=False))
        assert [answer.status for answer in answers] == [204] + [401] * 23
        assert {answer.json["code"] for answer in answers[1:]} == {"nonce_used"}
        for _ in range(4):  # whichever answers, it tells of all; of the others a moment later
            until(lambda: 'refused_total{code="nonce_used"} 23.0' in _metrics(server))
        pids = workers_of(server.process.pid)
        server.process.kill()  # the parent: its workers go with it
        server._gone()
        until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


def _metrics(server: Server) -> str:
    return Client(server.url, server.token).request("GET", "/metrics").text


def _done(lives: list[Life]) -> int:
    return sum(beacon_thread.acknowledged for beacon_thread in lives)


def _insist(work):
    """An answer may be lost with the worker that was about to give it."""
    for _ in range(20):
        try:
            return work()
        except Exception:
            time.sleep(0.1)
    return work()
