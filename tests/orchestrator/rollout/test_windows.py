"""Maintenance windows against the wall clocks of real places."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from beacon_ota.errors import InputError
from beacon_ota.orchestrator.rollout.types import Site, Window
from beacon_ota.orchestrator.rollout.windows import (
    ANY_TIME,
    Places,
    format_window,
    next_window,
    parse_window,
)
from tests.orchestrator.rollout.build import utc


def spans(text: str, zone: str, day: tuple[int, int, int], count: int = 1) -> list[str]:
    """The next windows after midnight UTC of a day, in UTC, as people write it."""
    window, now, found = parse_window(text, zone), utc(*day), []
    for _ in range(count):
        start, now = next_window(window, now)
        found.append(
            " - ".join(f"{datetime.fromtimestamp(at, UTC):%d %H:%M}" for at in (start, now))
        )
    return found


def test_ordinary_days():
    assert spans("03:00-05:00", "UTC", (2026, 3, 2), 2) == ["02 03:00 - 02 05:00"] + [
        "03 03:00 - 03 05:00"
    ]
    assert spans("03:00-05:00", "Europe/Berlin", (2026, 3, 2)) == ["02 02:00 - 02 04:00"]
    assert spans("03:00-05:00", "Asia/Kathmandu", (2026, 3, 2)) == ["02 21:15 - 02 23:15"]


def test_inside_a_window_it_is_this_one_and_its_end_is_outside():
    window = parse_window("03:00-05:00")
    start, end = utc(2026, 3, 2, 3), utc(2026, 3, 2, 5)
    for now in (start, start + 0.5, end - 1):
        assert next_window(window, now) == (start, end)
    assert next_window(window, end) == (start + 86400, end + 86400)


def test_over_midnight():
    assert spans("22:30-04:00", "Europe/Berlin", (2026, 3, 2), 2) == [
        "01 21:30 - 02 03:00",
        "02 21:30 - 03 03:00",
    ]


def test_any_time_and_up_to_midnight():
    assert next_window(parse_window("00:00-24:00", "Europe/Berlin"), 0) == ANY_TIME
    assert spans("22:00-24:00", "UTC", (2026, 3, 2)) == ["02 22:00 - 03 00:00"]
    assert spans("22:00-00:00", "UTC", (2026, 3, 2)) == ["02 22:00 - 03 00:00"]


def test_clocks_go_forward():
    # Berlin, 29 March 2026: 02:00 becomes 03:00 at 01:00 UTC.
    assert spans("01:30-03:30", "Europe/Berlin", (2026, 3, 29)) == ["29 00:30 - 29 01:30"]
    assert spans("02:30-04:00", "Europe/Berlin", (2026, 3, 29)) == ["29 01:00 - 29 02:00"]
    # All of it inside the hour that is skipped: there is none that day.
    assert spans("02:10-02:50", "Europe/Berlin", (2026, 3, 28), 2) == [
        "28 01:10 - 28 01:50",
        "30 00:10 - 30 00:50",
    ]


def test_clocks_go_back():
    # New York, 1 November 2026: 02:00 becomes 01:00 at 06:00 UTC.
    assert spans("00:30-03:00", "America/New_York", (2026, 11, 1)) == ["01 04:30 - 01 08:00"]
    # Wholly inside the hour that comes twice, it comes twice.
    assert spans("01:15-01:45", "America/New_York", (2026, 11, 1), 2) == [
        "01 05:15 - 01 05:45",
        "01 06:15 - 01 06:45",
    ]
    # Begun before, it is interrupted while the clock shows 01:00 to 01:30 again.
    assert spans("01:30-03:00", "America/New_York", (2026, 11, 1), 2) == [
        "01 05:30 - 01 06:00",
        "01 06:30 - 01 08:00",
    ]


def test_half_hour_changes_and_leap_day():
    # Lord Howe changes by half an hour: 5 April 2026, 02:00 becomes 01:30.
    assert spans("01:00-02:00", "Australia/Lord_Howe", (2026, 4, 4)) == ["04 14:00 - 04 15:30"]
    assert spans("03:00-05:00", "UTC", (2028, 2, 29)) == ["29 03:00 - 29 05:00"]
    assert spans("23:00-01:00", "UTC", (2028, 2, 29), 2)[1] == "29 23:00 - 01 01:00"


def test_a_day_that_never_was():
    # Samoa went from 29 to 31 December 2011.
    found = spans("03:00-05:00", "Pacific/Apia", (2011, 12, 29), 3)
    local = ZoneInfo("Pacific/Apia")
    assert len(set(found)) == 3
    window, now, days = parse_window("03:00-05:00", "Pacific/Apia"), utc(2011, 12, 28, 20), []
    for _ in range(3):
        start, now = next_window(window, now)
        days.append(datetime.fromtimestamp(start, local).day)
    assert days == [29, 31, 1]


def test_asking_backwards_gives_the_same_answers():
    window = parse_window("01:30-03:00", "America/New_York")
    moments = [utc(2026, 10, 30) + 1800 * step for step in range(200)]
    forward = [next_window(window, now) for now in moments]
    assert [next_window(window, now) for now in reversed(moments)] == forward[::-1]


@pytest.mark.parametrize(
    "text",
    ["", "-", "x-x", "3-5", "03:00", "03:00-25:00", "03:60-04:00", "24:00-03:00", "03:00-24:30"],
)
def test_not_a_window(text):
    with pytest.raises(InputError) as error:
        parse_window(text)
    assert error.value.code == "window_syntax"


@pytest.mark.parametrize("text", ["03:00-03:00", "00:00-00:00", "3:00 - 3:00"])
def test_no_length(text):
    with pytest.raises(InputError) as error:
        parse_window(text)
    assert error.value.code == "window_empty"


@pytest.mark.parametrize(
    "zone",
    ["", "Mars/Olympus", "Europe", "../etc/passwd", "/etc/passwd", "localtime", "a\0b", "CEST"],
)
def test_no_such_zone(zone):
    with pytest.raises(InputError) as error:
        parse_window("03:00-05:00", zone)
    assert error.value.code == "time_zone_unknown"


def test_text_round_trip():
    for text in ("03:00-05:00", "22:30-04:00", "00:00-24:00", "00:01-00:00"):
        assert format_window(parse_window(text)) == text
    assert format_window(parse_window("3:00 - 5:00")) == "03:00-05:00"


def test_places_inherit_from_above():
    places = Places(
        [
            Site("hq", zone="Europe/Berlin", window="02:00-04:00"),
            Site("hq/a"),
            Site("hq/a/lab", window="00:00-24:00"),
            Site("hq/b", zone="Asia/Tokyo"),
            Site("depot", kind="building", window="05:00-06:00"),
        ],
        zone="Europe/London",
    )
    assert places.place_of("hq/a/1").building == "hq/a"
    assert places.place_of("hq/a/1").window == Window(120, 240, "Europe/Berlin")
    assert places.place_of("hq/a/lab").window == Window(0, 1440, "Europe/Berlin")
    assert places.place_of("hq/a/lab").building == "hq/a"
    assert places.place_of("hq/b/7/x").window == Window(120, 240, "Asia/Tokyo")
    assert places.place_of("hq").building == "hq"
    assert places.place_of("depot/floor-1").building == "depot"
    assert places.place_of("depot/floor-1").window == Window(300, 360, "Europe/London")
    assert places.place_of("").window == Window(180, 300, "Europe/London")
    assert places.place_of("elsewhere/x").building == "elsewhere/x"
    assert {"hq", "hq/a", "hq/a/lab"} <= places.paths


@pytest.mark.parametrize("path", ["", "/", "a//b", "a/", "/a", "a b", "../a", "a" * 300, "a/" * 9])
def test_paths_that_are_none(path):
    with pytest.raises(InputError) as error:
        Places([Site(path)])
    assert error.value.code == "site_path"


def test_a_kind_that_is_none():
    with pytest.raises(InputError) as error:
        Places([Site("a", kind="planet")])
    assert error.value.code == "site_kind"


def test_places_remember_a_bounded_number_of_paths():
    places = Places([Site("hq/a", zone="Asia/Tokyo")])
    for n in range(10_000):
        assert places.place_of(f"hq/a/{n}").window.zone == "Asia/Tokyo"
    assert len(places._resolved) <= 4097
