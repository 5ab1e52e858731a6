"""The beacons' three calls, against a server process: poll, download, report."""

import contextlib
import hashlib
import hmac
import http.client
import json
import secrets
import socket
import sys
import threading
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from beacon_ota.errors import BeaconOtaError
from beacon_ota.orchestrator.http import asgi
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.releases import serve
from beacon_ota.trust import dsse, releases
from beacon_ota.trust.keys import KeySet
from beacon_ota.trust.releases import Terms
from beacon_ota.wire import offer as offer_rules
from tests.orchestrator.world import (
    DEADLINE_S,
    Local,
    TestBeacon,
    beacons,
    image,
    until,
    upload,
)
from tests.trust.lab import Key

ANY_TIME = {"preset": "all-at-once", "window": "00:00-24:00"}
PATIENT = {**ANY_TIME, "gate": {"failure_sample": 1000, "in_a_row": 1000}}


@pytest.fixture(scope="module")
def release(server, tmp_path_factory):
    """A release that is offered to everybody at once, and does not mind failures."""
    admin = server.admin()
    firmware = upload(admin, "1.1.0", tmp_path_factory.mktemp("images"), channel="stable")
    rollout = admin.create_rollout(firmware["firmware_id"], PATIENT)
    return {**firmware, "rollout_id": rollout["rollout_id"]}


@pytest.fixture
def beacon(server):
    return beacons(server, 1, prefix=f"t{secrets.token_hex(4)}-")[0]


def results(server, release):
    return server.admin().get_rollout(release["rollout_id"])["results"]


def history(server, beacon):
    return server.admin().get_beacon(beacon.id)


# ---- poll ----


def test_an_offer_says_everything_the_contract_lists(server, release, beacon):
    answer = beacon.poll()
    offer = answer.json
    assert answer.headers["content-type"] == "application/json"
    assert offer["firmware_id"] == release["firmware_id"]
    assert offer["version"] == "1.1.0" and offer["size"] == release["size"]
    assert offer["checksum"] == release["checksum"]
    assert offer["required"] is False and offer["manifest"] is None
    assert offer["description"] == "" and offer["poll_after_s"] >= 1
    assert abs(offer["server_time"] - beacon.clock()) < 5
    assert len(offer["attempt_id"]) == 24
    attempt = offer["attempt_id"]
    assert offer["download_url"] == f"/firmwares/{offer['firmware_id']}/download?attempt={attempt}"


def test_the_largest_offer_is_one_that_a_beacon_reads(tmp_path):
    with Local(tmp_path / "data", trusted=None) as local:
        (beacon,) = local.beacons(1)
        keys = [Key(f"k{n}") for n in range(2)]
        data = image("1.1.0", keys=KeySet.of([key.public for key in keys]).to_json())
        terms = Terms(int(local.clock.at), int(local.clock.at) + 86_400)
        payload = releases.describe_release(data, terms)[0].payload()
        file = tmp_path / "image.bin"
        file.write_bytes(data)
        local.admin().upload_firmware(
            file,
            device_type="esp32c3",
            version="1.1.0",
            channel="stable",
            description="[{" * 4 + "\U0001f600" * 120,
            manifest=dsse.sign_payload(payload, keys),
        )
        firmware = local.admin().find_firmware("1.1.0")["firmware_id"]
        local.admin().create_rollout(firmware, ANY_TIME)
        answer = beacon.poll()
        offer_rules.check_offer(answer.json)
        # Six signatures more would fit an envelope, and then the offer still has to.
        assert len(answer.body) + 6 * 560 <= offer_rules.MAX_BODY
        opened = answer.body.count(b"[") + answer.body.count(b"{")
        assert opened + 6 <= offer_rules.MAX_BRACKETS


def test_the_same_offer_is_repeated_until_it_is_taken(server, release, beacon):
    first = beacon.offer()
    assert beacon.offer()["attempt_id"] == first["attempt_id"]
    assert len(history(server, beacon)["attempts"]) == 1


def test_a_beacon_that_asks_twice_at_once_has_one_attempt(server, release, beacon):
    twins = [TestBeacon(server.url, beacon.id, beacon.key) for _ in range(8)]
    found = []
    threads = [threading.Thread(target=lambda b=b: found.append(b.offer())) for b in twins]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({offer["attempt_id"] for offer in found}) == 1
    assert len(history(server, beacon)["attempts"]) == 1


def test_nothing_is_offered_to_the_newest_or_to_one_on_trial(server, release, beacon):
    beacon.state = "trial"
    answer = beacon.poll()
    assert answer.status == 204 and answer.headers["x-reason"] == "trial"
    assert int(answer.headers["retry-after"]) >= 1 and answer.body == b""
    beacon.state, beacon.version = "valid", "2.0.0"
    assert beacon.poll().headers["x-reason"] == "up_to_date"


def test_polls_without_a_query_or_with_a_wrong_one(server, release, beacon):
    assert beacon.call("GET", "/firmwares/latest/esp32c3").headers["x-reason"] == "version"
    for query in ("version=1.x", "image=abc", "state=odd", "version=%FF", "version=" + "1" * 600):
        answer = beacon.call("GET", "/firmwares/latest/esp32c3?" + query)
        assert answer.status == 422 and answer.json["code"] == "poll_query", query
    # It has said before that it is another board.
    answer = beacon.call("GET", "/firmwares/latest/esp32c3-8mb?version=1.0.0")
    assert answer.status == 204 and answer.headers["x-reason"] == "board"


def test_what_a_beacon_runs_is_shown(server, release, beacon):
    beacon.offer()
    shown = history(server, beacon)
    assert shown["version"] == "1.0.0" and shown["image"] == beacon.image
    assert shown["state"] == "valid" and shown["last_seen"] and shown["address"] == "127.0.0.1"
    assert "key" not in shown and "next_key" not in shown


# ---- authentication ----


def test_refusals_are_problem_documents_with_the_time_and_a_seal(server, beacon):
    target = "/firmwares/latest/esp32c3?version=1.0.0"
    right = beacon.key
    beacon.key = secrets.token_bytes(32)
    answer = beacon.call("GET", target, check=False)
    beacon.key = right
    assert answer.status == 401 and answer.json["code"] == "bad_mac"
    assert answer.headers["content-type"] == "application/problem+json"
    assert "x-beacon-mac" not in answer.headers  # whoever has no key gets no seal of it
    skewed = beacon.sign("GET", target, ts=int(beacon.clock()) - 1000)
    answer = beacon.call("GET", target, headers={"Authorization": skewed})
    assert answer.status == 401 and answer.json["code"] == "clock_skew"
    assert abs(answer.json["server_time"] - beacon.clock()) < 5
    once = {"Authorization": beacon.sign("GET", target)}
    assert beacon.call("GET", target, headers=once).status in (200, 204)
    answer = beacon.call("GET", target, headers=once)
    assert answer.status == 401 and answer.json["code"] == "nonce_used"
    stranger = TestBeacon(server.url, "nobody", beacon.key)
    answer = stranger.call("GET", target, check=False)
    assert answer.status == 401 and answer.json["code"] == "unknown_beacon"
    assert "x-beacon-mac" not in answer.headers


def test_a_report_in_anothers_name_is_refused(server, release, beacon):
    offer = beacon.offer()
    other = beacons(server, 1, prefix=f"o{secrets.token_hex(4)}-")[0]
    body = json.dumps({"update_status": "success"}).encode()
    answer = other.call("POST", f"/api/beacons/{beacon.id}/ota_status", body)
    assert answer.status == 403 and answer.json["code"] == "beacon_mismatch"
    answer = other.report("downloading", offer)
    assert answer.status == 409 and answer.json["code"] == "attempt_unknown"
    assert other.download(offer).status == 409


def test_rekey(server, release, beacon):
    admin = server.admin()
    admin.post_beacon_action(beacon.id, "rekey")
    answer = beacon.report("idle")
    assert "rekey" in answer.json
    again = beacon.report("idle")  # the answer may have got lost: it comes again
    nonce = ""

    def learn(call):
        nonlocal nonce
        body = json.dumps(
            {
                "firmware_version": "1.0.0",
                "update_status": "idle",
                "updated_at": 0,
                "image_sha256": beacon.image,
            }
        ).encode()
        nonce = secrets.token_hex(8)
        target = f"/api/beacons/{beacon.id}/ota_status"
        signed = beacon.sign("POST", target, body, nonce=nonce)
        return call("POST", target, body, {"Authorization": signed})

    sent = learn(beacon.call).json["rekey"]
    pad = hmac.digest(beacon.key, b"rekey\n" + nonce.encode(), "sha256")
    new = bytes(a ^ b for a, b in zip(bytes.fromhex(sent), pad, strict=True))
    assert again.json["rekey"] != answer.json["rekey"]
    old, beacon.key = beacon.key, new
    assert "rekey" not in beacon.report("idle").json
    beacon.key = old
    answer = beacon.call("GET", "/firmwares/latest/esp32c3?version=1.0.0", check=False)
    assert answer.status == 401 and answer.json["code"] == "bad_mac"


def test_a_beacon_that_is_provisioned_again(server, beacon):
    """Either key is good until the new one is used, whether the beacon got it or not."""
    admin = server.admin()
    old, new = beacon.key, secrets.token_bytes(32)
    admin.set_beacon_key(beacon.id, new.hex())
    assert "rekey" in beacon.report("idle").json
    admin.set_beacon_key(beacon.id, old.hex())  # the one it has: nothing is pending any more
    assert "rekey" not in beacon.report("idle").json
    admin.set_beacon_key(beacon.id, new.hex())
    admin.set_beacon_key(beacon.id, new.hex())  # again, as whoever tries again does
    beacon.key = new
    assert "rekey" not in beacon.report("idle").json
    beacon.key = old
    answer = beacon.call("GET", "/firmwares/latest/esp32c3?version=1.0.0", check=False)
    assert answer.status == 401 and answer.json["code"] == "bad_mac"
    for name, key, code in (("nobody", new.hex(), 404), (beacon.id, "00", 422)):
        with pytest.raises(BeaconOtaError) as caught:
            admin.set_beacon_key(name, key)
        assert caught.value.code == {404: "beacon_unknown", 422: "request_invalid"}[code]


# ---- download ----


def test_the_whole_image_and_its_parts(server, release, beacon):
    offer = beacon.offer()
    whole = beacon.download(offer)
    assert whole.status == 200
    assert hashlib.sha256(whole.body).hexdigest() == offer["checksum"]
    etag = whole.headers["etag"]
    assert etag == f'"{offer["checksum"]}"'
    size = len(whole.body)

    def part(wanted, if_range=None):
        headers = {"Range": wanted, **({"If-Range": if_range} if if_range else {})}
        return beacon.download(offer, headers)

    for wanted, start, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=4096-", 4096, size),
        ("bytes=-100", size - 100, size),
        (f"bytes=100-{size + 5}", 100, size),
        (f"bytes=-{size * 2}", 0, size),
    ):
        answer = part(wanted, etag)
        assert answer.status == 206, wanted
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert answer.body == whole.body[start:end]
    for wanted in (f"bytes={size}-", "bytes=-0"):
        answer = part(wanted)
        assert answer.status == 416 and answer.headers["content-range"] == f"bytes */{size}"
        assert answer.body == b""
    for wanted in ("bytes=5-2", "bytes=", "bytes=a-b", "bytes=0-1,4-5", "chunks=0-1", "bytes=-"):
        answer = part(wanted)
        assert answer.status == 200 and answer.body == whole.body, wanted
    assert part("bytes=10-", '"another"').status == 200


def test_the_first_download_takes_the_offer(server, release, beacon):
    offer = beacon.offer()
    assert history(server, beacon)["attempts"][0]["taken_at"] is None
    beacon.download(offer, {"Range": "bytes=0-0"})
    taken = history(server, beacon)["attempts"][0]["taken_at"]
    beacon.download(offer)
    assert taken and history(server, beacon)["attempts"][0]["taken_at"] == taken


def test_no_attempt_no_download(server, release, beacon):
    offer = beacon.offer()
    for url in (
        f"/firmwares/{offer['firmware_id']}/download",
        f"/firmwares/{offer['firmware_id']}/download?attempt={'0' * 24}",
        f"/firmwares/{'0' * 24}/download?attempt={offer['attempt_id']}",
    ):
        answer = beacon.call("GET", url)
        assert answer.status == 409 and answer.json["code"] == "attempt_over"
    beacon.update(offer)
    assert beacon.download(offer).status == 409


# ---- reports ----


def test_success_only_from_the_new_image_itself(server, release, beacon):
    offer = beacon.offer()
    beacon.download(offer)
    answer = beacon.report("success", offer)
    assert answer.status == 409 and answer.json["code"] == "image_mismatch"
    assert history(server, beacon)["attempts"][0]["result"] is None
    beacon.install(offer)
    assert beacon.report("success", offer, previous_version="1.0.0").json["recorded"] == "first"
    attempt = history(server, beacon)["attempts"][0]
    assert attempt["result"] == "success" and attempt["ended_at"]


def test_the_first_outcome_stays(server, release, beacon):
    before = results(server, release)
    offer = beacon.offer()
    answer = beacon.fail(offer)
    assert answer.json["recorded"] == "first"
    again = beacon.report("failed", offer, stage="download", code="stall")
    assert again.status == 200 and again.json["recorded"] == "repeated"
    beacon.install(offer)
    success = beacon.report("success", offer, previous_version="1.0.0")
    assert success.status == 200 and success.json["recorded"] == "repeated"
    attempt = history(server, beacon)["attempts"][0]
    assert (attempt["result"], attempt["failed_in"], attempt["code"], attempt["detail"]) == (
        "failed",
        "verify",
        "checksum",
        "in a test",
    )
    after = results(server, release)
    assert after["failed"] == before.get("failed", 0) + 1
    assert after.get("success", 0) == before.get("success", 0)


def test_after_the_end_nothing_goes_on(server, release, beacon):
    offer = beacon.offer()
    beacon.fail(offer)
    for status in ("downloading", "verifying", "rebooting"):
        answer = beacon.report(status, offer)
        assert answer.status == 409 and answer.json["code"] == "attempt_over", status


def test_a_failed_beacon_waits_before_it_may_try_again(server, release, beacon):
    beacon.fail(beacon.offer())
    answer = beacon.poll()
    assert answer.status == 204 and answer.headers["x-reason"] == "retry"


def test_what_was_measured_is_kept(server, release, beacon):
    offer = beacon.offer()
    beacon.download(offer)
    beacon.report("downloading", offer, progress=40)
    beacon.report("verifying", offer)
    beacon.report("rebooting", offer)
    beacon.install(offer)
    beacon.report(
        "success",
        offer,
        previous_version="1.0.0",
        bytes=offer["size"],
        duration_ms=21_000,
        trials=1,
        reset_cause=3,
        heap_free_min=50_000,
        advertising_paused_ms=0,
        bytes_fetched=24_576,
        sectors_kept=432,
        sectors_written=3,
    )
    shown = history(server, beacon)
    attempt = shown["attempts"][0]
    assert attempt["bytes"] == offer["size"] and attempt["duration_ms"] == 21_000
    assert attempt["trials"] == 1 and attempt["heap_free_min"] == 50_000
    assert attempt["bytes_fetched"] == 24_576
    assert (attempt["sectors_kept"], attempt["sectors_written"]) == (432, 3)
    metrics = server.admin().request("GET", "/metrics").text
    labels = f'device_type="esp32c3",version="{offer["version"]}"'
    assert f"beacon_ota_update_bytes_fetched_total{{{labels}}} 24576.0" in metrics
    assert f"beacon_ota_update_bytes_saved_total{{{labels}}} 0.0" in metrics  # a small image
    for how, count in (("kept", 432.0), ("written", 3.0)):
        sectors = labels.replace(",", f',how="{how}",')
        assert f"beacon_ota_update_sectors_total{{{sectors}}} {count}" in metrics
    assert attempt["taken_at"] and attempt["rebooting_at"]
    assert [one["status"] for one in shown["reports"]] == ["success", "rebooting", "verifying"]
    assert shown["version"] == "1.1.0" and shown["image"] == offer["checksum"]


def test_a_rollback_is_a_failure_with_its_reason(server, release, beacon):
    offer = beacon.offer()
    beacon.download(offer)
    beacon.report("rebooting", offer)
    answer = beacon.report(
        "rolled_back", offer, previous_version="1.0.0", stage="boot", code="self_test"
    )
    assert answer.json["recorded"] == "first"
    attempt = history(server, beacon)["attempts"][0]
    assert (attempt["result"], attempt["failed_in"], attempt["code"]) == (
        "rolled_back",
        "boot",
        "self_test",
    )


def test_the_journal_is_stored_once_and_acknowledged(server, beacon):
    entries = [[7, 100, "download", "stall", "a"], [8, 0, "main", "crash", "b"]]
    answer = beacon.report("idle", journal=entries)
    assert answer.json["journal_ack"] == 8
    assert beacon.report("idle", journal=entries).json["journal_ack"] == 8
    journal = history(server, beacon)["journal"]
    assert [(e["seq"], e["stage"], e["code"], e["detail"]) for e in journal] == [
        (8, "main", "crash", "b"),
        (7, "download", "stall", "a"),
    ]
    assert journal[0]["at"] is None and journal[1]["at"].startswith("1970-01-01T00:01:40")
    wiped = [[1, 200, "wifi", "drop", "after the storage was wiped"]]
    assert beacon.report("idle", journal=wiped).json["journal_ack"] == 1
    assert len(history(server, beacon)["journal"]) == 3


def test_reports_out_of_bounds_are_refused_and_change_nothing(server, release, beacon):
    offer = beacon.offer()
    target = f"/api/beacons/{beacon.id}/ota_status"

    def send(body: bytes):
        return beacon.call("POST", target, body)

    for body in (b"", b"{", b"[]", b"null", b"\xff", b"[" * 8000, b'{"a":' * 1000, b"1e999"):
        answer = send(body)
        assert answer.status == 422, body[:20]
        assert answer.json["code"] in ("report_syntax", "report_field")
    assert send(b'{"update_status": NaN}').json["code"] == "report_syntax"
    large = beacon.call("POST", target, b" " * 9000, check=False)
    assert large.status == 413 and "x-beacon-mac" not in large.headers  # its mac was not looked at
    for wrong in (
        {"update_status": "odd"},
        {"attempt_id": offer["attempt_id"].upper()},
        {"firmware_id": None},
        {"image_sha256": "x" * 64},
    ):
        answer = beacon.report("success", offer, **wrong)
        assert answer.status == 422 and answer.json["code"] == "report_field", wrong
        assert answer.json["found"] == next(iter(wrong))
    shown = history(server, beacon)
    assert shown["reports"] == [] and shown["journal"] == []
    assert shown["attempts"][0]["taken_at"] is None


def counted(server, name):
    text = server.admin().request("GET", "/metrics").text
    lines = [line for line in text.splitlines() if line.startswith(f"beacon_ota_{name} ")]
    return float(lines[0].split()[1])


BAD_ENTRIES = [
    ([5, 0, "wifi", "handshake_timeout", ""], (5, "wifi", "handshake_timeou", "")),
    ([5, 0, "Wifi", "no AP", "x"], (5, "wifi", "no_ap", "x")),
    ([5, 0, "a", "b", "x" * 200], (5, "a", "b", "x" * 80)),
    ([5, 0, "a", "b", "x\0y\ud800z"], (5, "a", "b", "x\ufffdy\ufffdz")),
    ([5, -1, "a", "b", ""], (5, "a", "b", "")),
    ([5, 1 << 70, "a", "b", ""], (5, "a", "b", "")),
    ([5, 0, "a", "b", "", "more"], (5, "a", "b", "")),
    ([5, 0, "", "b", ""], None),
    ([5, 0, "a", None, ""], None),
    ([5, 0, "a", "b", {}], None),
    ([5, 0, "a"], None),
]


@pytest.mark.parametrize(("entry", "kept"), BAD_ENTRIES)
def test_a_journal_entry_that_breaks_the_contract_costs_nothing_else(server, beacon, entry, kept):
    how = "dropped" if kept is None else "clipped"
    before = counted(server, f"journal_entries_{how}_total")
    good = [[4, 0, "boot", "crash", "before"], [6, 0, "boot", "crash", "behind"]]
    answer = beacon.report("idle", journal=[good[0], entry, good[1]])
    assert answer.status == 200 and answer.json["journal_ack"] == 6
    stored = [(e["seq"], e["stage"], e["code"], e["detail"]) for e in journal_of(server, beacon)]
    others = [(4, "boot", "crash", "before"), (6, "boot", "crash", "behind")]
    assert stored == sorted([*others, *([kept] if kept else [])])
    assert counted(server, f"journal_entries_{how}_total") == before + 1
    # The last one is acknowledged, too, or it would come for ever.
    answer = beacon.report("idle", journal=[[7, *entry[1:]]])
    assert answer.json["journal_ack"] == 7


def journal_of(server, beacon):
    return sorted(history(server, beacon)["journal"], key=lambda entry: entry["seq"])


def test_numbers_that_no_entry_has(server, beacon):
    """Nothing can be acknowledged under them; what is there beside them is."""
    for seq in (0, -3, True, 1.5, "7", None, 1 << 31, 1 << 80):
        answer = beacon.report("idle", journal=[[seq, 0, "a", "b", ""]])
        assert answer.status == 200 and "journal_ack" not in answer.json, seq
        answer = beacon.report("idle", journal=[[seq, 0, "a", "b", ""], [9, 0, "c", "d", ""]])
        assert answer.json["journal_ack"] == 9
    assert [(e["seq"], e["stage"]) for e in journal_of(server, beacon)] == [(9, "c")]


def test_a_journal_out_of_order_or_too_long_is_taken_from_its_oldest_entry_on(server, beacon):
    sent = [[seq, 0, "a", "b", ""] for seq in (12, 3, 3, 7, 5, 6, 4, 8, 9, 10)]
    assert beacon.report("idle", journal=sent).json["journal_ack"] == 9
    assert [e["seq"] for e in journal_of(server, beacon)] == [3, 4, 5, 6, 7, 8, 9]
    assert beacon.report("idle", journal=[sent[0], sent[-1]]).json["journal_ack"] == 12
    assert [e["seq"] for e in journal_of(server, beacon)] == [3, 4, 5, 6, 7, 8, 9, 10, 12]
    for sent in ("x", {}, None, 5, [5], [[]], [None, "y"]):
        answer = beacon.report("idle", journal=sent)
        assert answer.status == 200 and "journal_ack" not in answer.json, sent


DECORATION = {
    "firmware_version": "1",
    "previous_version": None,
    "updated_at": -1,
    "image_sha256": "",
    "bytes": -1,
    "duration_ms": 1.5,
    "trials": True,
    "reset_cause": 10**4000,
    "heap_free_min": "5",
    "advertising_paused_ms": None,
    "bytes_fetched": 1 << 60,
    "sectors_kept": [1],
    "sectors_written": -1,
    "clock_unset": False,
    "insecure": 1,
    "journal": [[1, 2, "a", "b"]],
    "progress": "half",
}


@pytest.mark.parametrize("name", DECORATION)
def test_a_final_report_is_not_lost_for_its_decoration(server, release, beacon, name):
    sys.set_int_max_str_digits(5000)
    offer = beacon.offer()
    assert beacon.download(offer).status == 200
    wrong = {name: DECORATION[name]}
    answer = beacon.report("downloading", offer, **wrong)
    assert answer.status == 200, answer.body
    answer = beacon.report("failed", offer, stage="flash", code="erase", detail="sector 3", **wrong)
    assert answer.status == 200 and answer.json["recorded"] == "first"
    shown = history(server, beacon)
    attempt = shown["attempts"][0]
    assert (attempt["failed_in"], attempt["code"], attempt["detail"]) == (
        "flash",
        "erase",
        "sector 3",
    )
    assert attempt.get(name) is None
    assert shown["version"] == "1.0.0" and shown["image"] == beacon.image


def test_an_end_whose_reason_is_not_known_is_an_end(server, release, beacon):
    offer = beacon.offer()
    beacon.download(offer)
    answer = beacon.report("failed", offer, stage="flash", code="melted", detail="at 900 degrees")
    assert answer.json["recorded"] == "first"
    attempt = history(server, beacon)["attempts"][0]
    assert (attempt["result"], attempt["failed_in"], attempt["code"]) == ("failed", None, None)
    assert attempt["detail"] == "flash/melted: at 900 degrees"


def test_bytes_that_are_no_text_cost_a_report_nothing(server, release, beacon):
    offer = beacon.offer()
    beacon.download(offer)
    doc = {
        "firmware_version": "1.1.0",
        "previous_version": "1.0.0",
        "update_status": "failed",
        "updated_at": 0,
        "image_sha256": beacon.image,
        "attempt_id": offer["attempt_id"],
        "firmware_id": offer["firmware_id"],
        "stage": "flash",
        "code": "write",
        "detail": "@",
    }
    target = f"/api/beacons/{beacon.id}/ota_status"
    answer = beacon.call("POST", target, json.dumps(doc).encode().replace(b"@", b"\xed\xa0\x80"))
    assert answer.status == 200 and answer.json["recorded"] == "first"
    attempt = history(server, beacon)["attempts"][0]
    assert attempt["code"] == "write" and set(attempt["detail"]) == {"\ufffd"}


# ---- peers that behave badly ----


def raw(server):
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.connect()
    return connection.sock


def test_endless_request_heads_are_cut_off(server):
    sock = raw(server)
    sock.sendall(b"GET / HTTP/1.1\r\n")
    with pytest.raises(OSError):
        for _ in range(20_000):
            sock.sendall(b"X-Filler: " + b"a" * 1000 + b"\r\n")
        until(lambda: sock.recv(1) == b"", what="the connection to be closed")
    assert server.admin().call("GET", "/health")["status"] == "ok"


def test_rubbish_is_no_request(server):
    sock = raw(server)
    sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
    assert sock.recv(100).startswith(b"HTTP/1.1 400")


def test_readers_that_go_away_in_the_middle_leave_nothing(server, release, beacon):
    offer = beacon.offer()
    for _ in range(20):
        sock = raw(server)
        target = offer["download_url"]
        head = f"GET {target} HTTP/1.1\r\nHost: o\r\nAuthorization: {beacon.sign('GET', target)}"
        sock.sendall(head.encode() + b"\r\n\r\n")
        sock.recv(10)
        sock.close()
    metrics = server.admin().request("GET", "/metrics")
    assert "beacon_ota_downloads_open 0.0" in metrics.text
    assert hashlib.sha256(beacon.download(offer).body).hexdigest() == offer["checksum"]


def test_a_reader_that_stands_still_is_dropped(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(serve, "LIMITS", replace(LIMITS, send_stall=0.3))
    with Local(tmp_path / "data") as local:
        (beacon,) = local.beacons(1)
        file = tmp_path / "big.bin"
        file.write_bytes(image("1.1.0", size=1_600_000))
        fields = {"device_type": "esp32c3", "version": "1.1.0", "channel": "stable"}
        firmware = local.admin().upload_firmware(file, **fields)["firmware_id"]
        local.admin().create_rollout(firmware, PATIENT)
        target = beacon.offered()["download_url"]
        parts = urlsplit(local.url)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((parts.hostname, parts.port))
        head = f"GET {target} HTTP/1.1\r\nHost: o\r\nAuthorization: {beacon.sign('GET', target)}"
        sock.sendall(head.encode() + b"\r\n\r\n")
        until(lambda: local.service.counts.reading == 1)
        until(lambda: local.service.counts.reading == 0, what="the reader to be given up")
        sock.settimeout(DEADLINE_S)
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(65536):
                got += len(data)
        assert got < 1_600_000
        assert local.service.counts.bytes_sent < 1_600_000
    assert not caplog.records, caplog.text


def test_a_body_that_stops_arriving_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(asgi, "LIMITS", replace(LIMITS, body_stall=0.2))
    with Local(tmp_path / "data") as local:
        (beacon,) = local.beacons(1)
        parts = urlsplit(local.url)
        for path in (f"/api/beacons/{beacon.id}/ota_status", "/api/beacons"):
            sock = socket.create_connection((parts.hostname, parts.port), timeout=60)
            sock.sendall(
                f"POST {path} HTTP/1.1\r\nHost: o\r\nContent-Length: 100\r\n\r\n{{".encode()
            )
            assert b" 408 " in sock.recv(4096)
