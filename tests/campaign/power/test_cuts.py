"""Power cuts: every 30th state of every scenario; all of them in ``make campaign``."""

import pytest

from beacon_ota.campaign.power import cuts, mutants
from beacon_ota.campaign.rig import builds, invariants
from beacon_ota.campaign.rig.builds import ReleaseStore
from beacon_ota.campaign.runner import CampaignOptions
from beacon_ota.errors import UsageError
from beacon_ota.images import boards


@pytest.mark.timeout(900)
@pytest.mark.parametrize("scenario", cuts.SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_30th_cut(scenario, tmp_path):
    shelf = ReleaseStore(tmp_path)
    cuts.prepare_releases(shelf, [scenario])
    recording = cuts.load_recording(shelf, scenario)
    cases, facts = cuts.distinct_cuts(recording)
    assert facts["operations"] > 100 and facts["cuts"] > 3 * facts["operations"]
    expected = {"good": "success", "crash": "rolled_back crash", "hang": "rolled_back watchdog"}
    assert facts["uncut"] == expected[scenario.kind]
    every = [*cases, *cuts.choose_double_cuts(cases, len(cases) // 6, 1)][::30]
    assert len(every) >= 15
    wrong = {case.name: cuts.run_until_certain(case, shelf, recording)[1] for case in every}
    assert not {name: found for name, found in wrong.items() if found}


@pytest.mark.timeout(900)
def test_crashes_after_a_cut(tmp_path):
    """Stage 0 looks for another release than the one that crashes, and finds no half of one."""
    shelf = ReleaseStore(tmp_path)
    cuts.prepare_releases(shelf, [cuts.RESCUE])
    recording = cuts.load_recording(shelf, cuts.RESCUE)
    cases, facts = cuts.distinct_cuts(recording)
    assert facts["uncut"] == "success"
    slot = boards.load_board(builds.DEVICE).table.slots[0]
    writing = [
        case
        for case in cases
        if case.when != cuts.ANSWERED
        and slot.offset <= recording.ops[case.number].offset < slot.end
    ]
    assert len(writing) > 60
    every = [cases[0], *writing[::10], *writing[-2:]]
    wrong = {case.name: cuts.run_until_certain(case, shelf, recording)[1] for case in every}
    assert not {name: found for name, found in wrong.items() if found}


def test_what_boots_is_a_whole_release():
    one, two = b"\xe9core" + b"one", b"\xe9core" + b"two"
    assert invariants.find_mixed_slots({"ota_0": one + b"\xff" * 9, "ota_1": two}, [one, two]) == []
    assert invariants.find_mixed_slots({}, [one]) == []
    for mixture in (b"\xe9core" + b"tne", one[:-1], b"", two):
        assert len(invariants.find_mixed_slots({"ota_0": one, "ota_1": mixture}, [one])) == 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [mutant.name for mutant in mutants.MUTANTS])
def test_broken_firmware_is_noticed(name, tmp_path):
    outcome = mutants.run_case(name, tmp_path, CampaignOptions())
    assert not outcome.wrong and outcome.facts["as"]


@pytest.mark.parametrize(
    "name", ["", "good-1", "good-1:x:after:0", "good-1:1:after:0+2", "a:1:b:c:d"]
)
def test_names_of_no_case(name):
    with pytest.raises(UsageError) as error:
        cuts.CutCase.parse(name)
    assert error.value.code == "case_name"


def test_names_say_everything():
    for case in (
        cuts.CutCase("good-1", 17, "inside", 2),
        cuts.CutCase("hang-0", 3, cuts.ANSWERED),
        cuts.CutCase("crash-0", 170, "after", 1, 31, "before", 999),
    ):
        assert cuts.CutCase.parse(case.name) == case
