"""Whose word about addresses is believed: that of proxies which are named, and only theirs."""

import asyncio
import http.client
from urllib.parse import urlsplit

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.http.connections import ConnectionTable
from beacon_ota.orchestrator.http.forwarded import ForwardedMiddleware, parse_proxies, read_address
from beacon_ota.orchestrator.limits import LIMITS
from tests.orchestrator.world import Server

PROXIES = parse_proxies("192.0.2.1, 10.0.0.0/8 2001:db8::/64")


def seen(client: str, *headers: tuple[str, str]) -> tuple[str, str]:
    """Return address and scheme of a request as the application sees them."""
    found = {}

    async def app(scope, _receive, _send):
        found.update(scope)

    scope = {
        "type": "http",
        "client": (client, 9),
        "scheme": "http",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
    }
    asyncio.run(ForwardedMiddleware(PROXIES, app)(scope, None, None))  # type: ignore[arg-type]
    return found["client"][0], found["scheme"]


FOR = "X-Forwarded-For"


@pytest.mark.parametrize(
    ("client", "given", "expected"),
    [
        ("192.0.2.1", ["198.51.100.7"], "198.51.100.7"),
        ("203.0.113.5", ["198.51.100.7"], "203.0.113.5"),  # nobody that is trusted
        ("192.0.2.1", ["1.1.1.1, 198.51.100.7"], "198.51.100.7"),  # a stranger's lie before it
        ("192.0.2.1", ["1.1.1.1", "198.51.100.7"], "198.51.100.7"),  # in a header of its own
        ("192.0.2.1", ["198.51.100.7, 10.1.2.3"], "198.51.100.7"),  # two proxies
        ("192.0.2.1", ["10.1.2.3, 10.1.2.4"], "10.1.2.3"),  # all of them
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", [""], "192.0.2.1"),
        ("192.0.2.1", ["unknown"], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7, unknown, 10.0.0.9"], "10.0.0.9"),
        ("192.0.2.1", ["<script>, \xff"], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("192.0.2.1", ["[2001:db8:1::7]:4711"], "2001:db8:1::7"),
        ("192.0.2.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ("::ffff:192.0.2.1", ["198.51.100.7"], "198.51.100.7"),
        ("2001:db8::1", ["2001:db8::2, 2001:db8:9::1"], "2001:db8:9::1"),
        ("192.0.2.1", [", ".join(["9.9.9.9"] + ["10.0.0.1"] * 50)], "10.0.0.1"),
    ],
)
def test_who_a_request_is_from(client, given, expected):
    assert seen(client, *((FOR, one) for one in given))[0] == expected


def test_over_what_it_came():
    assert seen("192.0.2.1", ("X-Forwarded-Proto", "https"))[1] == "https"
    assert seen("192.0.2.1", ("X-Forwarded-Proto", "gopher"))[1] == "http"
    assert seen("203.0.113.5", ("X-Forwarded-Proto", "https"))[1] == "http"


@given(st.text(max_size=200), st.text(max_size=80))
def test_whatever_it_says(text, client):
    found = seen(client, (FOR, text.encode("latin-1", "replace").decode("latin-1")))[0]
    assert found == client or read_address(found) is not None


@pytest.mark.parametrize("text", ["*", "localhost", "10.0.0.1/8", "1.2.3", "::/129", "1.2.3.4;"])
def test_what_is_no_proxy(text):
    with pytest.raises(UsageError) as caught:
        parse_proxies(text)
    assert (caught.value.code, caught.value.found) == ("forwarded_allow_ips", text)


def test_nobody_by_default():
    assert parse_proxies("") == () and parse_proxies(" , ") == ()


class Plain:
    address = "192.0.2.1"
    idle = True
    dropped = False

    def drop(self) -> None:
        self.dropped = True


def test_a_proxy_has_no_limit_by_address():
    for proxies, left in ((PROXIES, 0), ((), 10)):
        table = ConnectionTable(4096, proxies)
        those = [Plain() for _ in range(LIMITS.connections_unproven_per_address + 10)]
        for one in those:
            table.admit(one)
        assert sum(one.dropped for one in those) == left


def wrong_tokens(url: str, source: str, headers: dict[str, str]) -> list[int]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port, timeout=60, source_address=(source, 0)
    )
    found = []
    for _ in range(LIMITS.refusals + 1):
        connection.request(
            "GET", "/firmwares/latest/esp32c3", headers={"Authorization": AUTH, **headers}
        )
        answer = connection.getresponse()
        answer.read()
        found.append(answer.status)
    return found


AUTH = f'Beacon id="nobody", ts="1", nonce="{"0" * 16}", mac="{"0" * 64}"'


def test_what_counts_failures_counts_the_clients(tmp_path):
    """Those of one stranger hold up nobody else behind the same proxy; no stranger names others."""
    with Server(tmp_path / "data", "--forwarded-allow-ips=127.0.0.1") as server:
        from beacon_ota.wire import auth

        global AUTH
        AUTH = auth.build_header("nobody", 1, "0" * 16, "0" * 64)
        first = wrong_tokens(server.url, "127.0.0.1", {FOR: "198.51.100.7"})
        assert first[-1] == 429 and first[0] == 401, first
        other = wrong_tokens(server.url, "127.0.0.1", {FOR: "198.51.100.8"})
        assert other[0] == 401
        # 127.0.0.3 is no proxy: what it says of itself is nothing.
        lied = wrong_tokens(server.url, "127.0.0.3", {FOR: "198.51.100.9"})
        assert lied[-1] == 429
        again = wrong_tokens(server.url, "127.0.0.3", {FOR: "198.51.100.10"})
        assert set(again) == {429}


def test_a_stream_is_not_held_back(server):
    """Every one of them, whatever serves it."""
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {server.token}"
    for path in ("/live", "/api/events"):
        with session.get(server.url + path, stream=True, timeout=60) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-accel-buffering"] == "no"
    assert "x-accel-buffering" not in session.get(server.url + "/health", timeout=60).headers
