"""Scenarios: what comes with the program is right, what is wrong is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.errors import BeaconOtaError
from beacon_ota.orchestrator.rollout.plan_types import Release
from beacon_ota.orchestrator.rollout.plans import parse_plan as parse_plan
from beacon_ota.swarm import outcome_model, scenario

LEAST = {"beacons": 3, "for": "10s"}


def test_the_packaged_ones_can_be_read_and_their_plans_are_plans():
    names = scenario.packaged_names()
    assert {"steady", "rollout", "silent-brick", "power-cut", "flaky"} <= set(names)
    for name in names:
        found = scenario.load_scenario(name)
        assert found.about and found.name == name
        for drop in found.releases:
            plan = {**drop.plan, "waves": [{"name": "swarm", "tags": ["x"]}]}
            release = Release("a" * 24, drop.version, "esp32c3", "b" * 64)
            assert parse_plan(plan, rollout_id="c" * 24, release=release).waves


def test_a_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('beacons = 5\nfor = "1m"\n[air]\ncut = 0.5\n')
    found = scenario.load_scenario(str(file))
    assert (found.name, found.beacons, found.for_s, found.air.cut) == ("mine", 5, 60.0, 0.5)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"beacons": 0}, "number_range"),
        ({"beacons": True}, "field_type"),
        ({"for": "soon"}, "time_syntax"),
        ({"colour": "red"}, "field_unknown"),
        ({"air": {"cut": 2}}, "number_range"),
        ({"releases": [{"version": "one"}]}, "version_syntax"),
        ({"releases": [{}]}, "field_missing"),
        ({"releases": [{"version": "1.0.1", "size": 1}]}, "number_range"),
        (
            {"releases": [{"version": "1.0.1", "fates": {"silent": 0.6, "failed": 0.6}}]},
            "number_range",
        ),
        (
            {"releases": [{"version": "1.0.1", "plan": {"waves": [{"rest": True}]}}]},
            "field_unknown",
        ),
        ({"events": [{"at": "1s", "what": "flood"}]}, "event_unknown"),
        ({"expect": {"status": "great"}}, "status_unknown"),
    ],
)
def test_mistakes_are_named(changes, code):
    with pytest.raises(BeaconOtaError) as caught:
        scenario.parse_scenario({**LEAST, **changes}, "x")
    assert caught.value.code == code


def test_a_scenario_that_is_not_there():
    with pytest.raises(BeaconOtaError) as caught:
        scenario.load_scenario("no-such")
    assert caught.value.code == "scenario_unknown"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(["beacons", "for", "air", "releases", "events", "expect", "poll", "x"]),
        _VALUES,
    )
)
def test_any_table_is_a_scenario_or_a_named_error(data):
    try:
        scenario.parse_scenario(data, "x")
    except BeaconOtaError as error:
        assert error.code


def test_fates_come_in_their_shares_and_are_the_same_again():
    shares = outcome_model.OutcomeShares(failed=0.2, silent=0.1)
    drawn = [outcome_model.draw_outcome(shares, "seed", number, 1) for number in range(4000)]
    assert drawn == [
        outcome_model.draw_outcome(shares, "seed", number, 1) for number in range(4000)
    ]
    assert abs(drawn.count("failed") / 4000 - 0.2) < 0.03
    assert abs(drawn.count("silent") / 4000 - 0.1) < 0.03
    assert set(drawn) == {"failed", "silent", "success"}
    assert outcome_model.draw_outcome(outcome_model.OutcomeShares(dead=1.0), "any") == "dead"
