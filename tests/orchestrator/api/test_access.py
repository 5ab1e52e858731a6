"""Tokens and sessions: a right one is never refused for what others at its address did."""

import threading

import pytest
import requests

from beacon_ota.client import Client
from tests.orchestrator.world import Server


@pytest.fixture(scope="module")
def guessed(tmp_path_factory):
    """A server that this address has sent many wrong tokens to; with a session and a mirror."""
    with Server(tmp_path_factory.mktemp("guessed") / "data") as server:
        admin = server.admin()
        mirror = admin.call("POST", "/api/mirrors", json={"name": "hq", "site": ""})["token"]
        browser = requests.Session()
        form = {"token": server.token}
        assert browser.post(server.url + "/login", data=form, timeout=60).status_code == 200
        statuses = []

        def guess() -> None:
            wrong = {"Authorization": "Bearer bota_00000000_wrong"}
            answer = requests.get(server.url + "/api/tokens/me", headers=wrong, timeout=60)
            statuses.append(answer.status_code)

        for _ in range(2):
            threads = [threading.Thread(target=guess) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert statuses.count(429) == 10 and statuses.count(401) == 30
        yield server, mirror, browser


def test_a_right_token_is_not_refused(guessed):
    server, mirror, _browser = guessed
    admin = server.admin()
    assert admin.call("GET", "/api/tokens/me")["name"] == "first"
    halt = requests.post(
        f"{server.url}/api/rollouts/{'0' * 24}/halt",
        json={"reason": "stop"},
        headers={"Authorization": f"Bearer {server.token}"},
        timeout=60,
    )
    assert halt.status_code == 404 and halt.json()["code"] == "rollout_unknown"
    sync = Client(server.url, mirror).call("POST", "/api/mirror/sync", json={"epoch": "0" * 24})
    assert sync["state"] is not None


def test_a_session_and_a_sign_in_are_not_refused(guessed):
    server, _mirror, browser = guessed
    assert browser.get(server.url + "/beacons", timeout=60).status_code == 200
    form = {"token": server.token}
    answer = requests.post(server.url + "/login", data=form, allow_redirects=False, timeout=60)
    assert answer.status_code == 303
    form = {"token": "bota_00000000_wrong"}
    answer = requests.post(server.url + "/login", data=form, allow_redirects=False, timeout=60)
    assert answer.status_code in (401, 429)
