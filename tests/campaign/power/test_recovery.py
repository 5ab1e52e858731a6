"""The recovery after a cut when the running release crashes: stage 0 looks for another one."""

import pytest

from beacon_ota.campaign.power import cut_cases, cuts, scenarios
from beacon_ota.campaign.rig import builds
from beacon_ota.campaign.rig.builds import ReleaseStore
from beacon_ota.images import boards


@pytest.mark.timeout(900)
def test_crashes_after_a_cut(tmp_path):
    """Stage 0 looks for another release than the one that crashes, and finds no half of one."""
    shelf = ReleaseStore(tmp_path)
    scenarios.prepare_releases(shelf, [scenarios.RESCUE])
    recording = scenarios.load_recording(shelf, scenarios.RESCUE)
    cases, facts = cut_cases.distinct_cuts(recording)
    assert facts["uncut"] == "success"
    slot = boards.load_board(builds.DEVICE).table.slots[0]
    writing = [
        case
        for case in cases
        if case.when != cut_cases.ANSWERED
        and slot.offset <= recording.ops[case.number].offset < slot.end
    ]
    assert len(writing) > 60
    every = [cases[0], *writing[::10], *writing[-2:]]
    wrong = {case.name: cuts.run_until_certain(case, shelf, recording)[1] for case in every}
    assert not {name: found for name, found in wrong.items() if found}
