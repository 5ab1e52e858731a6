"""Live events end with the right to see them, and no token takes all the places."""

import time
from contextlib import ExitStack, suppress

import pytest
import requests

from tests.dashboard.web import Signed
from tests.orchestrator.raw import Raw
from tests.orchestrator.world import DEADLINE_S, Server

PER_TOKEN = 16


def stream(server, token: str, path: str = "/api/events") -> Raw:
    raw = Raw(server)
    raw.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    assert b" 200 " in raw.read_until(b"retry: 2000"), raw.heard
    return raw


def ends(raw: Raw) -> None:
    """It ends, within seconds by the clock of a machine that is not busy."""
    began = time.monotonic()
    assert raw.read_until(b"\r\n0\r\n\r\n").endswith(b"\r\n0\r\n\r\n")
    assert time.monotonic() - began < DEADLINE_S


@pytest.mark.parametrize("path", ["/api/events", "/live"])
def test_a_revoked_token_follows_nothing_more(server, admin, path):
    made = admin.create_token(f"spy {path}", "viewer")
    with stream(server, made["token"], path) as raw:
        admin.revoke_token(made["id"])
        ends(raw)
        heard = raw.heard
        admin.create_site("secret" + path.replace("/", "-"))
        assert raw.heard == heard


def test_also_while_a_lot_happens(server, admin):
    made = admin.create_token("busy spy", "viewer")
    with stream(server, made["token"]) as raw:
        admin.revoke_token(made["id"])
        raw.sock.settimeout(0.05)
        number, end = 0, time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            number += 1
            admin.create_beacon(f"busy-{number}", "esp32c3")
            with suppress(TimeoutError):
                raw._more()
            if raw.heard.endswith(b"\r\n0\r\n\r\n"):
                return
    raise AssertionError("it went on")


def test_an_expired_token_follows_nothing_more(server, admin):
    made = admin.create_token("short spy", "viewer", days=3 / 86400)
    with stream(server, made["token"]) as raw:
        ends(raw)


def test_a_session_that_is_over_follows_nothing_more(server):
    for path in ("/live", "/api/events"):
        browser = Signed(server.url, server.token)
        cookies = "; ".join(f"{key}={value}" for key, value in browser.http.cookies.items())
        with Raw(server) as raw:
            raw.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nCookie: {cookies}\r\n\r\n".encode())
            assert b" 200 " in raw.read_until(b"retry: 2000")
            form = {"csrf": browser.csrf()}
            browser.http.post(server.url + "/logout", data=form, allow_redirects=False)
            ends(raw)


def test_one_token_takes_its_share_and_no_more(tmp_path):
    with Server(tmp_path / "data") as server, ExitStack() as stack:
        admin = server.admin()
        greedy = admin.create_token("greedy", "viewer")["token"]
        for _ in range(PER_TOKEN):
            stack.enter_context(stream(server, greedy))
        headers = {"Authorization": f"Bearer {greedy}"}
        for path in ("/api/events", "/live"):
            answer = requests.get(server.url + path, headers=headers, timeout=60)
            assert answer.status_code == 429 and "retry-after" in answer.headers
            assert answer.json()["code"] == "followers_of_token"
        # Four of the kind take all there is; who has none gets a place of one that has many.
        for number in range(3):
            token = admin.create_token(f"greedy {number}", "viewer")["token"]
            for _ in range(PER_TOKEN):
                stack.enter_context(stream(server, token))
        with stream(server, server.token) as raw:
            admin.create_site("seen")
            assert b"site.created" in raw.read_until(b"site.created")
