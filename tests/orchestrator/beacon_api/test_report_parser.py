"""What a report comes to: needed fields are checked, others mended or left out."""

import json

import pytest

from beacon_ota.orchestrator.beacon_api.report_parser import parse_report
from beacon_ota.orchestrator.core.service import ServedCounts
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.wire import journal

IDLE = {
    "firmware_version": "1.0.0",
    "update_status": "idle",
    "updated_at": 1_900_000_000,
    "image_sha256": "0" * 64,
}


def parsed(counts=None, **fields):
    return parse_report(json.dumps({**IDLE, **fields}).encode(), counts)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[" * 9000, b"NaN", b'{"update_status":NaN}', b'{"a":Infinity}'],
)
def test_a_body_that_is_not_json_is_refused(body):
    with pytest.raises(Problem) as caught:
        parse_report(body)
    assert caught.value.code == "report_syntax" and caught.value.status == 422


def test_a_needed_field_is_refused_by_name():
    with pytest.raises(Problem) as caught:
        parsed(update_status="dancing")
    assert caught.value.code == "report_field" and caught.value.found == "update_status"


def test_fields_of_other_statuses_are_left_out():
    found = parsed(progress=50, stage="flash", acquitted=True, attempt_id="0" * 24)
    assert not {"progress", "stage", "acquitted", "attempt_id"} & set(found)


def test_a_number_of_any_length_is_read_without_its_digits():
    assert "rssi" not in parse_report(
        (json.dumps(IDLE)[:-1] + ',"rssi":' + "9" * 7000 + "}").encode()
    )


def test_journal_entries_are_mended_counted_and_acknowledged():
    counts = ServedCounts()
    good = [7, 0, "wifi", "no_address", ""]
    found = parsed(counts, journal=[[9, 0, "?", "?", ""], good, "x", [0], [8, 0, "wifi"]])
    assert found["journal_ack"] == 9
    assert found["journal"][0] == good
    assert counts.entries["dropped"] >= 2


def test_entries_over_the_bound_stay_for_the_next_report():
    most = journal.MAX_ENTRIES
    entries = [[seq, 0, "wifi", "no_address", ""] for seq in range(1, most + 4)]
    found = parsed(journal=entries)
    assert len(found["journal"]) == most and found["journal_ack"] == most
