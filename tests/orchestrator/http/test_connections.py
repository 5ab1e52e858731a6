"""Which connections stay when there are too many: who is silent locks nobody out."""

import time
from dataclasses import dataclass
from itertools import count

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from tests.orchestrator.raw import Raw
from tests.orchestrator.world import Local

connections = pytest.importorskip("beacon_ota.orchestrator.http.connections")
LIMITS = connections.LIMITS


@dataclass(eq=False)
class Fake:
    address: str
    idle: bool = True
    dropped: bool = False

    def drop(self) -> None:
        self.dropped = True


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.sampled_from(["10.0.0.1", "10.0.0.2", "fe80::1%eth0"])),
        st.tuples(st.just("silent flood"), st.sampled_from(["10.0.0.1", "2001:db8::1"])),
        st.tuples(st.just("prove"), st.sampled_from(["beacon", "administrator"])),
        st.tuples(st.just("work"), st.booleans()),
        st.tuples(st.just("close"), st.just("")),
    ),
    max_size=60,
)


@given(STEPS, st.integers(16, 200))
def test_the_table_is_bounded_and_administrators_stay(steps, capacity):
    table = connections.ConnectionTable(capacity)
    there: list[Fake] = []
    administrators: list[Fake] = []
    pick = count()
    for what, how in steps:
        there = [one for one in there if not one.dropped]
        if what in ("open", "silent flood"):
            for _ in range(1 if what == "open" else 150):
                new = Fake(str(how))
                if table.admit(new):
                    there.append(new)
                else:  # nothing idle, nothing unproven: only then
                    assert new.dropped and len(table) == capacity
        elif there:
            one = there[next(pick) * 7 % len(there)]
            if what == "prove":
                if table.mark_proven(one, str(how)) and how == "administrator":
                    administrators.append(one)
            elif what == "work":
                one.idle = bool(how)
            else:
                table.remove(one)
                there.remove(one)
                administrators = [other for other in administrators if other is not one]
        assert len(table) <= capacity
        assert not any(one.dropped for one in administrators)
    alive = [one for one in there if not one.dropped]
    assert len(alive) == len(table)
    for one in alive:
        table.remove(one)
        table.remove(one)
    assert len(table) == 0 and not table._by_address


def test_beacons_leave_a_reserve():
    table = connections.ConnectionTable(100)
    fleet = [Fake(f"10.0.{n}.1", idle=False) for n in range(100)]
    kept = [table.admit(one) and table.mark_proven(one, "beacon") for one in fleet]
    assert kept.count(True) == 75 and not any(one.dropped for one in fleet[:75])
    admin = Fake("10.9.9.9")
    assert table.admit(admin) and table.mark_proven(admin, "administrator")


def test_a_silent_address_displaces_its_own():
    table = connections.ConnectionTable(10_000)
    other = Fake("10.0.0.9")
    assert table.admit(other)
    most = LIMITS.connections_unproven_per_address
    silent = [Fake("10.0.0.1") for _ in range(3 * most)]
    assert all(table.admit(one) for one in silent)
    assert len(table) == most + 1 and not other.dropped
    assert [one.dropped for one in silent] == [True] * 2 * most + [False] * most
    proven = Fake("10.0.0.1")  # a building behind one address: who is known does not count
    assert table.admit(proven) and table.mark_proven(proven, "beacon")
    assert table.admit(Fake("10.0.0.1")) and not proven.dropped


@pytest.mark.parametrize(
    "address, network",
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a:b", "a:b"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(address, network):
    assert connections.network_of(address) == network


def test_room_fits_into_the_open_files(monkeypatch):
    for soft in (32, 100, 256, 1024, 20_000, 1_000_000):
        monkeypatch.setattr(connections.resource, "getrlimit", lambda _what, n=soft: (n, n))
        capacity, backlog = connections.connection_capacity()
        assert 16 <= capacity <= LIMITS.connections and 16 <= backlog <= LIMITS.backlog
        assert soft < 200 or capacity + backlog + LIMITS.own_files <= soft


@pytest.fixture
def small(tmp_path, monkeypatch):
    """An orchestrator with room for 60 connections."""
    monkeypatch.setattr("beacon_ota.orchestrator.server.run.connection_capacity", lambda: (60, 64))
    with Local(tmp_path / "data") as local:
        yield local


@pytest.mark.parametrize("said", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\nX: "])
def test_silent_connections_refuse_nobody(small, said):
    (beacon,) = small.beacons(1)
    assert beacon.poll().status == 204
    place = beacon._connection.sock.getsockname()
    admin = requests.Session()
    admin.headers["Authorization"] = f"Bearer {small.token}"
    assert admin.get(small.url + "/api/beacons", timeout=60).status_code == 200
    silent = [Raw(small).send(said) for _ in range(300)]
    try:
        began = time.monotonic()
        assert requests.get(small.url + "/health", timeout=60).status_code == 200
        assert beacon.poll().status == 204 and beacon._connection.sock.getsockname() == place
        assert admin.get(small.url + "/api/beacons", timeout=60).status_code == 200
        (other,) = small.beacons(1, prefix="other")
        assert other.poll().status == 204
        assert time.monotonic() - began < LIMITS.head_time  # nobody had to wait for them to end
    finally:
        for raw in silent:
            raw.close()


def test_beacons_that_stay_connected_leave_room_for_an_administrator(small):
    fleet = small.beacons(100)
    assert all(beacon.poll().status == 204 for beacon in fleet)
    assert small.admin().list_tokens()
    assert all(beacon.poll().status == 204 for beacon in fleet)
