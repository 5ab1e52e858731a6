"""What the campaign of halts takes for broken."""

import pytest

from beacon_ota.campaign.kills import halts
from beacon_ota.campaign.kills.halts import BeaconStep, HaltInterval, find_forbidden_steps

HELD = [HaltInterval(10.0, 12.0)]


@pytest.mark.parametrize("word", ["offered", "rebooting"])
def test_what_is_told_while_a_halt_holds_is_broken(word):
    assert len(find_forbidden_steps([BeaconStep(10.5, 10.6, "b", word)], HELD)) == 1


@pytest.mark.parametrize(
    "step",
    [
        BeaconStep(9.9, 10.1, "b", "offered"),  # asked before the halt was acknowledged
        BeaconStep(11.9, 12.1, "b", "offered"),  # answered after somebody asked to resume
        BeaconStep(10.5, 10.6, "b", "called off"),
        BeaconStep(10.5, 10.6, "b", "success"),  # it was rebooting already
    ],
)
def test_what_overlaps_or_ends_an_attempt_is_not(step):
    assert not find_forbidden_steps([step], HELD)


def test_without_postgresql_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(halts, "programs", lambda: None)
    word, wrong, _facts = halts.halt_repeatedly(tmp_path, None)  # type: ignore[arg-type]
    assert word.startswith("skipped") and not wrong
