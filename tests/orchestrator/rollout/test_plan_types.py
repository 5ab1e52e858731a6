"""A plan's values: they have the defaults that the documentation promises, and never change."""

from dataclasses import FrozenInstanceError
from itertools import pairwise

import pytest

from beacon_ota.orchestrator.rollout.plan_types import (
    DAY,
    HOUR,
    LADDER,
    MINUTE,
    WEEK,
    Gate,
    Plan,
    Release,
)

RELEASE = Release("f1", "1.0.0", "esp32c3", "0" * 64)


def test_the_default_ladder_rises_to_everybody():
    assert all(one.share < other.share for one, other in pairwise(LADDER))
    assert LADDER[-1].share == 1.0


def test_a_gate_waits_for_silence_presence_and_patience_in_this_order():
    gate = Gate()
    assert gate.report_timeout_s == 30 * MINUTE
    assert gate.liveness_window_s == 6 * HOUR
    assert gate.stage_timeout_s == WEEK == 7 * DAY
    assert gate.max_consecutive_failures == 3


def test_a_plan_is_a_value():
    plan = Plan("r1", RELEASE)
    assert plan == Plan("r1", RELEASE) and hash(plan) == hash(Plan("r1", RELEASE))
    with pytest.raises(FrozenInstanceError):
        plan.required = True  # type: ignore[misc]
