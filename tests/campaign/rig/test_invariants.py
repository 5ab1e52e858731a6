"""The invariants that hold after every update (pure)."""

from beacon_ota.campaign.rig import invariants


def test_what_boots_is_a_whole_release():
    one, two = b"\xe9core" + b"one", b"\xe9core" + b"two"
    assert invariants.find_mixed_slots({"ota_0": one + b"\xff" * 9, "ota_1": two}, [one, two]) == []
    assert invariants.find_mixed_slots({}, [one]) == []
    for mixture in (b"\xe9core" + b"tne", one[:-1], b"", two):
        assert len(invariants.find_mixed_slots({"ota_0": one, "ota_1": mixture}, [one])) == 1
