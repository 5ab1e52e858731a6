"""Somebody on the LAN who has seen a beacon's requests and has no key gets no seal for them."""

import http.client
import json
from urllib.parse import urlsplit

import pytest

from beacon_ota.wire import auth, auth_header
from tests.system.conftest import put
from tests.system.middle import Answer, Request
from tests.system.scene import pair, roll_out

pytestmark = pytest.mark.timeout(600)


def asked_instead(url: str, request: Request) -> Answer:
    """Return what the orchestrator says to a beacon's id and nonce with too large a body."""
    parsed = auth_header.parse_header(request.headers["authorization"])
    assert parsed is not None
    beacon_id, ts, nonce, _mac = parsed
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        connection.request(
            "POST",
            f"/api/beacons/{beacon_id}/ota_status",
            b"x" * 9000,
            {"Authorization": auth.build_header(beacon_id, ts, nonce, "0" * 64)},
        )
        response = connection.getresponse()
        headers = {key.lower(): value for key, value in response.getheaders()}
        return Answer(response.status, headers, response.read())
    finally:
        connection.close()


def word_of(request: Request) -> str:
    return json.loads(request.body)["update_status"] if request.kind == "report" else ""


def test_a_halt_holds_whatever_is_put_in_the_place_of_its_answer(server, released, tmp_path):
    base, release = released("1.0.0"), released("2.0.0")
    admin = server.admin()
    firmware = put(server, release, tmp_path)["firmware_id"]
    put_in: list[Answer] = []
    with pair(server, "lan-halt", base.image, power=False) as one:
        rollout = roll_out(server, firmware, one.name)

        def change(request: Request, answer: Answer) -> Answer:
            if word_of(request) in ("verifying", "rebooting") and answer.status in (409, 410):
                put_in.append(asked_instead(server.url, request))
                return put_in[-1]
            return answer

        def forward(request: Request) -> Request:
            if word_of(request) == "verifying" and admin.get_rollout(rollout)["status"] == "active":
                admin.post_rollout_action(rollout, "halt", "bad release")
            return request

        one.middle.change, one.middle.forward = change, forward
        one.beacon.power_on()
        one.until(lambda: len(put_in) >= 2, "is told something else than the halt")
        assert all("x-beacon-mac" not in answer.headers for answer in put_in)
        one.middle.change = None  # the next answer is the true one
        one.until(lambda: [a for a in one.attempts if a["result"] == "stopped"], "is stopped")
        one.until(
            lambda: [r for r, a in one.middle.seen if r.kind == "poll" and a.status == 204],
            "polls again, from the image that it had",
        )
        assert {boot.slot for boot in one.beacon.boots} == {"ota_0"}
        assert one.shown["version"] == "1.0.0"


def test_a_final_report_is_repeated_until_it_is_heard(server, released, tmp_path):
    base, release = released("1.0.0"), released("2.0.0")
    firmware = put(server, release, tmp_path)["firmware_id"]
    with pair(server, "lan-swallow", base.image, power=False) as one:
        swallowed: list[Answer] = []
        ask = one.middle.ask

        def swallow(request: Request) -> Answer:
            if word_of(request) == "success" and len(swallowed) < 3:
                swallowed.append(asked_instead(server.url, request))
                return swallowed[-1]
            return ask(request)

        one.middle.ask = swallow  # type: ignore[method-assign]
        roll_out(server, firmware, one.name)
        one.beacon.power_on()
        (attempt,) = one.until(lambda: [a for a in one.attempts if a["result"]], "its end")
        assert attempt["result"] == "success" and len(swallowed) == 3
        assert all("x-beacon-mac" not in answer.headers for answer in swallowed)
