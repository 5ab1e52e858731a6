"""Any plan that can be written is read back the same; anything else is a named error."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_ota.errors import InputError
from beacon_ota.orchestrator.rollout.plan_types import (
    Base,
    Gate,
    Opening,
    Plan,
    Retry,
    Selector,
    Stage,
    Wave,
)
from beacon_ota.orchestrator.rollout.plans import FAILURE_STAGES, dump_plan, parse_plan
from tests.orchestrator.rollout.build import NEW

SECONDS = st.one_of(
    st.integers(0, 10**8).map(float), st.floats(0, 10**8, allow_nan=False, allow_subnormal=False)
)
POSITIVE = SECONDS.filter(lambda seconds: seconds > 0)
SHARES = st.floats(0, 1)
COUNTS = st.integers(1, 1_000_000)
GATES = st.builds(
    Gate,
    COUNTS,
    SHARES,
    SHARES,
    COUNTS,
    COUNTS,
    POSITIVE,
    POSITIVE,
    POSITIVE,
    st.lists(st.sampled_from(FAILURE_STAGES), unique=True).map(tuple),
)


@st.composite
def ladders(draw):
    shares = draw(st.lists(st.floats(0.001, 0.999), max_size=5, unique=True))
    return tuple(Stage(share, draw(SECONDS)) for share in [*sorted(shares), 1.0])


@st.composite
def openings(draw):
    base = draw(st.sampled_from(Base))
    if base is Base.TIME:
        return Opening(base, float(draw(st.integers(0, 4 * 10**9))))
    return Opening(base, draw(SECONDS))


@st.composite
def waves(draw):
    """Waves that cannot overlap: sites of their own, and the rest."""
    count = draw(st.integers(0, 4))
    tags = st.lists(st.sampled_from("abc"), max_size=2, unique=True).map(tuple)
    made = [
        Wave(
            f"wave {n}",
            Selector((f"hq/{n}", f"depot/{n}"), draw(tags), ("z",)),
            draw(openings()),
            draw(st.none() | ladders()),
            draw(st.none() | GATES),
        )
        for n in range(count)
    ]
    return (*made, Wave("rest", Selector(rest=True), draw(openings())))


PLANS = st.builds(
    Plan,
    st.just("r1"),
    st.just(NEW),
    waves(),
    ladders(),
    GATES,
    st.builds(Retry, COUNTS, st.lists(SECONDS, min_size=1, max_size=6).map(tuple)),
    st.booleans(),
    st.none() | st.sampled_from(["00:00-24:00", "22:00-01:30"]),
    st.none() | COUNTS,
    POSITIVE,
)


@settings(max_examples=150, deadline=None)
@given(PLANS)
def test_round_trip_through_json(plan):
    assert parse_plan(json.loads(json.dumps(dump_plan(plan)))) == plan


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = [
    "preset",
    "required",
    "window",
    "concurrency",
    "offer",
    "retry",
    "gate",
    "ladder",
    "waves",
]
FIELDS += ["buildings", "every", "rollout_id", "release"]


@settings(max_examples=150, deadline=None)
@given(JUNK | st.dictionaries(st.sampled_from(FIELDS), JUNK))
def test_junk_is_a_named_error_or_a_plan(data):
    try:
        plan = parse_plan(data, rollout_id="r1", release=NEW)
    except InputError as error:
        assert error.code and len(str(error.as_dict())) < 2000
    else:
        assert parse_plan(dump_plan(plan)) == plan


@st.composite
def damaged(draw):
    """A good plan with one field somewhere replaced."""
    data = json.loads(json.dumps(dump_plan(draw(PLANS))))
    spots = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            spots.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(data)
    node, key = draw(st.sampled_from(spots))
    node[key] = draw(JUNK)
    return data


@settings(max_examples=150, deadline=None)
@given(damaged())
def test_one_bad_field_is_a_named_error_or_still_a_plan(data):
    try:
        plan = parse_plan(data)
    except InputError as error:
        assert error.code
    else:
        assert parse_plan(dump_plan(plan)) == plan
