"""The orchestrator as a process that is killed and halted."""

import pytest

from beacon_ota.campaign.kills import run as server
from beacon_ota.campaign.runner import CampaignOptions


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["kills:0:20", "halts:10"])
def test_kills_and_halts(name, tmp_path):
    outcome = server.run_case(name, tmp_path, CampaignOptions())
    if outcome.word.startswith("skipped"):
        pytest.skip(outcome.word)
    assert not outcome.wrong, outcome
