"""Whatever JSON a peer sends: a named refusal or a report within the bounds, nothing else."""

import json

from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.wire import offer, report, shapes

LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
HEX24 = st.text("0123456789abcdef", min_size=23, max_size=25)
REPORT = st.fixed_dictionaries(
    {
        "firmware_version": st.sampled_from(["1.2.3", "1.2", ""]) | JSON,
        "update_status": st.sampled_from(report.STATUSES) | JSON,
        "updated_at": st.integers(-1, 1 << 41) | JSON,
        "image_sha256": st.just("ab" * 32) | JSON,
    },
    optional={
        "previous_version": st.just("1.2.2") | JSON,
        "attempt_id": HEX24 | JSON,
        "firmware_id": HEX24 | JSON,
        "progress": st.integers(-1, 101) | JSON,
        "stage": st.sampled_from(sorted(report.CODES)) | JSON,
        "code": st.sampled_from([c for codes in report.CODES.values() for c in codes]) | JSON,
        "detail": st.text(max_size=210) | JSON,
        "journal": st.lists(st.lists(LEAVES, max_size=6), max_size=9) | JSON,
        "trials": JSON,
        "insecure": JSON,
    },
)
OFFER = st.fixed_dictionaries(
    {
        "firmware_id": HEX24 | JSON,
        "attempt_id": HEX24 | JSON,
        "checksum": st.just("ab" * 32) | JSON,
        "version": st.just("1.2.3") | JSON,
        "size": st.integers(-1, 1 << 25) | JSON,
        "download_url": st.text() | st.just("/f/x/download"),
        "required": st.booleans() | JSON,
    },
    optional={"manifest": JSON, "not_before": JSON, "poll_after_s": JSON},
)


@given(REPORT | JSON)
def test_reports(doc):
    try:
        report.check_report(doc)
    except report.ReportError as error:
        assert error.field and error.reason
        return
    assert doc["update_status"] in report.STATUSES
    assert len(json.dumps(doc.get("detail", "")).encode()) <= 6 * report.MAX_DETAIL + 2
    assert len(doc.get("journal", ())) <= report.MAX_JOURNAL


@given(REPORT | JSON)
def test_what_is_read_of_a_report_is_within_the_bounds(doc):
    try:
        fields, faults = report.read_report(doc)
    except report.ReportError as error:
        assert error.field in ("body", "update_status", "attempt_id", "firmware_id", "image_sha256")
        return
    assert fields["update_status"] in report.STATUSES
    fields.pop("journal", None)  # has a rule of its own
    again, left = report.read_report(fields)
    assert again == fields and set(left) <= {*faults, "stage", "code"}
    assert not set(left) & set(again)  # what is still wrong is that it is not there
    if fields["update_status"] in ("failed", "rolled_back"):
        assert len(fields.get("detail", "").encode()) <= report.MAX_DETAIL


@given(OFFER | JSON)
def test_offers(doc):
    try:
        offer.check_offer(doc)
    except offer.OfferError as error:
        assert error.field
        return
    assert 0 < doc["size"] <= offer.MAX_SIZE
    assert doc["download_url"].isprintable() and doc["download_url"].isascii()


@given(st.text(), st.integers(0, 300))
def test_clip(text, limit):
    short = shapes.clip_text(text, limit)
    assert text.startswith(short) and len(short.encode()) <= limit
    if short != text:
        assert len(text[: len(short) + 1].encode()) > limit
