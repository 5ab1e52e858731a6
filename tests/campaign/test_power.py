"""Power cuts: every 20th state of every scenario; all of them in ``make campaign``."""

import pytest

from beacon_ota.campaign import mutants, power
from beacon_ota.campaign.kit import Shelf
from beacon_ota.campaign.runner import Options
from beacon_ota.errors import UsageError


@pytest.mark.timeout(900)
@pytest.mark.parametrize("scenario", power.SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_20th_cut(scenario, tmp_path):
    shelf = Shelf(tmp_path)
    power.prepare(shelf, [scenario])
    recording = power.recorded(shelf, scenario)
    cases, facts = power.distinct(recording)
    assert facts["operations"] > 100 and facts["cuts"] > 3 * facts["operations"]
    expected = {"good": "success", "crash": "rolled_back crash", "hang": "rolled_back watchdog"}
    assert facts["uncut"] == expected[scenario.kind]
    every = [*cases, *power.twice(cases, len(cases) // 6, 1)][::20]
    assert len(every) >= 15
    wrong = {case.name: power.examine(case, shelf, recording)[1] for case in every}
    assert not {name: found for name, found in wrong.items() if found}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [mutant.name for mutant in mutants.MUTANTS])
def test_broken_firmware_is_noticed(name, tmp_path):
    outcome = mutants.case(name, tmp_path, Options())
    assert not outcome.wrong and outcome.facts["as"]


@pytest.mark.parametrize(
    "name", ["", "good-1", "good-1:x:after:0", "good-1:1:after:0+2", "a:1:b:c:d"]
)
def test_names_of_no_case(name):
    with pytest.raises(UsageError) as error:
        power.Case.parse(name)
    assert error.value.code == "case_name"


def test_names_say_everything():
    for case in (
        power.Case("good-1", 17, "inside", 2),
        power.Case("hang-0", 3, power.ANSWERED),
        power.Case("crash-0", 170, "after", 1, 31, "before", 999),
    ):
        assert power.Case.parse(case.name) == case
