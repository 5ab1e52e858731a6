"""A short run of what campaigns do for long."""

import pytest

from beacon_ota.campaign.fuzz import blufi


def test_parsers():
    found = blufi.fuzz_parsers(2, seed=1)
    assert not found.wrong, found.wrong
    assert found.cases > 40 and found.steps > 150


def test_over_the_air():
    found = blufi.fuzz_over_air(3, seed=1)
    assert not found.wrong, found.wrong
    assert found.cases >= 1


def test_what_is_found_can_be_replayed(monkeypatch):
    """With a rule broken on purpose: the fuzzer finds it, and its words lead back to it."""
    monkeypatch.setattr(blufi, "_ACKS", 0)
    found = blufi.fuzz_parsers(0.1)
    assert found.wrong and found.wrong[0].startswith("AssertionError")
    case = found.wrong[0].rpartition(": ")[2]
    with pytest.raises(AssertionError):
        blufi.replay_case(case)
    monkeypatch.undo()
    blufi.replay_case(case)
