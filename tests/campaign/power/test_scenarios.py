"""The scenarios of the power campaign: versions, releases, and the scenario of a case."""

import pytest

from beacon_ota.campaign.power import scenarios
from beacon_ota.campaign.power.cut_cases import CutCase
from beacon_ota.errors import UsageError


def test_every_scenario_is_found_by_the_name_in_its_cases():
    every = (*scenarios.SCENARIOS, scenarios.RESCUE, *scenarios.ADAPTIVE, *scenarios.REAL)
    assert len({scenario.name for scenario in every}) == len(every)
    for scenario in every:
        assert scenarios.scenario_of(CutCase(scenario.name, 0, "before")) is scenario
    with pytest.raises(UsageError) as error:
        scenarios.scenario_of(CutCase("good-2", 0, "before"))
    assert error.value.code == "case_name"


@pytest.mark.parametrize(
    "scenario",
    (*scenarios.SCENARIOS, *scenarios.ADAPTIVE),
    ids=lambda scenario: scenario.name,
)
def test_an_update_goes_from_one_version_to_a_higher_one(scenario):
    first, second, third = scenario.versions
    assert first < second < third
    assert set(scenario.image_names) == {second, third}
    assert set(scenario.image_names.values()) < scenario.release_names
    assert scenario.running_name in scenario.release_names


def test_releases_with_a_real_core_have_names_of_their_own():
    real = set().union(*(scenario.release_names for scenario in scenarios.REAL))
    other = set().union(*(scenario.release_names for scenario in scenarios.SCENARIOS))
    assert real and not real & other
