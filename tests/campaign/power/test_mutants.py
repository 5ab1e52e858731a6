"""The power campaign notices firmware that was broken on purpose."""

import pytest

from beacon_ota.campaign.power import mutants
from beacon_ota.campaign.runner import CampaignOptions


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [mutant.name for mutant in mutants.MUTANTS])
def test_broken_firmware_is_noticed(name, tmp_path):
    outcome = mutants.run_case(name, tmp_path, CampaignOptions())
    assert not outcome.wrong and outcome.facts["as"]
