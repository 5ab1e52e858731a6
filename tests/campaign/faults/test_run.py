"""The fault matrix: its rules, and some of its cases; all of them in ``make campaign``."""

from itertools import combinations, product

import pytest

from beacon_ota.campaign.faults import matrix
from beacon_ota.campaign.faults import run as faults
from beacon_ota.campaign.faults.matrix import DIMENSIONS, FaultCase
from beacon_ota.campaign.rig.builds import ReleaseStore
from beacon_ota.campaign.runner import CampaignOptions

# One for each way in which an attempt ends, and the ones that found something.
CASES = (
    "wifi-off+etag+ok+ok",
    "names-gone+ok+stuck+ok",
    "names-gone+foreign-download+nvs-fills+ok",
    "wrong-network+other+ok+ok",
    "loss+503+ok+self-test",
    "ok+ok+ok+valid-then-dies",
    "ok+ok+ok+offline",
    "ok+404+nvs-full+ok",
    "stall+ok+nvs-worn+task",
    "ok+ok+nvs-fills+ok",
    "ok+ok+nvs-fills+self-test",
    "ok+ok+nvs-fills+hang",
    "ok+ok+nvs-fills+valid-then-dies",
    # A stranger at the orchestrator's address.
    "ok+foreign-poll+ok+ok",
    "ok+foreign-download+ok+ok",
    "ok+foreign-verifying+ok+ok",
    "ok+foreign-trial+ok+ok",
    "ok+foreign-final+ok+ok",
    "ok+foreign-final+ok+import",
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CASES)
def test_cases(name, tmp_path):
    faults.prepare_releases(ReleaseStore(tmp_path), (FaultCase.parse(name).image.name,))
    outcome = faults.run_case(name, tmp_path, CampaignOptions())
    assert not outcome.wrong, outcome


@pytest.mark.parametrize("seed", range(5))
def test_every_pair_meets(seed):
    mixes = matrix.pairwise_cases(seed)
    met = {
        pair
        for mix in mixes
        for pair in combinations(
            [(name, v.name) for name, v in zip(DIMENSIONS, mix.values, strict=True)], 2
        )
    }
    for a, b in combinations(DIMENSIONS, 2):
        for one, two in product(DIMENSIONS[a], DIMENSIONS[b]):
            assert ((a, one.name), (b, two.name)) in met
    assert len(mixes) <= 1.5 * len(matrix.SERVER) * len(matrix.IMAGE)
    assert mixes == matrix.pairwise_cases(seed)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("ok+ok+ok+ok", ["success"]),
        ("stall+restart+ok+ok", ["success"]),
        ("ok+foreign-trial+ok+ok", ["success"]),
        ("ok+foreign-download+erase+ok", ["failed flash/erase", "failed flash/no_slot", "success"]),
        ("ok+foreign-final+ok+import", ["rolled_back boot/crash"]),
        ("ok+404+erase+ok", ["failed download/http", "success"]),
        ("ok+etag+flip+ok", ["failed flash/readback", "failed flash/no_slot", "success"]),
        ("ok+other+stuck+ok", ["failed flash/readback", "failed flash/no_slot", "success"]),
        ("ok+ok+ok+offline", ["rolled_back boot/self_test"] * 3),
        ("ok+ok+ok+hang", ["rolled_back boot/watchdog"]),
        ("ok+other+ok+hang", ["failed verify/checksum", "rolled_back boot/watchdog"]),
        (
            "ok+ok+program+hang",
            ["failed flash/write", "failed flash/no_slot", "rolled_back boot/watchdog"],
        ),
        ("stall+404+nvs-full+ok", ["failed flash/write", "success"]),
        ("ok+ok+nvs-worn+task", ["failed flash/write", "rolled_back boot/crash"]),
        ("ok+ok+nvs-fills+ok", ["success"]),
        ("ok+404+nvs-fills+ok", ["failed download/http", "success"]),
        (
            "ok+ok+nvs-fills+self-test",
            ["rolled_back boot/not_booted", "rolled_back boot/self_test"],
        ),
        ("ok+ok+nvs-fills+hang", ["rolled_back boot/watchdog"]),
        ("ok+ok+nvs-fills+valid-then-dies", ["rolled_back boot/crash"]),
    ],
)
def test_what_has_to_follow(name, ends):
    found = matrix.expected_ends(FaultCase.parse(name))
    assert [f"{result} {stage}/{code}".removesuffix(" /") for result, stage, code in found] == ends
