"""``campaign``: what a run says while it is at it."""

import pytest

from beacon_ota.campaign.runner import CaseOutcome
from beacon_ota.cli.campaign import CaseProgress


@pytest.mark.parametrize("total", [1, 3, 20, 45])
def test_where_there_is_no_terminal_a_line_tells_of_each_twentieth(capsys, total):
    with CaseProgress("power", total, quiet=False) as count:
        for number in range(total):
            count(
                CaseOutcome(f"case {number}", "g", "w", ["a slot was empty"] if not number else [])
            )
    lines = [line for line in capsys.readouterr().err.splitlines() if " cases, " in line]
    assert len(lines) == min(total, 20)
    assert lines[-1] == f"power: {total} of {total} cases, 1 wrong"


def test_what_is_quiet_says_nothing(capsys):
    with CaseProgress("power", 20, quiet=True) as count:
        for number in range(20):
            count(CaseOutcome(f"case {number}", "g", "w", []))
    assert capsys.readouterr().err == ""
