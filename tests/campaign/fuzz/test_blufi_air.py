"""A short run of the fuzzer over the virtual radio."""

from beacon_ota.campaign.fuzz import blufi_air


def test_over_the_air():
    found = blufi_air.fuzz_over_air(3, seed=1)
    assert not found.wrong, found.wrong
    assert found.cases >= 1
