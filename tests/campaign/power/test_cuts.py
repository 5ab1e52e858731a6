"""Power cuts: every 30th state of every scenario; all of them in ``make campaign``."""

import pytest

from beacon_ota.campaign.power import cut_cases, cuts, scenarios
from beacon_ota.campaign.rig.builds import ReleaseStore


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "scenario",
    (*scenarios.SCENARIOS, *scenarios.ADAPTIVE),
    ids=lambda scenario: scenario.name,
)
def test_every_30th_cut(scenario, tmp_path):
    shelf = ReleaseStore(tmp_path)
    scenarios.prepare_releases(shelf, [scenario])
    recording = scenarios.load_recording(shelf, scenario)
    cases, facts = cut_cases.distinct_cuts(recording)
    assert facts["operations"] > 100 and facts["cuts"] > 3 * facts["operations"]
    expected = {"good": "success", "crash": "rolled_back crash", "hang": "rolled_back watchdog"}
    assert facts["uncut"] == expected[scenario.kind]
    every = [*cases, *cut_cases.choose_double_cuts(cases, len(cases) // 6, 1)][::30]
    assert len(every) >= 15
    wrong = {case.name: cuts.run_until_certain(case, shelf, recording)[1] for case in every}
    assert not {name: found for name, found in wrong.items() if found}
