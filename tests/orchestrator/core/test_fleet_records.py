"""Rows of attempts, as decisions see them."""

import pytest

from beacon_ota.orchestrator.core.fleet_records import attempt_from_row, progress_of
from beacon_ota.orchestrator.rollout.types import Result
from tests.orchestrator.rollout.build import MONDAY

ROW = {
    "id": "a1",
    "beacon_id": "b1",
    "rollout_id": "r1",
    "firmware_id": "f1",
    "wave": 0,
    "stage": 1,
    "offered_at": MONDAY,
    "taken_at": MONDAY + 1,
    "rebooting_at": MONDAY + 2,
    "ended_at": MONDAY + 3,
    "result": "success",
    "failed_in": None,
    "mirror": None,
    "late_at": None,
    "late_result": None,
    "blamed_at": None,
}


@pytest.mark.parametrize(
    ("result", "late", "undone"),
    [
        ("success", "rolled_back", MONDAY + 9),
        ("success", "success", None),
        ("failed", "rolled_back", None),
    ],
)
def test_a_success_alone_is_undone_by_a_late_way_back(result, late, undone):
    row = {**ROW, "result": result, "late_result": late, "late_at": MONDAY + 9}
    attempt = attempt_from_row(row)
    assert attempt.result is Result(result)
    assert attempt.undone_at == undone


def test_progress_is_of_the_three_times_and_a_mirror_is_remote():
    attempt = attempt_from_row({**ROW, "result": None, "mirror": "m1"})
    assert attempt.result is None and attempt.is_remote
    assert tuple(progress_of(attempt)) == (MONDAY, MONDAY + 1, MONDAY + 2)
