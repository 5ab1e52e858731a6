"""Times in ISO 8601."""

from datetime import datetime

from hypothesis import example, given
from hypothesis import strategies as st

from beacon_ota.orchestrator.clock import format_iso


@given(st.floats(0, 4e9))
@example(0.0)
@example(1763900000.9999996)
def test_times_are_right_to_the_millisecond(at):
    text = format_iso(at)
    assert text is not None and len(text) == len("2026-01-01T00:00:00.000+00:00")
    assert abs(datetime.fromisoformat(text).timestamp() - at) < 0.0011


def test_no_time_and_no_time_of_this_world():
    assert format_iso(None) is None
    assert format_iso(1e18) == "9999-12-31T23:59:59.000+00:00"
