"""What the layout of releases promises, over this repository's own history."""

import pytest

from beacon_ota.errors import InputError
from tests.bench import layouts


@pytest.fixture(scope="module")
def costs():
    try:
        found = layouts.measure_all()
    except InputError:
        pytest.skip("no history of the app in this checkout")
    return {(one.layout, one.apart): one for one in found}


def test_five_commits_cost_ten_sectors_before_everything_was_renamed(costs):
    assert costs["like", 5].before <= 10 < 20 < costs["littlefs", 5].before


def test_one_commit_costs_three(costs):
    assert costs["like", 1].before <= 3 < 9 <= costs["littlefs", 1].before


def test_staying_in_place_takes_two_sectors_at_most(costs):
    for apart in (1, 5):
        assert costs["like", apart].sectors <= costs["littlefs", apart].sectors + 2


def test_sectors_are_counted_that_the_earlier_image_does_not_have():
    before = bytes(4096) + b"\x01" * 4096
    assert layouts.count_differing(before, before) == 0
    assert layouts.count_differing(before, bytes(8192) + b"\x02" * 100) == 2
    assert layouts.count_differing(before, bytes(4096)) == 0
