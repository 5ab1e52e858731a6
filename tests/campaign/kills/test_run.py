"""The orchestrator under fire: kills, halts, a full disk, a lock, a damaged image, slow clients."""

import pytest

from beacon_ota.campaign.kills import run as server
from beacon_ota.campaign.runner import CampaignOptions


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["kills:0:20", "halts:10", "full", "locked", "damaged", "slow"])
def test_under_fire(name, tmp_path):
    outcome = server.run_case(name, tmp_path, CampaignOptions())
    if outcome.word.startswith("skipped"):
        pytest.skip(outcome.word)
    assert not outcome.wrong, outcome
