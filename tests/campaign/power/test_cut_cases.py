"""Names of power cut cases."""

import pytest

from beacon_ota.campaign.power import cut_cases
from beacon_ota.campaign.power.cut_cases import CutCase
from beacon_ota.errors import UsageError


@pytest.mark.parametrize(
    "name", ["", "good-1", "good-1:x:after:0", "good-1:1:after:0+2", "a:1:b:c:d"]
)
def test_names_of_no_case(name):
    with pytest.raises(UsageError) as error:
        CutCase.parse(name)
    assert error.value.code == "case_name"


def test_names_say_everything():
    for case in (
        CutCase("good-1", 17, "inside", 2),
        CutCase("hang-0", 3, cut_cases.ANSWERED),
        CutCase("crash-0", 170, "after", 1, 31, "before", 999),
    ):
        assert CutCase.parse(case.name) == case
