"""The replay guard: nothing is accepted twice, and nobody with a right clock is locked out."""

import contextlib
import errno
import fcntl
import os
import secrets
import signal
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beacon_ota.errors import ReachError
from beacon_ota.orchestrator.core import replay
from beacon_ota.orchestrator.core.replay import _SLOTS, _TABLE, _WORD, ReplayGuard, ReplayVerdict
from beacon_ota.orchestrator.http.problems import status_of
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.wire.auth_header import MAX_SKEW
from tests.orchestrator.world import upload

NOW = 1_900_000_000
HOUR = 3600
NEW, USED, SKEWED = ReplayVerdict.NEW, ReplayVerdict.USED, ReplayVerdict.SKEWED


@pytest.fixture
def guard(tmp_path):
    guard = ReplayGuard(tmp_path / "replays", NOW, fresh=True)
    yield guard
    guard.close()


def nonces():
    return (f"{number:016x}" for number in count(1))


# ---- one beacon ----


def test_a_request_is_new_once(guard):
    slot, fresh = guard.slot_for("b1"), nonces()
    one = next(fresh)
    assert slot.accept(one, NOW, NOW) is NEW
    assert slot.accept(one, NOW, NOW) is USED and guard.slot_for("b1").accept(one, NOW, NOW) is USED
    assert slot.accept(next(fresh), NOW, NOW) is NEW
    assert guard.slot_for("b2").accept(one, NOW, NOW) is NEW  # another beacon's


def test_the_clock_s_bounds(guard):
    slot, fresh = guard.slot_for("b1"), nonces()
    for ts, verdict in (
        (NOW - MAX_SKEW - 1, SKEWED),
        (NOW + MAX_SKEW + 1, SKEWED),
        (0, SKEWED),
        (99_999_999_999, SKEWED),
        (NOW - MAX_SKEW, NEW),
        (NOW + MAX_SKEW, NEW),
    ):
        assert slot.accept(next(fresh), ts, NOW) is verdict, ts
    assert slot.time_to_sign(NOW) == NOW


def test_a_thousand_requests_in_a_second(guard):
    """None is called used that is not; what is too much for the memory is told when to sign."""
    slot, fresh = guard.slot_for("b1"), nonces()
    taken, told = [], 0
    ts = NOW
    for _ in range(1000):
        one = next(fresh)
        verdict = slot.accept(one, ts, NOW)
        if verdict is SKEWED:
            told += 1
            ts = slot.time_to_sign(NOW)
            assert NOW <= ts <= NOW + 64
            verdict = slot.accept(one, ts, NOW)
        assert verdict is NEW
        taken.append((one, ts))
    assert told < 10
    assert not any(slot.accept(one, ts, NOW) is NEW for one, ts in taken)


@pytest.mark.parametrize("period", [1, 5, 60, 300])
def test_a_beacon_that_asks_and_asks_is_never_refused(guard, period):
    slot, fresh = guard.slot_for("b1"), nonces()
    for now in range(NOW, NOW + 2000 * period, period):
        assert slot.accept(next(fresh), now, now) is NEW


@pytest.mark.parametrize("back", [301, HOUR, 3 * HOUR, 86_400, 400 * 86_400])
def test_a_clock_that_is_set_back_keeps_nobody_out(guard, back):
    slot, fresh = guard.slot_for("b1"), nonces()
    taken = []
    for now in range(NOW, NOW + 5 * HOUR, 60):
        taken.append((next(fresh), now))
        assert slot.accept(*taken[-1], now) is NEW
    for now in range(NOW + 5 * HOUR - back, NOW + 5 * HOUR - back + 1800, 60):
        one, ts = next(fresh), now
        if slot.accept(one, ts, now) is SKEWED:
            ts = slot.time_to_sign(now)  # it asked in this very second before
            assert slot.accept(one, ts, now) is NEW and ts - now <= 8
        taken.append((one, ts))
        assert not any(slot.accept(*old, now) is NEW for old in taken)


def test_a_fast_clock_keeps_out_nobody_else_and_itself_not_for_long(guard):
    fresh = nonces()
    rogue, other = guard.slot_for("rogue"), guard.slot_for("other")
    for _ in range(3 * LIMITS.nonces):
        one = next(fresh)
        if rogue.accept(one, NOW + MAX_SKEW, NOW) is SKEWED:
            rogue.accept(one, rogue.time_to_sign(NOW), NOW)
    assert other.accept(next(fresh), NOW, NOW) is NEW
    assert rogue.accept(next(fresh), rogue.time_to_sign(NOW), NOW) is NEW  # its clock put right
    assert rogue.time_to_sign(NOW) - NOW <= 16


def test_a_year_ahead_and_back(guard):
    slot, fresh = guard.slot_for("b1"), nonces()
    for start in (NOW, NOW + 365 * 86_400, NOW + 3600):
        for now in range(start, start + 400 * 5, 5):
            assert slot.accept(next(fresh), now, now) is NEW, (start, now)


# ---- its file ----


def test_no_beacon_carries_the_others_away_with_it(tmp_path):
    """One that asks and asks uses up its seconds; after a reset nobody has to sign far ahead."""
    path, fresh = tmp_path / "replays", nonces()
    guard = ReplayGuard(path, NOW, fresh=True, boot="a")
    greedy, ts = guard.slot_for("greedy"), NOW
    for _ in range(3000):
        if greedy.accept(next(fresh), ts, NOW) is SKEWED:
            ts = greedy.time_to_sign(NOW)
        else:
            ts += 8
    guard.close()
    guard = ReplayGuard(path, NOW + 60, fresh=False, boot="b")
    other = guard.slot_for("other")
    told = other.time_to_sign(NOW + 60)
    assert told <= NOW + 3 * MAX_SKEW
    assert other.accept(next(fresh), told, NOW + 60) is NEW
    later = NOW + 3 * MAX_SKEW  # all that is over then, for the greedy one, too
    assert other.accept(next(fresh), later, later) is NEW
    assert guard.slot_for("greedy").accept(next(fresh), later, later) is NEW
    guard.close()


def test_killed_and_started_again_it_knows_what_it_knew(tmp_path):
    path, fresh = tmp_path / "replays", nonces()
    taken = [(next(fresh), NOW + n) for n in range(2 * LIMITS.nonces)]
    guard = ReplayGuard(path, NOW, fresh=True)
    assert all(guard.slot_for("b1").accept(one, ts, ts) is NEW for one, ts in taken)
    again = ReplayGuard(path, NOW - HOUR, fresh=False)  # nobody closed it
    now = taken[-1][1]
    assert not any(again.slot_for("b1").accept(one, ts, now) is NEW for one, ts in taken)
    assert again.slot_for("b1").accept(next(fresh), now, now) is NEW
    assert again.slot_for("b2").accept(next(fresh), now - 60, now) is NEW


def test_after_a_reset_of_the_machine_what_may_be_lost_is_not_accepted(tmp_path):
    path, fresh = tmp_path / "replays", nonces()
    guard = ReplayGuard(path, NOW, fresh=True, boot="one")
    lost = [(next(fresh), NOW + ahead) for ahead in (0, 5, MAX_SKEW)]
    assert all(guard.slot_for("b1").accept(one, ts, NOW) is NEW for one, ts in lost)
    guard.close()
    again = ReplayGuard(path, NOW, fresh=False, boot="two")
    slot = again.slot_for("b1")
    assert not any(slot.accept(one, ts, NOW) is NEW for one, ts in lost)
    told = slot.time_to_sign(NOW)
    assert slot.accept(next(fresh), told, NOW) is NEW and told - NOW < 2 * MAX_SKEW
    later = NOW + 2 * MAX_SKEW
    assert slot.time_to_sign(later) == later  # by itself, soon


def test_a_file_that_is_gone_or_a_copy_or_no_such_file(tmp_path):
    fresh = nonces()
    for number, damage in enumerate(
        (
            lambda path: path.unlink(),
            lambda path: path.write_bytes(path.read_bytes()[:100]),
            lambda path: path.write_bytes(secrets.token_bytes(5000)),
            lambda path: path.write_bytes(b""),
            _copy,
        )
    ):
        path = tmp_path / str(number)
        guard = ReplayGuard(path, NOW, fresh=True)
        one = next(fresh)
        assert guard.slot_for("b1").accept(one, NOW, NOW) is NEW
        guard.close()
        damage(path)
        again = ReplayGuard(path, NOW + 1, fresh=False)
        slot = again.slot_for("b1")
        assert slot.accept(one, NOW, NOW + 1) is not NEW, number
        told = slot.time_to_sign(NOW + 1)
        assert slot.accept(next(fresh), told, NOW + 1) is NEW and told <= NOW + 62
        again.close()


def _copy(path: Path) -> None:
    data = path.read_bytes()
    path.rename(path.with_suffix(".old"))
    path.write_bytes(data)


def test_a_full_disk_is_named_and_those_who_are_known_go_on(guard, monkeypatch):
    fresh = nonces()
    known = guard.slot_for("b1")
    assert known.accept(next(fresh), NOW, NOW) is NEW

    def full(*_given) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ReachError) as caught:
        for number in range(1000):
            guard.slot_for(f"n{number}").accept(next(fresh), NOW, NOW)
    assert (status_of(caught.value), caught.value.code) == (503, "storage")
    assert known.accept(next(fresh), NOW, NOW) is NEW


def test_memory_is_bounded_per_beacon(tmp_path):
    path, fresh = tmp_path / "replays", nonces()
    guard = ReplayGuard(path, NOW, fresh=True)
    slots = [guard.slot_for(f"b{n}") for n in range(200)]
    for slot in slots:
        slot.accept(next(fresh), NOW, NOW)
    size = path.stat().st_size
    assert size < 200 * 3000
    for now in range(NOW, NOW + 3000):
        slots[now % 3].accept(next(fresh), now, now)
    assert path.stat().st_size == size


# ---- several processes ----


def test_processes_share_it(tmp_path):
    guard = ReplayGuard(tmp_path / "replays", NOW, fresh=True, shared=True)
    wanted = [(f"b{n % 40}", secrets.token_hex(8)) for n in range(200)]
    reading, writing = os.pipe()
    children = []
    for _ in range(3):
        if (pid := os.fork()) == 0:
            taken = sum(guard.slot_for(who).accept(one, NOW, NOW) is NEW for who, one in wanted)
            os.write(writing, bytes([taken]))
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    assert sum(os.read(reading, 16)) == len(wanted)
    assert all(guard.slot_for(who).accept(one, NOW, NOW) is USED for who, one in wanted)


def test_processes_that_make_slots_at_once_make_one_for_each_beacon(tmp_path):
    """A fleet that comes all at once: no slot is another beacon's, and nothing is forgotten."""
    guard = ReplayGuard(tmp_path / "replays", NOW, fresh=True, shared=True)
    names = [[f"{who}{number}" for number in range(3000)] for who in "abc"]
    together = os.pipe()
    children = []
    for mine in names:
        if (pid := os.fork()) == 0:
            os.close(together[1])
            os.read(together[0], 1)  # until all are there
            news = [guard.slot_for(name).accept("11" * 8, NOW, NOW) is NEW for name in mine]
            os._exit(not all(news))
        children.append(pid)
    os.close(together[1])
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    os.close(together[0])
    again = ReplayGuard(tmp_path / "replays", NOW, fresh=True, shared=True)
    for mine in names:
        assert all(again.slot_for(name).accept("11" * 8, NOW, NOW) is USED for name in mine)
    again.close()
    guard.close()


def test_a_slot_is_made_under_a_lock_that_holds_while_the_file_grows(tmp_path, monkeypatch):
    guard = ReplayGuard(tmp_path / "replays", NOW, fresh=True, shared=True)
    pack = _WORD.pack_into
    free = []

    def look(memory, at: int, value: int) -> None:
        """See from another process, at the moment of the change, whether its lock is free."""
        if at == _SLOTS:
            if (pid := os.fork()) == 0:
                with contextlib.suppress(OSError):
                    fcntl.lockf(guard._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _TABLE)
                    os._exit(1)
                os._exit(0)
            free.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        pack(memory, at, value)

    monkeypatch.setattr(
        replay,
        "_WORD",
        SimpleNamespace(pack=_WORD.pack, pack_into=look, unpack_from=_WORD.unpack_from),
    )
    for number in range(150):  # it grows twice
        assert guard.slot_for(f"b{number}").accept("11" * 8, NOW, NOW) is NEW
    assert free == [0] * 150
    guard.close()


def test_a_process_killed_anywhere_leaves_nothing_to_be_accepted_twice(tmp_path):
    """Killed again and again among its changes; what it said is new never is again."""
    path = tmp_path / "replays"
    accepted: set[tuple[str, int]] = set()
    parent = ReplayGuard(path, NOW, fresh=True, shared=True)
    now = NOW
    for round_ in range(12):
        reading, writing = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                slot = parent.slot_for("b1")
                while True:
                    now += 3
                    one = secrets.token_hex(8)
                    if slot.accept(one, now, now) is NEW:
                        os.write(writing, f"{one} {now}\n".encode())
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading, "rb") as lines:
            for _ in range(150 + 40 * round_):  # as many as it takes, however fast it is
                one, ts = lines.readline().split()
                accepted.add((one.decode(), int(ts)))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            for line in lines:
                if line.endswith(b"\n"):
                    one, ts = line.split()
                    accepted.add((one.decode(), int(ts)))
        now = max(ts for _, ts in accepted)
        slot = parent.slot_for("b1")
        assert not any(slot.accept(one, ts, ts) is NEW for one, ts in accepted)
        assert slot.accept(secrets.token_hex(8), now + 3, now + 3) is NEW


# ---- against a model ----

_ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 1), st.integers(-400, 400)),
        st.tuples(st.just("burst"), st.integers(1, 300), st.integers(-5, 5)),
        st.tuples(st.just("wait"), st.integers(0, 900), st.just(0)),
        st.tuples(st.just("jump"), st.integers(-6 * HOUR, 6 * HOUR), st.just(0)),
        st.tuples(st.just("jump"), st.integers(-(10**8), 10**8), st.just(0)),
        st.tuples(st.just("replay"), st.integers(0, 10**6), st.integers(0, 1)),
        st.tuples(st.just("restart"), st.just(0), st.just(0)),
        st.tuples(st.just("reset"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


class Model:
    """Two workers, one clock that anybody may set, and all that was ever accepted."""

    def __init__(self, folder: Path):
        self.path = folder / secrets.token_hex(8)
        self.now = NOW
        self.boots = 0
        self.fresh = nonces()
        self.accepted: list[tuple[str, int]] = []
        self.workers: list[ReplayGuard] = []
        self.start(True)

    def start(self, fresh: bool = False) -> None:
        for worker in self.workers:
            worker.close()
        boot = str(self.boots)
        self.workers = [
            ReplayGuard(self.path, self.now, fresh=fresh, shared=True, boot=boot) for _ in range(2)
        ]

    def use(self, worker: int, nonce: str, ts: int) -> ReplayVerdict:
        verdict = self.workers[worker].slot_for("b1").accept(nonce, ts, self.now)
        if verdict is NEW:
            assert (nonce, ts) not in self.accepted
            self.accepted.append((nonce, ts))
        return verdict

    def ask(self, worker: int, off: int) -> None:
        """A beacon signs by a clock that is off, and once more with the time that it is told."""
        nonce = next(self.fresh)
        if self.use(worker, nonce, max(0, self.now + off)) is SKEWED:
            told = self.workers[worker].slot_for("b1").time_to_sign(self.now)
            assert told >= self.now
            assert self.use(worker, nonce, told) is NEW

    def act(self, what: str, number: int, other: int) -> None:
        if what == "ask":
            self.ask(number, other)
        elif what == "burst":
            for _ in range(number):
                self.ask(number % 2, other)
        elif what in ("wait", "jump"):
            self.now = max(10**9, self.now + number)
        elif what == "replay" and self.accepted:
            assert self.use(other, *self.accepted[number % len(self.accepted)]) is not NEW
        elif what == "restart":
            self.start()
        elif what == "reset":
            self.boots += 1
            self.start()


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(_ACTS)
def test_nothing_is_accepted_twice_and_everybody_is_told_how_to_be(tmp_path, acts):
    model = Model(tmp_path)
    for act in acts:
        model.act(*act)
    model.ask(0, 0)
    for at in {model.now, *(ts for _, ts in model.accepted[-200:])}:  # whenever it is tried
        model.now = at
        for old in model.accepted[-400:]:
            assert model.use(1, *old) is not NEW
    for worker in model.workers:
        worker.close()


# ---- a whole orchestrator ----


def test_a_clock_that_is_set_back_by_hours_locks_no_beacon_out(local):
    (beacon,) = local.beacons(1)
    assert beacon.poll().status == 204
    local.clock.at -= 3 * HOUR
    assert beacon.poll().status == 204
    local.stop()
    local.clock.at -= HOUR
    local.start()
    beacon.connect(local.url)
    assert beacon.poll().status == 204


def test_a_restart_refuses_what_was_accepted_and_nothing_else(local):
    (beacon,) = local.beacons(1)
    target = "/firmwares/latest/esp32c3?version=1.0.0"
    ahead = local.clock.at + 200  # a beacon whose clock is fast
    header = {"Authorization": beacon.sign("GET", target, ts=int(ahead))}
    assert beacon.call("GET", target, headers=header).status == 204
    local.stop()
    local.start()
    beacon.connect(local.url)
    answer = beacon.call("GET", target, headers=header)
    assert (answer.status, answer.json["code"]) == (401, "nonce_used")
    assert beacon.poll().status == 204
    local.clock.at += 200
    answer = beacon.call("GET", target, headers=header)
    assert (answer.status, answer.json["code"]) == (401, "nonce_used")


def test_more_requests_in_a_second_than_are_remembered(local, tmp_path):
    upload(local.admin(), "1.1.0", tmp_path, channel="stable")
    (beacon,) = local.beacons(1)
    codes = set()
    for _ in range(LIMITS.nonces + 5):
        answer = beacon.poll()
        if answer.status == 401:
            codes.add(answer.json["code"])
            told = answer.json["server_time"]
            assert 0 < told - local.clock.at <= 16
            beacon.clock = lambda told=told: told
            assert beacon.poll().status == 204
            beacon.clock = local.clock.now
    assert codes == {"clock_skew"}
