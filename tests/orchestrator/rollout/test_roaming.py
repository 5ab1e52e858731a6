"""A beacon that left one orchestrator for another: what was given up of it by mistake."""

import pytest

from beacon_ota.orchestrator.rollout.roaming import MAX_CLOCK_DIFFERENCE_S, moved_on, row_of
from beacon_ota.orchestrator.rollout.types import Attempt, Result

AT = 1_900_000_000.0
GIVEN_UP = AT + 1800


def attempt(key: str, taken_at: float | None, ended_at: float | None = None, **more) -> Attempt:
    fields = {"beacon_id": "b", "firmware_id": "f", "rollout_id": "r", "wave": 0, "stage": 0}
    fields |= {"offered_at": taken_at or AT, "taken_at": taken_at, "ended_at": ended_at}
    return Attempt(id=key, **(fields | more))


LEFT = attempt("m", AT)


def is_left(other: Attempt) -> bool:
    return moved_on(row_of(LEFT), [row_of(LEFT), row_of(other)], GIVEN_UP)


def test_one_that_was_begun_later():
    assert is_left(attempt("a", AT + 1))
    assert not is_left(attempt("a", AT - 1))
    assert not is_left(attempt("a", None))
    assert not is_left(attempt("a", AT + 1, beacon_id="other"))
    assert not is_left(attempt("a", GIVEN_UP + 1))


def test_of_two_that_are_lost_one_is():
    pair = [row_of(attempt(key, AT, GIVEN_UP, result=Result.LOST)) for key in "am"]
    assert [moved_on(one, pair, GIVEN_UP) for one in pair] == [True, False]


@pytest.mark.parametrize("behind_s", [0, 45, 240])
def test_one_that_succeeded_by_a_clock_that_is_behind(behind_s):
    began, ended = AT - behind_s, AT - behind_s + 10
    assert is_left(attempt("a", began, ended, result=Result.SUCCESS))
    assert not is_left(attempt("a", began, ended, result=Result.FAILED))
    assert not is_left(attempt("a", began, ended, result=Result.SUCCESS, firmware_id="other"))
    assert not is_left(attempt("a", began, ended, result=Result.SUCCESS, beacon_id="other"))


def test_one_that_succeeded_long_before_or_went_back():
    assert not is_left(
        attempt("a", AT - 900, AT - MAX_CLOCK_DIFFERENCE_S - 1, result=Result.SUCCESS)
    )
    assert not is_left(attempt("a", AT - 20, AT - 10, result=Result.SUCCESS, undone_at=AT - 5))
    row = row_of(attempt("a", AT - 20, AT - 10, result=Result.SUCCESS))
    undone = {**row, "late_result": "rolled_back"}
    assert not moved_on(row_of(LEFT), [undone], GIVEN_UP)
