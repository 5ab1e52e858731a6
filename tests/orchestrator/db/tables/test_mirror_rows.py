"""Whatever a mirror puts into a field is taken as it is or refused by name."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.errors import InputError
from beacon_ota.orchestrator.db.tables import mirror_rows

ATTEMPT = {
    **dict.fromkeys(mirror_rows._ATTEMPT),
    "id": "a" * 24,
    "beacon_id": "b1",
    "firmware_id": "f" * 24,
    "rollout_id": "e" * 24,
    "wave": 0,
    "stage": 1,
    "n": 1,
    "offered_at": 5.0,
    "ended_at": 6.0,
    "result": "failed",
    "failed_in": "flash",
    "code": "erase",
}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)


@given(name=st.sampled_from(sorted(ATTEMPT)), value=ANYTHING)
def test_any_value_in_any_field_prop(name, value):
    try:
        found = mirror_rows.check_attempt({**ATTEMPT, name: value, "more": value})
    except InputError as error:
        assert error.code == "mirror_change"
        return
    assert set(found) == set(ATTEMPT)
    assert found[name] == value
    json.dumps(found, allow_nan=False)
    json.dumps(found, ensure_ascii=False).encode()


@given(ANYTHING)
def test_any_row_at_all_prop(row):
    for check in (
        mirror_rows.check_attempt,
        mirror_rows.check_report,
        mirror_rows.check_journal_entry,
        mirror_rows.check_event,
    ):
        with pytest.raises(InputError):
            check(row)
    try:
        mirror_rows.check_beacon(row, 1.0)
    except InputError as error:
        assert error.code == "mirror_change"
    assert mirror_rows.check_status(row).keys() <= {
        "backlog",
        "lag_s",
        "releases",
        "version",
        "url",
    }


@given(st.floats())
def test_times_are_finite_and_of_this_world_prop(at):
    try:
        mirror_rows.check_attempt({**ATTEMPT, "offered_at": at})
    except InputError:
        assert not (math.isfinite(at) and 0 <= at <= mirror_rows.LAST_TIME)
