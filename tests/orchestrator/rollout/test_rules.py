"""Buckets, stages, and who belongs to which wave."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.errors import InputError
from beacon_ota.orchestrator.rollout.plan_types import LADDER, Plan, Release, Selector, Wave
from beacon_ota.orchestrator.rollout.rules import Rollout, bucket_of, plan_covers, stage_of
from beacon_ota.orchestrator.rollout.types import Window
from tests.orchestrator.rollout.build import NEW, NEWER, beacon, fleet, rollout


def test_the_bucket_is_the_contract_s():
    digest = hashlib.sha256(b"r1\nb1").digest()
    assert bucket_of("r1", "b1") == pytest.approx(int.from_bytes(digest[:8], "big") / 2**64)
    assert bucket_of("r1", "b1") != bucket_of("r2", "b1")


def test_the_highest_bucket_is_below_one():
    # As a float, (2^64 - 1) / 2^64 is 1.0: below no share at all.
    assert ((2**64 - 1) >> 11) / 2**53 < 1.0
    assert stage_of(LADDER, ((2**64 - 1) >> 11) / 2**53) == 2


def test_stages_by_share():
    assert [stage_of(LADDER, share) for share in (0.0, 0.0999, 0.1, 0.5499, 0.55, 0.9999)] == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]


def test_compiled_stage_agrees_with_the_bucket():
    made = rollout()
    for one in fleet(2000):
        assert made.stage_of(one.id, 0) == stage_of(LADDER, bucket_of("r1", one.id))


def test_shares_come_out_as_ordered():
    made = rollout()
    counts = [0, 0, 0]
    for one in fleet(20_000):
        counts[made.stage_of(one.id, 0)] += 1
    # Ten percent, half of what remains, the other half; four sigmas.
    for count, share in zip(counts, (0.10, 0.45, 0.45), strict=True):
        assert abs(count / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5


def test_waves_by_site_and_tags():
    made = rollout(
        waves=[
            {"name": "pilot", "sites": ["hq/a"], "tags": ["lobby", "public"], "without": ["old"]},
            {"name": "b", "sites": ["hq/b/2"]},
            {"name": "rest", "rest": True},
        ]
    )
    both = frozenset({"lobby", "public", "x"})
    assert made.wave_of(beacon(site="hq/a/1", tags=both)) == 0
    assert made.wave_of(beacon(site="hq/a/1", tags=both | {"old"})) == 2
    assert made.wave_of(beacon(site="hq/a/1", tags=frozenset({"lobby"}))) == 2
    assert made.wave_of(beacon(site="hq/ab/1", tags=both)) == 2
    assert made.wave_of(beacon(site="hq/b/2/7")) == 1
    assert made.wave_of(beacon(site="hq/b/22")) == 2
    assert made.wave_of(beacon(site="")) == 2


def test_no_wave_is_no_wave():
    made = rollout(waves=[{"name": "b", "sites": ["hq/b"]}])
    assert made.wave_of(beacon(site="hq/a")) is None


def test_the_rest_may_stand_anywhere():
    made = rollout(
        waves=[{"name": "rest", "rest": True}, {"name": "b", "sites": ["hq/b"], "opens": "1d"}]
    )
    assert made.wave_of(beacon(site="hq/b/1")) == 1
    assert made.wave_of(beacon(site="hq/a/1")) == 0


def test_the_plan_s_window_in_each_zone():
    made = rollout(window="01:00-02:00")
    assert made.window_in(Window(180, 300, "Asia/Tokyo")) == Window(60, 120, "Asia/Tokyo")
    assert rollout().window_in(Window(1, 2, "UTC")) == Window(1, 2, "UTC")


def test_a_version_that_is_none():
    with pytest.raises(InputError) as error:
        Rollout(Plan("r1", Release("f", "1.2", "esp32c3", "c")))
    assert error.value.code == "version_syntax"


def test_memory_stays_bounded():
    made = rollout(waves=[{"name": "b", "sites": ["hq/b"]}, {"name": "rest", "rest": True}])
    for n in range(10_000):
        made.wave_of(beacon(site=f"hq/b/{n}"))
        made.window_in(Window(n % 1440, 1, "UTC"))
    assert len(made._waves) <= 4096


# ---- a newer rollout for everybody that an older one is for ----

_NAMES = st.sampled_from(["t1", "t2", "t3"])
_PATHS = st.sampled_from(["hq", "hq/a", "hq/a/1", "hq/b", "lab"])
_SELECTORS = st.builds(
    Selector,
    st.lists(_PATHS, max_size=2, unique=True).map(tuple),
    st.lists(_NAMES, max_size=2, unique=True).map(tuple),
    st.lists(_NAMES, max_size=2, unique=True).map(tuple),
) | st.just(Selector(rest=True))


def _plan(selectors, rollout_id="r1", release=NEW, required=False) -> Plan:
    waves = tuple(Wave(f"w{n}", selector) for n, selector in enumerate(selectors))
    return Plan(rollout_id, release, waves, required=required)


@given(
    st.lists(_SELECTORS, min_size=1, max_size=3),
    st.lists(_SELECTORS, min_size=1, max_size=3),
    st.sampled_from(["", "hq", "hq/a/1/2", "hq/b", "lab/x", "else"]),
    st.frozensets(_NAMES),
)
def test_what_covers_selects_everybody(newer, older, site, tags):
    one = beacon(site=site, tags=tags)
    if (
        plan_covers(_plan(newer, "r2"), _plan(older))
        and Rollout(_plan(older)).wave_of(one) is not None
    ):
        assert Rollout(_plan(newer, "r2")).wave_of(one) is not None


def test_what_covers_and_what_does_not():
    everybody, building = [Selector(rest=True)], [Selector(("hq/a",))]
    floor = [Selector(("hq/a/1",), ("t1",), ("t2",))]
    for wide, narrow in ((everybody, building), (everybody, everybody), (building, floor)):
        assert plan_covers(_plan(wide), _plan(narrow))
    for wide, narrow in ((building, everybody), (floor, building), (building, [Selector()])):
        assert not plan_covers(_plan(wide), _plan(narrow))
    assert plan_covers(_plan(everybody, release=NEWER), _plan(everybody))
    assert not plan_covers(_plan(everybody), _plan(everybody, release=NEWER))  # an older version
    assert not plan_covers(_plan(everybody), _plan(everybody, required=True))  # whatever the hour
    assert plan_covers(_plan(everybody, required=True), _plan(everybody))
