"""Beacons are registered as what they say they are, not as what somebody typed."""

import secrets
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from beacon_ota.errors import InputError
from beacon_ota.provision.registry import OrchestratorRegistry
from beacon_ota.provision.reports import StateReport
from tests.orchestrator.conftest import local  # noqa: F401

LARGE = "esp32c3-8mb"


def enter(local, device_type: str, beacon_id: str = "b1") -> str:  # noqa: F811
    state = StateReport(beacon_id=beacon_id, device_type=device_type)
    return OrchestratorRegistry(local.admin()).register(state, secrets.token_bytes(32), {}, ())


def registered(local, beacon_id: str = "b1") -> str:  # noqa: F811
    return local.admin().get_beacon(beacon_id)["device_type"]


def test_a_beacon_is_registered_as_what_it_says(local):  # noqa: F811
    assert enter(local, LARGE) == "registered"
    assert registered(local) == LARGE
    assert enter(local, LARGE) == "updated"


def test_what_was_typed_before_is_corrected(local):  # noqa: F811
    local.admin().create_beacon("b1", "esp32c3")
    assert enter(local, LARGE) == "retyped"
    assert registered(local) == LARGE
    [entry] = local.admin().list_audit_entries(action="beacon.retyped")
    assert entry["reason"] == "said when provisioned"


def test_a_window_takes_the_clock_of_its_site(local):  # noqa: F811
    """Today's offset: the orchestrator says it again with offers, in the other half of the year."""
    local.admin().create_site("syd", tz="Australia/Sydney")
    local.admin().create_site("syd/a")
    registry = OrchestratorRegistry(local.admin())
    window = {"window": "03:00-05:00"}
    now = datetime.now(ZoneInfo("Australia/Sydney")).utcoffset()
    assert now is not None
    for site in ("syd", "syd/a"):
        found = registry.complete_offset({**window, "site": site})
        assert found["utc_off"] == now.total_seconds() // 60 in (600, 660)
    assert registry.complete_offset({**window, "site": "syd", "utc_off": 5})["utc_off"] == 5
    for config in (window, {**window, "site": "nowhere"}, {"site": "syd"}):
        assert registry.complete_offset(config) == config


def test_a_beacon_that_says_nothing_stays_as_it_is(local):  # noqa: F811
    with pytest.raises(InputError) as caught:
        enter(local, "")
    assert caught.value.code == "type_unsaid"
    local.admin().create_beacon("b1", LARGE)
    assert enter(local, "") == "updated"
    assert registered(local) == LARGE
