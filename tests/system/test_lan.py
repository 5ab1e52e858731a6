"""Whoever is on the LAN and has no key: what they forge, alter, repeat or send in another's name is
noticed by the seal, refused with its code, counted, and changes nothing."""

import json
import secrets
import time
from collections import Counter
from dataclasses import replace

import pytest

from beacon_ota.client import Client
from beacon_ota.errors import BeaconOtaError
from tests.orchestrator.world import TestBeacon, until
from tests.system.conftest import put
from tests.system.middle import Answer, Request, bent, flip
from tests.system.scene import everything, metric, pair, problems, roll_out

pytestmark = pytest.mark.timeout(600)  # for machines that do other things as well
YEAR = 365 * 86_400


def offers(change):
    def altered(request: Request, answer: Answer) -> Answer:
        return change(answer) if request.kind == "poll" and answer.status == 200 else answer

    return altered


def polls(change):
    def altered(request: Request, answer: Answer) -> Answer:
        return change(answer) if request.kind == "poll" else answer

    return altered


def forged(answer: Answer) -> Answer:
    """An offer made from nothing, under the seal that came with something else."""
    made = {
        "firmware_id": "0" * 24,
        "attempt_id": "0" * 24,
        "version": "9.9.9",
        "checksum": "0" * 64,
        "size": 4096,
        "download_url": "/firmwares/evil",
        "required": True,
        "manifest": None,
    }
    headers = {**answer.headers, "content-type": "application/json"}
    return replace(answer, status=200, headers=headers, body=json.dumps(made).encode())


def nothing(answer: Answer) -> Answer:
    """An offer withheld, in the orchestrator's name."""
    return replace(answer, status=204, body=b"")


def manifest_bit(answer: Answer) -> Answer:
    manifest = json.loads(answer.body)["manifest"]
    return answer.offer(manifest={**manifest, "payload": bent(manifest["payload"])})


class Again:
    """Gives every poll the first offer that there was, sealed for a nonce of long ago."""

    def __init__(self) -> None:
        self.first: Answer | None = None

    def __call__(self, answer: Answer) -> Answer:
        if self.first is None and answer.status == 200:
            self.first = answer
            return nothing(answer)
        return self.first or nothing(answer)


ON_ANSWERS = {
    "an offer forged": polls(forged),
    "an offer withheld": offers(nothing),
    "an offer altered": offers(lambda a: a.offer(version="9.9.9")),
    "a bit in the manifest": offers(manifest_bit),
    "another url": offers(lambda a: a.offer(download_url="/firmwares/evil")),
    "another time": offers(lambda a: a.offer(server_time=int(time.time()) + 10 * YEAR)),
    "a seal altered": offers(lambda a: replace(a, headers={**a.headers, "x-beacon-mac": "0" * 64})),
    "no seal": offers(
        lambda a: replace(a, headers={k: v for k, v in a.headers.items() if "mac" not in k})
    ),
    "an old offer": offers(Again()),
}


def test_answers_that_were_changed_change_nothing(server, released, tmp_path):
    """One beacon, one attack after the other; then nobody is there any more, and it updates."""
    base, release = released("1.0.0"), released("2.0.0")
    admin = server.admin()
    firmware = put(server, release, tmp_path)["firmware_id"]
    with pair(server, "lan-answers", base.image, power=False) as one:
        one.middle.change = next(iter(ON_ANSWERS.values()))
        rollout = roll_out(server, firmware, one.name)
        one.beacon.power_on()
        for name, change in ON_ANSWERS.items():
            one.middle.changed, one.middle.change = 0, change
            one.until(lambda: one.middle.changed >= 2, name)
            assert not any(r.kind == "download" for r, _ in one.middle.seen), name
            assert [a["taken_at"] for a in one.attempts] == [None], name
        assert admin.get_rollout(rollout)["results"] == {"open": 1}
        assert abs(one.beacon.clock.unix - time.time()) < YEAR
        one.middle.change = None
        one.runs("2.0.0")
        one.until(lambda: admin.get_rollout(rollout)["results"] == {"success": 1}, "the success")
        # It was noticed where it happened, and the orchestrator hears of it.
        one.until(
            lambda: (
                ("answer", "stranger") in {(e["stage"], e["code"]) for e in one.shown["journal"]}
            ),
            "what the beacon noticed",
        )


def test_an_image_that_was_changed_on_its_way(server, released, tmp_path):
    """The seal of a download covers what the whole image has to hash to, which is checked."""
    base, release = released("1.0.0"), released("2.0.0")
    firmware = put(server, release, tmp_path)["firmware_id"]

    def bit(request: Request, answer: Answer) -> Answer:
        if request.kind != "download" or answer.status not in (200, 206):
            return answer
        return replace(answer, body=flip(answer.body, 5000))

    with pair(server, "lan-image", base.image, power=False) as one:
        one.middle.change = bit
        roll_out(server, firmware, one.name)
        one.beacon.power_on()
        (attempt,) = one.until(lambda: [a for a in one.attempts if a["result"]], "its end")
        assert (attempt["result"], attempt["failed_in"], attempt["code"]) == (
            "failed",
            "verify",
            "checksum",
        )
        assert [boot.slot for boot in one.beacon.boots] == ["ota_0"]


def rewritten(request: Request) -> Request:
    if request.kind != "report":
        return request
    doc = json.loads(request.body)
    doc |= {"update_status": "idle", "firmware_version": "9.9.9"}
    return replace(request, body=json.dumps(doc).encode(), headers=_sized(request, doc))


def _sized(request: Request, doc: dict) -> dict[str, str]:
    return {**request.headers, "content-length": str(len(json.dumps(doc)))}


def elsewhere(request: Request) -> Request:
    return replace(request, target=request.target.replace("lan-requests", "lan-bystander"))


def other_version(request: Request) -> Request:
    return replace(request, target=request.target.replace("version=1.0.0", "version=0.0.1"))


def test_requests_that_were_changed(server, released):
    """Reports and polls altered on their way are nobody's; the same again is no second one."""
    base = released("1.0.0")
    admin = server.admin()
    admin.create_beacon("lan-bystander", "esp32c3")
    with pair(server, "lan-requests", base.image) as one:
        one.runs("1.0.0")
        for name, forward, code in (
            ("a report rewritten", rewritten, "bad_mac"),
            ("another version stated", other_version, "bad_mac"),
        ):
            before = metric(admin, f'beacon_ota_refused_total{{code="{code}"}}')
            one.middle.changed, one.middle.forward = 0, forward
            if forward is rewritten:
                one.beacon.reset()  # so that there is a report
            one.until(lambda: one.middle.changed >= 1, name)
            until(
                lambda before=before, code=code: (
                    metric(admin, f'beacon_ota_refused_total{{code="{code}"}}') > before
                ),
                what=name,
            )
            one.middle.forward = None
            assert one.shown["version"] == "1.0.0", name
        # The same once more, word for word.
        again = next(r for r, a in reversed(one.middle.seen) if r.kind == "poll")
        passed = one.until(
            lambda: next((r for r, a in one.middle.seen if a.status == 204), None), "a good poll"
        )
        for request in (again, passed):
            answer = one.middle.ask(request)
            assert answer.status == 401, answer
            assert json.loads(answer.body)["code"] in ("nonce_used", "bad_mac", "clock_skew")
        assert admin.get_beacon("lan-bystander")["version"] is None


@pytest.mark.parametrize("years", [10, -10])
def test_clocks_ten_years_off(server, released, years, tmp_path):
    """The orchestrator tells a beacon the time, under its seal; then the beacon updates."""
    base, release = released("1.0.0"), released("2.0.0")
    admin = server.admin()
    firmware = put(server, release, tmp_path)["firmware_id"]
    with pair(server, f"clock-{years}", base.image) as one:
        one.runs("1.0.0")
        before = metric(admin, 'beacon_ota_refused_total{code="clock_skew"}')
        one.beacon.set_clock(time.time() + years * YEAR)
        until(
            lambda: metric(admin, 'beacon_ota_refused_total{code="clock_skew"}') > before,
            what="a request out of time",
        )
        roll_out(server, firmware, one.name)
        one.runs("2.0.0")
        assert abs(one.beacon.clock.unix - time.time()) < 300


# ---- what somebody sends who speaks the protocol ----


@pytest.fixture
def known(server):
    """A registered beacon in the test's own hands."""
    name = f"hand-{secrets.token_hex(4)}"
    key = secrets.token_bytes(32)
    server.admin().create_beacon(name, "esp32c3", key=key.hex())
    return TestBeacon(server.url, name, key)


def nested(depth: int) -> bytes:
    return b'{"journal":' + b"[" * depth + b"]" * depth + b"}"


def reports(beacon: TestBeacon, victim: str, offer: dict) -> dict[str, tuple[str, bytes, int, str]]:
    """Return bad reports: name -> (path, body, status, code)."""
    own = f"/api/beacons/{beacon.id}/ota_status"
    doc = {
        "firmware_version": "1.0.0",
        "update_status": "idle",
        "updated_at": 0,
        "image_sha256": beacon.image,
    }
    good = json.dumps(doc).encode()
    about = {"attempt_id": offer["attempt_id"], "firmware_id": offer["firmware_id"]}
    success = {**doc, **about, "update_status": "success", "previous_version": "1.0.0"}

    def with_(**changes) -> bytes:
        return json.dumps({**doc, **changes}).encode()

    return {
        "in another's name": (f"/api/beacons/{victim}/ota_status", good, 403, "beacon_mismatch"),
        "another's attempt": (
            own,
            json.dumps({**success, "firmware_version": "2.0.0"}).encode(),
            409,
            "attempt_unknown",
        ),
        "no JSON": (own, b"\xff\xfe", 422, "report_syntax"),
        "a number that is none": (own, good[:-1] + b',"bytes":NaN}', 422, "report_syntax"),
        "nested 4000 deep": (own, nested(4000), 422, "report_syntax"),
        "nested 30 deep": (own, nested(30), 422, "report_field"),
        "a list": (own, b"[]", 422, "report_field"),
        "a megabyte": (own, with_(detail="x" * 1_000_000), 413, "body_too_large"),
        "an unknown status": (own, with_(update_status="fine"), 422, "report_field"),
        "a success without its image": (
            own,
            json.dumps({**success, "image_sha256": 7}).encode(),
            422,
            "report_field",
        ),
    }


def test_reports_that_are_refused(server, released, known, tmp_path):
    admin = server.admin()
    victim_key = secrets.token_bytes(32)
    name = f"victim-{secrets.token_hex(4)}"
    admin.create_beacon(name, "esp32c3", key=victim_key.hex(), tags=[name])
    victim = TestBeacon(server.url, name, victim_key)
    firmware = put(server, released("2.0.0"), tmp_path)["firmware_id"]
    roll_out(server, firmware, name)
    offer = victim.offered()
    known.report("idle")
    known.poll()  # it has said what it is
    before, counted = everything(server), problems(admin)
    expected: Counter[str] = Counter()
    for name, (path, body, status, code) in reports(known, victim.id, offer).items():
        answer = known.call("POST", path, body, check=status != 413)  # nobody has signed that yet
        assert (answer.status, answer.json["code"]) == (status, code), name
        expected[code] += 1
    # A name twice: the second counts, as on the beacon, and only for what it may say.
    twice = b'{"update_status":"success","update_status":"idle","firmware_version":"1.0.0",'
    twice += b'"updated_at":0,"image_sha256":"%s"}' % known.image.encode()
    assert known.call("POST", f"/api/beacons/{known.id}/ota_status", twice).status == 200
    # With another's key, in another's name.
    thief = TestBeacon(server.url, victim.id, known.key)
    answer = thief.call("GET", "/firmwares/latest/esp32c3?version=1.0.0", check=False)
    assert (answer.status, answer.json["code"]) == (401, "bad_mac")
    nobody = TestBeacon(server.url, "nobody-at-all", known.key)
    answer = nobody.call("GET", "/firmwares/latest/esp32c3?version=1.0.0", check=False)
    assert (answer.status, answer.json["code"]) == (401, "unknown_beacon")
    # Out of time, and twice.
    target = "/firmwares/latest/esp32c3?version=1.0.0"
    for years in (10, -10):
        signed = known.sign("GET", target, ts=int(time.time()) + years * YEAR)
        answer = known.call("GET", target, headers={"Authorization": signed})
        assert (answer.status, answer.json["code"]) == (401, "clock_skew")
    nonce = secrets.token_hex(8)
    signed = {"Authorization": known.sign("HEAD", target, nonce=nonce)}
    good = {"Authorization": known.sign("GET", target, nonce=nonce)}
    assert known.call("GET", target, headers=signed, check=False).json["code"] == "bad_mac"
    assert known.call("GET", target, headers=good).status in (200, 204)
    answer = known.call("GET", target, headers=good)
    assert (answer.status, answer.json["code"]) == (401, "nonce_used")
    expected.update(bad_mac=2, unknown_beacon=1, clock_skew=2, nonce_used=1)
    # What others did in its name is not counted as its own refusals.
    assert not admin.get_beacon(victim.id)["refusals"]
    after, now = everything(server), problems(admin)
    assert after == before
    assert {code: now[code] - counted.get(code, 0) for code in expected} == dict(expected)


@pytest.mark.parametrize(
    "broken",
    [
        '"bytes":' + "9" * 3000,
        '"updated_at":-1',
        '"firmware_version":"' + "x" * 4000 + '"',
        '"image_sha256":7',
        '"journal":[[1,2]]',
    ],
    ids=["huge", "negative", "long", "type", "entry"],
)
def test_a_field_that_is_broken_costs_no_report(server, known, broken):
    admin = server.admin()
    known.report("idle")
    before = admin.get_beacon(known.id)
    body = ('{"update_status":"idle",' + broken + "}").encode()
    assert known.call("POST", f"/api/beacons/{known.id}/ota_status", body).status == 200
    after = admin.get_beacon(known.id)
    assert len(after["reports"]) == len(before["reports"]) + 1
    for name in ("version", "image", "journal"):
        assert after[name] == before[name]


def test_what_a_role_does_not_allow(server, known):
    admin = server.admin()
    viewer = admin.create_token("looks", "viewer")["token"]
    operator = admin.create_token("works", "operator")["token"]
    before, counted = everything(server), problems(admin)
    look, work = Client(server.url, viewer), Client(server.url, operator)
    calls = (
        lambda: look.create_rollout("0" * 24),
        lambda: look.post_rollout_action("0" * 24, "halt"),
        lambda: look.post_beacon_action(known.id, "quarantine", "no"),
        lambda: look.change_beacon(known.id, channel="beta"),
        lambda: look.create_site("anywhere"),
        lambda: look.call("POST", "/api/firmwares/upload"),
        lambda: work.create_token("more", "admin"),
        lambda: work.post_beacon_action(known.id, "rekey"),
        lambda: work.remove_beacon(known.id),
        lambda: work.list_audit_entries(),
    )
    for call in calls:
        with pytest.raises(BeaconOtaError) as caught:
            call()
        assert caught.value.code == "role_too_low"
    after, now = everything(server), problems(admin)
    assert after == before
    assert now["role_too_low"] - counted.get("role_too_low", 0) == len(calls)
