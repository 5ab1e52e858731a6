"""Times, single objects and lists as the commands show them."""

import pytest
from rich.text import Text

from beacon_ota.cli._support.display import (
    local_time,
    localize_times,
    print_fields,
    print_listing,
    redraw_until,
)


@pytest.fixture(autouse=True)
def time_zone(monkeypatch):
    import time

    monkeypatch.setenv("TZ", "EET-2")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_times_are_local():
    assert local_time("2026-03-02T22:30:00Z") == "2026-03-03 00:30:00 EET"
    assert local_time(None) == local_time("") == "–"
    rows = [{"id": 1, "at": "2026-03-02T22:30:00Z", "until": None}, {"id": 2}]
    shown = localize_times(rows, "at", "until")
    assert shown[0] == {"id": 1, "at": "2026-03-03 00:30:00 EET", "until": "–"}
    assert shown[1] == {"id": 2, "at": "–", "until": "–"}
    assert rows[0]["until"] is None


def test_fields_are_lined_up_and_harmless(capsys):
    print_fields({"name": "a[b]\x1b[2J", "address": None, "count": 0}, "title")
    assert capsys.readouterr().out.splitlines() == [
        "title",
        "  name     a[b]\\x1b[2J",
        "  address  –",
        "  count    0",
    ]


def test_a_view_is_drawn_until_it_is_done():
    drawn = []

    def draw() -> Text:
        drawn.append(len(drawn))
        return Text(f"number {drawn[-1]}")

    redraw_until(lambda: len(drawn) == 3, draw, every_s=0)
    assert drawn == [0, 1, 2]


def test_a_listing_without_watch_is_printed_once(capsys):
    asked = []

    def list_rows():
        asked.append(True)
        return [{"name": "first", "size": 3}]

    print_listing(list_rows, ("name", "size"), watch=False, every_s=60)
    assert "first" in capsys.readouterr().out and len(asked) == 1
