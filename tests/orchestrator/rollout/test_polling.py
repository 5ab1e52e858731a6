"""When beacons ask again: spread, bounded, the same for the same question."""

from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.orchestrator.rollout.polling import (
    FLOOR_S,
    PERIOD_S,
    SPREAD_S,
    hash_to_unit,
    poll_delay,
)
from tests.orchestrator.rollout.build import MONDAY


def test_the_same_question_has_the_same_answer():
    assert poll_delay("b1", MONDAY) == poll_delay("b1", MONDAY)
    assert hash_to_unit("a", 1) != hash_to_unit("a", 2)


def test_after_a_power_cut_the_second_poll_is_spread_over_the_period():
    moments = sorted((MONDAY + poll_delay(f"b{n}", MONDAY)) % PERIOD_S for n in range(1000))
    for tenth in range(10):
        low, high = tenth * PERIOD_S / 10, (tenth + 1) * PERIOD_S / 10
        assert 60 < sum(low <= moment < high for moment in moments) < 140


def test_a_beacon_keeps_its_own_moment():
    now = MONDAY
    moments = []
    for _ in range(5):
        now += poll_delay("b1", now) + 0.3  # the request takes its time
        moments.append(now % PERIOD_S)
    assert max(moments) - min(moments) < 2


def test_those_who_wait_for_a_window_do_not_all_come_at_once():
    opens = MONDAY + 100
    moments = [MONDAY + poll_delay(f"b{n}", MONDAY, until=opens) for n in range(600)]
    waiting = [moment for moment in moments if moment >= opens]
    assert len(waiting) > 400  # the others' own moment comes before
    assert max(waiting) - min(waiting) > SPREAD_S * 0.9


@given(
    st.text(max_size=64),
    st.floats(-1e6, 1e11),
    st.none() | st.floats(-1e6, 1e11),
    st.floats(0.01, 1e5),
)
def test_always_bounded(beacon_id, now, until, period_s):
    delay = poll_delay(beacon_id, now, until=until, period_s=period_s)
    assert min(FLOOR_S, period_s) <= delay <= 1.5 * period_s + SPREAD_S + 1e-3
