"""Whatever is sent as a journal entry: one within the bounds, or none; and what is good stays."""

import json

from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.wire import journal, report
from tests.wire.test_report_prop import JSON, LEAVES

NUMBER = st.integers(-2, 3) | st.integers() | st.just(journal.MAX_SEQ) | LEAVES
WORD = st.text("abcxyz019_", max_size=18) | st.text(max_size=20) | LEAVES
TEXT = st.text(st.characters(), max_size=100) | LEAVES
ENTRY = st.tuples(NUMBER, NUMBER, WORD, WORD, TEXT).map(list)


@given(ENTRY | st.lists(JSON, max_size=7) | JSON)
def test_entries(sent):
    entry = journal.repair_entry(sent)
    if entry is None:
        return
    seq, utc, stage, code, detail = entry
    assert 0 < seq <= journal.MAX_SEQ and 0 <= utc <= journal.MAX_UTC
    assert report.is_word(stage) and report.is_word(code)
    assert len(detail) <= journal.MAX_DETAIL and "\0" not in detail
    assert len(json.dumps(entry, ensure_ascii=False).encode()) < 512  # what stage 0 reads of one
    assert journal.repair_entry(entry) == entry
