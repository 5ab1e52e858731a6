"""Whatever comes in over the wire ends in a named refusal or an answer, never in a defect."""

import http.client
import io
import json
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beacon_ota.errors import BeaconOtaError
from beacon_ota.orchestrator.beacon_api.poll import parse_poll_query
from beacon_ota.orchestrator.beacon_api.report_parser import parse_report
from beacon_ota.orchestrator.http.problems import problem_document, status_of
from beacon_ota.orchestrator.releases.multipart import MultipartForm
from beacon_ota.orchestrator.releases.serve import parse_range
from beacon_ota.wire import journal, report
from tests.orchestrator.world import TestBeacon, beacons, upload

REPORT = {
    "firmware_version": "1.1.0",
    "update_status": "failed",
    "updated_at": 1_800_000_000,
    "previous_version": "1.0.0",
    "attempt_id": "a" * 24,
    "firmware_id": "b" * 24,
    "image_sha256": "c" * 64,
    "stage": "verify",
    "code": "checksum",
    "detail": "x",
    "bytes": 1,
    "journal": [[1, 2, "boot", "crash", "d"]],
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


def named(call, *args) -> object:
    try:
        return call(*args)
    except BeaconOtaError as error:
        assert error.code in ("report_syntax", "report_field", "poll_query")
        assert json.loads(problem_document(error))["status"] == status_of(error) == 422
        return None


@given(st.dictionaries(st.sampled_from(sorted(REPORT)), VALUES), st.sampled_from(report.STATUSES))
def test_reports(changes, word):
    doc = read_or_none({**REPORT, "update_status": word, "else": "what", **changes})
    if doc is not None:
        assert doc["update_status"] in report.STATUSES and "else" not in doc
        assert all(isinstance(doc.get(name, ""), str) for name in ("stage", "code", "detail"))
        assert len(doc.get("detail", "").encode()) <= report.MAX_DETAIL
        entries = doc.get("journal", [])
        assert len(entries) <= report.MAX_JOURNAL
        assert all(journal.repair_entry(entry) == entry for entry in entries)
        assert all(entry[0] <= doc["journal_ack"] for entry in entries)


def read_or_none(doc) -> dict | None:
    try:
        return parse_report(json.dumps(doc).encode("utf-8", "surrogatepass"))
    except BeaconOtaError as error:
        assert error.code in ("report_syntax", "report_field"), error
        return None


@given(st.binary(max_size=400))
def test_bodies(body):
    named(parse_report, body)


@given(st.binary(max_size=600))
def test_queries(query):
    found = named(parse_poll_query, query)
    if found is not None:
        version, image, _trial = found  # type: ignore[misc]
        assert len(version) <= 64 and len(image) in (0, 64)


@given(st.text(max_size=40) | st.from_regex(r"bytes=[0-9]{0,14}-[0-9]{0,14}"), st.integers(0, 9999))
def test_ranges(wanted, size):
    part = parse_range(wanted, "", '"e"', size)
    if part is not None:
        start, end = part
        assert 0 <= start <= end <= size


@given(st.lists(st.binary(max_size=200), max_size=8), st.booleans())
def test_forms(pieces, begun):
    head = b'--xyz\r\nContent-Disposition: form-data; name="binary"; filename="f"\r\n\r\n'
    file = io.BytesIO()
    form = MultipartForm("multipart/form-data; boundary=xyz", "binary", file, 300)
    try:
        for piece in [head] * begun + pieces:
            form.feed(piece)
        form.close()
    except BeaconOtaError as error:
        assert error.code in ("form_syntax", "form_field", "image_too_large")
    assert file.tell() < 600


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(["GET", "POST", "PUT", "HEAD"]),
    st.text("/abc.%?=&é _-0", max_size=40),
    st.dictionaries(
        st.sampled_from(["Authorization", "Range", "If-Range", "Content-Type", "X"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300),
    ),
    st.binary(max_size=200),
)
def test_the_server_answers_anything(server, method, path, headers, body):
    """Straight at the sockets: any request gets an answer below 500, or is no request at all."""
    parts = urlsplit(server.url)
    for prefix in ("/", "/firmwares/latest/", "/api/beacons/x/"):
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        target = prefix + quote(path, safe="/%?=&")
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        assert answer.status < 500, (method, target, answer.read())
        connection.close()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_report_changes_what_is_settled(server, settled, data):
    """Fuzzed, but signed: once an attempt has a result, nothing its beacon says changes it."""
    beacon, offer, before = settled
    doc = {**REPORT, "attempt_id": offer["attempt_id"], "firmware_id": offer["firmware_id"]}
    doc |= data.draw(
        st.fixed_dictionaries(
            {"update_status": st.sampled_from(report.STATUSES)},
            optional={
                "progress": st.integers(0, 100),
                "image_sha256": st.sampled_from(["c" * 64, offer["checksum"]]),
                "stage": st.sampled_from(sorted(report.CODES)),
                "code": st.sampled_from(sum(report.CODES.values(), ())),
                "journal": st.just([]),
            },
        )
    )
    if doc["update_status"] == "idle":
        doc = {k: v for k, v in doc.items() if k not in ("attempt_id", "firmware_id")}
    raw = json.dumps(doc).encode()
    answer = beacon.call("POST", f"/api/beacons/{beacon.id}/ota_status", raw)
    assert answer.status in (200, 409, 422), answer.body
    after = server.admin().get_beacon(beacon.id)["attempts"]
    assert after == before


@pytest.fixture(scope="module")
def settled(server, tmp_path_factory) -> tuple[TestBeacon, dict, list]:
    (beacon,) = beacons(server, 1, prefix="settled")
    folder = tmp_path_factory.mktemp("images")
    firmware = upload(server.admin(), "1.1.0", folder, channel="stable")
    plan = {"preset": "all-at-once", "window": "00:00-24:00"}
    server.admin().create_rollout(firmware["firmware_id"], plan)
    offer = beacon.offered()
    beacon.fail(offer)
    return beacon, offer, server.admin().get_beacon(beacon.id)["attempts"]
