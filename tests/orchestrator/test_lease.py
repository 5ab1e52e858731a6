"""A mirror's lease, with clocks that are set, stand still, and go back."""

import json

import pytest

from beacon_ota.orchestrator.lease import DAY_S, Lease
from tests.orchestrator.world import ManualClock

NOON = 1_900_000_000.0


class Times:
    """UTC as somebody sets it, and a clock that nobody sets."""

    def __init__(self):
        self.clock, self.steady = ManualClock(NOON), 1000.0

    def lease(self, span_s: float = DAY_S, kept: str | None = None) -> Lease:
        made = Lease(span_s, self.clock, lambda: self.steady)
        made.restore(kept)
        return made

    def go_on(self, seconds: float, *, utc: bool = True) -> None:
        self.steady += seconds
        self.clock.at += seconds if utc else 0.0


@pytest.fixture
def times():
    return Times()


def test_it_is_over_until_it_is_granted_and_after_its_span(times):
    lease = times.lease()
    assert lease.is_over() and lease.left_s() == 0 and lease.dump_if_due() is None
    lease.renew(times.clock.now())
    assert not lease.is_over() and lease.left_s() == DAY_S
    times.go_on(DAY_S)
    assert not lease.is_over()
    times.go_on(1)
    assert lease.is_over() and lease.left_s() == 0
    lease.renew(times.clock.now())
    assert not lease.is_over()


def test_it_runs_from_the_question_not_from_its_answer(times):
    lease = times.lease(600)
    asked = times.clock.now()
    times.go_on(30)
    lease.renew(asked)
    times.go_on(571)
    assert lease.is_over()


@pytest.mark.parametrize("back", [3600.0, 5 * DAY_S])
def test_a_clock_that_is_set_back_makes_it_no_longer(times, back):
    lease = times.lease()
    lease.renew(times.clock.now())
    times.go_on(DAY_S / 2)
    times.clock.at -= back
    times.go_on(DAY_S / 2 + 120)
    assert lease.is_over()


def test_a_clock_that_is_set_ahead_ends_it_and_right_again_does_not(times):
    lease = times.lease()
    lease.renew(times.clock.now())
    times.clock.at += 3 * DAY_S
    assert lease.is_over()
    times.clock.at -= 3 * DAY_S
    assert not lease.is_over()


def test_a_restart_does_not_begin_it_anew(times):
    lease = times.lease()
    lease.renew(times.clock.now())
    times.go_on(20 * 3600)
    kept = lease.dump_if_due()
    assert kept is not None and lease.dump_if_due() is None, "only now and then"
    times.go_on(3 * 3600)  # the process is away, or its machine
    times.steady = 5.0
    again = times.lease(kept=kept)
    assert not again.is_over() and again.left_s() <= 3600
    times.go_on(3700)
    assert again.is_over()


def test_a_restart_with_a_clock_behind_what_was_written_hands_out_nothing(times):
    lease = times.lease()
    lease.renew(times.clock.now())
    kept = lease.dump_if_due()
    times.clock.at, times.steady = 86400.0, 1.0  # a machine without a clock of its own
    again = times.lease(kept=kept)
    assert again.is_over() and again.left_s() == 0
    times.clock.at = NOON + 60  # somebody has told it the time
    assert not again.is_over()
    times.clock.at = 86400.0
    again.renew(times.clock.now())
    assert not again.is_over()


def test_whoever_is_given_up_hands_out_nothing_also_after_a_restart(times):
    lease = times.lease()
    lease.renew(times.clock.now())
    lease.dump_if_due()
    lease.revoke("token_wrong")
    assert lease.is_over()
    kept = lease.dump_if_due()
    assert kept is not None and json.loads(kept)["ended"] == "token_wrong"
    again = times.lease(kept=kept)
    assert again.is_over()
    again.renew(times.clock.now())
    assert not again.is_over()
