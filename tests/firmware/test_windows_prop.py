"""Beacon and orchestrator agree about windows, in every zone, on both sides of each change."""

from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from beacon_ota.orchestrator.rollout import windows
from beacon_ota.wire import offer as offers
from tests.firmware.interpreter import Interpreter
from tests.orchestrator.rollout.build import utc

ZONES = (
    "Australia/Sydney",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # changes by half an hour
    "Asia/Kathmandu",
    "Pacific/Kiritimati",  # the most before UTC
    "Pacific/Pago_Pago",  # the most behind it
    "America/Santiago",  # changes at midnight
    "UTC",
)
SYDNEY, BERLIN = utc(2026, 10, 3, 16), utc(2026, 3, 29, 1)  # the second at which clocks change
MOMENTS = st.one_of(
    st.sampled_from([SYDNEY, BERLIN, utc(2026, 4, 4, 16), utc(2026, 10, 25, 1)]).flatmap(
        lambda at: st.integers(int(at) - 100_000, int(at) + 100_000)
    ),
    st.integers(int(utc(2024, 1, 1)), int(utc(2034, 1, 1))),
)


@pytest.fixture(scope="module")
def device() -> Iterator[Interpreter]:
    with Interpreter("from ota import schedule\nfrom wire import offer as offers\n") as found:
        yield found


def seconds_until_install(device: Interpreter, offer: dict, now: int, hours: str, utc_off: int):
    return device.ask("schedule.seconds_until_install({}, {}, {}, {})", offer, now, hours, utc_off)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 1439),
    st.integers(1, 1439),
    st.sampled_from(ZONES),
    MOMENTS,
    st.integers(-720, 840),
)
@example(180, 120, "Australia/Sydney", int(SYDNEY) + 60, 600)
@example(180, 120, "Europe/Berlin", int(BERLIN) + 60, 60)
@example(120, 60, "Europe/Berlin", int(BERLIN) - 60, 60)  # the hour that is skipped
def test_a_beacon_installs_when_the_buildings_clock_says_so(
    device, start, length, zone, now, stored
):
    """Whatever offset was stored when it was provisioned, whatever time of the year that was."""
    end = (start + length) % 1440
    hours = f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    opens, closes = windows.next_window(windows.parse_window(hours, zone), now)
    # The orchestrator offers in its window only, and names it.
    offer = {"required": False, "not_before": int(opens), "not_after": int(closes)}
    assert seconds_until_install(device, offer, max(now, int(opens)), hours, stored) == 0
    assert seconds_until_install(device, offer, int(closes), hours, stored) > 0
    # A rollout for any time leaves the beacon's own window, by the building's clock of that day.
    offset = windows.utc_offset_min(zone, now)
    assert offset is not None and -720 <= offset <= 840
    offer = {"required": False, "utc_off": offset}
    wait = seconds_until_install(device, offer, now, hours, stored)
    assert (wait == 0) == (opens <= now < closes)


def test_every_offset_of_every_zone_fits_an_offer():
    import zoneinfo

    names = sorted(zoneinfo.available_timezones())
    assert len(names) > 400
    for name in names:
        for at in (utc(2026, 1, 15), utc(2026, 7, 15)):
            offset = windows.utc_offset_min(name, at)
            if offset is not None:
                assert -720 <= offset <= 840, name
    assert windows.utc_offset_min("Nowhere/Nothing", 0.0) is None


@pytest.mark.parametrize("value", ["60", 1.5, None, True, 841, -721])
def test_an_offset_that_is_none_is_no_offer(device, value):
    good = {
        "firmware_id": "0" * 24,
        "attempt_id": "0" * 24,
        "checksum": "0" * 64,
        "version": "1.0.0",
        "size": 1,
        "download_url": "/x",
        "required": False,
    }
    offers.check_offer({**good, "utc_off": 840})
    assert device.ask("offers.check_offer({})", {**good, "utc_off": -720}) is None
    with pytest.raises(offers.OfferError) as caught:
        offers.check_offer({**good, "utc_off": value})
    assert caught.value.field == "utc_off"
