"""In front of the beacons' calls: what is sealed, and whom refusals are held against."""

import hashlib
import hmac
import http.client
import json
import secrets
from urllib.parse import urlsplit

import pytest

from beacon_ota.orchestrator.beacon_api import poll
from beacon_ota.orchestrator.db.connection import StorageError
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.wire import auth, auth_header
from tests.orchestrator.world import Answer, TestBeacon

POLL = "/firmwares/latest/esp32c3?version=1.0.0"
NONCE = "00112233445566aa"  # of a beacon's request, seen on the wire


def report_target(beacon: TestBeacon) -> str:
    return f"/api/beacons/{beacon.id}/ota_status"


def forge(beacon: TestBeacon, method: str, target: str, body: bytes = b"", **changed) -> Answer:
    """Ask in a beacon's name without its key."""
    who = changed.get("who", beacon.id)
    header = changed.get("header", auth.build_header(who, int(beacon.clock()), NONCE, "0" * 64))
    return beacon.call(method, target, body, {"Authorization": header}, check=False)


def sealed(beacon: TestBeacon, answer: Answer, key: bytes | None = None) -> bool:
    """Whether an answer proves itself under the nonce of a beacon's last request."""
    found = auth_header.parse_header(beacon.last_header)
    assert found is not None
    text = auth.answer_text(found[2], answer.status, hashlib.sha256(answer.body).hexdigest())
    expected = hmac.digest(key or beacon.key, text, "sha256").hex()
    return answer.headers.get("x-beacon-mac") == expected


@pytest.fixture
def beacon(local):
    (beacon,) = local.beacons(1)
    return beacon


def test_without_the_key_nothing_is_sealed(local, beacon):
    other = secrets.token_bytes(32)
    refused = {
        "bad_mac": forge(beacon, "GET", POLL),
        "unknown_beacon": forge(beacon, "GET", POLL, who="nobody"),
        "body_too_large": forge(beacon, "POST", report_target(beacon), b"x" * 9000),
    }
    for code, answer in refused.items():
        assert answer.json["code"] == code
    # In time or not, in its syntax or not, whichever call: whoever has no key gets no seal.
    answers = [
        *refused.values(),
        forge(beacon, "GET", POLL, header=auth.build_header(beacon.id, 1, NONCE, "0" * 64)),
        forge(beacon, "GET", "/firmwares/0/download?attempt=0"),
        forge(beacon, "GET", "/firmwares/latest/other"),
        forge(beacon, "POST", report_target(beacon), b"{"),
        forge(beacon, "POST", report_target(beacon)),
        forge(beacon, "HEAD", POLL),
        forge(beacon, "OPTIONS", report_target(beacon)),
        forge(beacon, "PUT", report_target(beacon), b"x" * 300_000),
        forge(beacon, "GET", report_target(beacon)),
        TestBeacon(local.url, beacon.id, other).call("GET", POLL, check=False),
    ]
    answers += [forge(beacon, "GET", POLL) for _ in range(40)]
    assert answers[-1].status == 429
    for answer in answers:
        assert answer.status >= 400 and "x-beacon-mac" not in answer.headers, answer


def test_a_body_that_is_not_the_one_that_was_signed_gets_no_seal(beacon):
    """Who has seen a request may send it with another body: too large, or none."""
    header = beacon.sign("POST", report_target(beacon), b"{}")
    for body in (b"x" * 9000, b"{ }", b""):
        answer = forge(beacon, "POST", report_target(beacon), body, header=header)
        assert answer.status in (401, 413) and "x-beacon-mac" not in answer.headers


def test_a_body_that_stops_arriving_gets_no_seal(local, beacon, monkeypatch):
    monkeypatch.setattr("beacon_ota.orchestrator.http.asgi.LIMITS", _hasty())
    parts = urlsplit(local.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.putrequest("POST", report_target(beacon))
    connection.putheader("Authorization", beacon.sign("POST", report_target(beacon), b"xxxx"))
    connection.putheader("Content-Length", "4")
    connection.endheaders(b"xx")
    response = connection.getresponse()
    assert response.status == 408 and json.loads(response.read())["code"] == "body_stalled"
    assert response.getheader("x-beacon-mac") is None


def _hasty():
    from dataclasses import replace

    from beacon_ota.orchestrator.limits import LIMITS

    return replace(LIMITS, body_stall=0.05)


def test_with_the_key_every_refusal_is_sealed(local, beacon):
    """A beacon without a clock takes the time from one of them: its mac was right."""
    ts = int(local.clock.at)
    skewed = {"Authorization": beacon.sign("GET", POLL, ts=ts - 4000)}
    answer = beacon.call("GET", POLL, headers=skewed)
    assert (answer.status, answer.json["code"]) == (401, "clock_skew") and sealed(beacon, answer)
    assert answer.json["server_time"] == ts
    once = {"Authorization": beacon.sign("GET", POLL)}
    assert beacon.call("GET", POLL, headers=once).status == 204
    answer = beacon.call("GET", POLL, headers=once)
    assert (answer.status, answer.json["code"]) == (401, "nonce_used") and sealed(beacon, answer)
    for target in (
        "/firmwares/latest/Other",
        f"{POLL}&state=odd",
        "/firmwares/0/download?attempt=",
    ):
        answer = beacon.call("GET", target)
        assert answer.status in (409, 422) and sealed(beacon, answer)
    assert sealed(beacon, beacon.call("POST", report_target(beacon), b"{"))
    for _ in range(40):  # nobody guesses here: it is never told to wait
        answer = beacon.call("GET", POLL, headers=skewed)
    assert answer.status == 401 and sealed(beacon, answer)


@pytest.mark.parametrize(
    ("error", "status"), [(StorageError("storage", "full"), 503), (ValueError("a defect"), 500)]
)
def test_a_failure_is_sealed_after_the_mac_was_verified_only(
    local, beacon, monkeypatch, caplog, error, status
):
    def fail(*_given):
        raise error

    monkeypatch.setattr(poll, "parse_poll_query", fail)
    answer = beacon.call("GET", POLL)
    assert answer.status == status and sealed(beacon, answer)
    monkeypatch.setattr("beacon_ota.orchestrator.beacon_api.app.authenticate_request", fail)
    answer = beacon.call("GET", POLL, check=False)
    assert answer.status == status and "x-beacon-mac" not in answer.headers
    caplog.clear()


def test_what_another_process_is_asked_first_gives_no_seal(local, beacon, monkeypatch):
    """A database that does not answer while others are asked about a beacon, and one that does."""

    async def fail() -> None:
        raise StorageError("storage", "gone")

    monkeypatch.setattr(local.service, "shared", True)
    assert forge(beacon, "GET", POLL).json["code"] == "bad_mac"
    monkeypatch.setattr(local.service, "catch_up", fail)
    for answer in (forge(beacon, "GET", POLL), forge(beacon, "GET", POLL, who="nobody")):
        assert answer.status == 503 and "x-beacon-mac" not in answer.headers


def test_a_new_key_seals_the_answer_to_the_request_that_brings_it(local, beacon):
    new = secrets.token_bytes(32)
    local.admin().call("PUT", f"/api/beacons/{beacon.id}/key", json={"key": new.hex()})
    old, beacon.key = beacon.key, new
    skewed = {"Authorization": beacon.sign("GET", POLL, ts=1)}
    assert sealed(beacon, beacon.call("GET", POLL, headers=skewed), new)
    assert sealed(beacon, beacon.poll(), new)
    beacon.key = old
    answer = beacon.call("GET", POLL, check=False)
    assert answer.json["code"] == "bad_mac" and "x-beacon-mac" not in answer.headers


def test_whom_a_refused_request_names_is_told(local, beacon):
    queue = local.call(_follow(local))
    forge(beacon, "GET", POLL)
    forge(beacon, "GET", POLL, who="nobody")
    told = [local.call(queue.get()) for _ in range(2)]
    assert [(one["subject"], one["data"]["code"]) for one in told] == [
        (beacon.id, "bad_mac"),
        ("", "unknown_beacon"),
    ]


async def _follow(local):
    return local.service.hub.subscribe()


def test_a_building_that_lost_its_clocks_is_told_the_time_every_beacon_of_it(local):
    """All behind one address; and one that repeats itself holds nobody back either."""
    fleet = local.beacons(LIMITS.refusals + 15)
    for beacon in fleet:
        beacon.clock = lambda: local.clock.at - 10_000
        answer = beacon.poll()
        assert (answer.status, answer.json["code"]) == (401, "clock_skew"), beacon.id
        beacon.clock = lambda told=answer.json["server_time"]: told
        assert beacon.poll().status == 204
    repeated = {"Authorization": fleet[0].sign("GET", POLL)}
    fleet[0].call("GET", POLL, headers=repeated)
    for _ in range(LIMITS.refusals + 5):
        answer = fleet[0].call("GET", POLL, headers=repeated, check=False)
        assert answer.status == 401
    late = local.beacons(1, "late")[0]
    late.clock = lambda: 0.0
    assert late.poll().json["code"] == "clock_skew"
    # Nor is what it had to be told held against it when somebody beside it guesses.
    guess = TestBeacon(local.url, fleet[0].id, bytes(32))
    guess.clock = local.clock.now
    codes = [guess.call("GET", POLL, check=False).status for _ in range(LIMITS.refusals + 1)]
    assert codes == [401] * LIMITS.refusals + [429]
    assert late.poll().json["code"] == "clock_skew"


def test_followers_are_told_of_a_bounded_number_of_refusals(local):
    (beacon,) = local.beacons(1)
    told = local.call(_follow(local))
    beacon.clock = lambda: 0.0
    for _ in range(3 * LIMITS.refusals):
        assert beacon.poll().status == 401
    events = [told.get_nowait() for _ in range(told.qsize())]
    assert [event["kind"] for event in events] == ["auth.refused"] * LIMITS.refusals
