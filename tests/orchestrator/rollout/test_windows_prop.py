"""A window is when the building's own clock says so, at every minute around every change."""

from datetime import datetime
from zoneinfo import ZoneInfo

from hypothesis import example, given, settings
from hypothesis import strategies as st

from beacon_ota.orchestrator.rollout.types import Window
from beacon_ota.orchestrator.rollout.windows import next_window
from tests.orchestrator.rollout.build import utc

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Asia/Kathmandu",
    "Pacific/Apia",
    "America/Santiago",  # changes at midnight
)
# Around the changes of 2026 in those zones, a leap day, and any time of ten years.
MOMENTS = st.one_of(
    st.sampled_from(
        [
            utc(2026, 3, 29, 1),
            utc(2026, 10, 25, 1),
            utc(2026, 3, 8, 7),
            utc(2026, 11, 1, 6),
            utc(2026, 4, 4, 15),
            utc(2026, 10, 3, 15),
            utc(2026, 2, 15, 2),
            utc(2026, 4, 5, 3),
            utc(2028, 2, 29, 3),
        ]
    ).flatmap(lambda at: st.integers(int(at) - 100_000, int(at) + 100_000)),
    st.integers(int(utc(2024, 1, 1)), int(utc(2034, 1, 1))),
)


def inside(window: Window, at: int) -> bool:
    """The definition itself."""
    local = datetime.fromtimestamp(at, ZoneInfo(window.zone))
    minute = local.hour * 60 + local.minute
    if window.start < window.end:
        return window.start <= minute < window.end
    return minute >= window.start or minute < window.end


@settings(max_examples=400, deadline=None)
@given(
    st.integers(0, 1439), st.integers(1, 1439), st.sampled_from(ZONES), MOMENTS, st.integers(0, 59)
)
@example(90, 90, "America/New_York", int(utc(2026, 11, 1, 5)), 0)
def test_the_wall_clock_agrees(start, length, zone, now, step):
    window = Window(start, (start + length) % 1440, zone)
    opens, closes = next_window(window, now)
    assert opens < closes and now < closes
    assert inside(window, int(opens)) and not inside(window, int(closes))
    assert not inside(window, int(opens) - 1)
    for at in range(now, int(opens), 600 + step):
        assert not inside(window, at)
    for at in range(int(opens), int(closes), 300 + step):
        assert inside(window, at)
    # It stays the answer until it closes, whenever one asks.
    for at in (now, (now + closes) // 2, closes - 1):
        assert next_window(window, at) == (opens, closes)
