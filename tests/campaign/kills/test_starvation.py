"""The orchestrator without disk space, with a locked database, a damaged image, slow clients."""

import pytest

from beacon_ota.campaign.kills import run as server
from beacon_ota.campaign.runner import CampaignOptions


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["full", "locked", "damaged", "slow"])
def test_starvation(name, tmp_path):
    outcome = server.run_case(name, tmp_path, CampaignOptions())
    if outcome.word.startswith("skipped"):
        pytest.skip(outcome.word)
    assert not outcome.wrong, outcome
