"""The invariants that hold after every update (pure)."""

from types import SimpleNamespace
from typing import Any

from beacon_ota.campaign.rig import invariants


def test_what_boots_is_a_whole_release():
    one, two = b"\xe9core" + b"one", b"\xe9core" + b"two"
    assert invariants.find_mixed_slots({"ota_0": one + b"\xff" * 9, "ota_1": two}, [one, two]) == []
    assert invariants.find_mixed_slots({}, [one]) == []
    for mixture in (b"\xe9core" + b"tne", one[:-1], b"", two):
        assert len(invariants.find_mixed_slots({"ota_0": one, "ota_1": mixture}, [one])) == 1


def test_an_update_keeps_what_is_right_and_fetches_what_is_nowhere():
    row = {"result": "success", "sectors_kept": 9, "bytes_fetched": 4096}

    def check(row, cost) -> list[str]:
        evidence: Any = SimpleNamespace(further=[row], cost=cost)
        return invariants.check_next_update(evidence)

    assert check(row, (9, 4096)) == []
    for cost in ((10, 4096), (9, 4095)):
        assert len(check(row, cost)) == 1
    assert check(row, None) == []
    assert len(check({**row, "sectors_kept": None, "bytes_fetched": None}, (9, 4096))) == 2
