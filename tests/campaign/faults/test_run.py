"""Some cases of the fault matrix; all of them in ``make campaign``."""

import pytest

from beacon_ota.campaign.faults import matrix, releases
from beacon_ota.campaign.faults import run as faults
from beacon_ota.campaign.faults.matrix import FaultCase
from beacon_ota.campaign.rig.builds import ReleaseStore
from beacon_ota.campaign.runner import CampaignOptions
from beacon_ota.wire.report import FINAL

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
    releases.prepare_releases(ReleaseStore(tmp_path), (FaultCase.parse(name).image.name,))
    outcome = faults.run_case(name, tmp_path, CampaignOptions())
    assert not outcome.wrong, outcome


@pytest.mark.parametrize("network", [value.name for value in matrix.NETWORK])
def test_unsigned_answers_leave_the_beacon_a_try(network):
    """Reports that are lost without a network count among the tries of the final report."""
    case = FaultCase.parse(f"{network}+foreign-final+ok+ok")
    lost = faults.LOST_REPORTS_MAX if network == "wrong-network" else 0
    for word in FINAL:
        assert 0 < faults.foreign_answers(case, word) + lost < faults.FINAL_REPORT_TRIES
