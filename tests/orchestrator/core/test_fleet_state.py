"""The view: what decisions need, in memory."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.orchestrator.core.fleet_state import FleetState
from beacon_ota.orchestrator.core.replay import ReplayGuard
from beacon_ota.orchestrator.rollout.advance import initial_state
from beacon_ota.orchestrator.rollout.decide import decide
from beacon_ota.orchestrator.rollout.types import Status
from tests.orchestrator.rollout.build import ANY_TIME, MONDAY, NEW, NEWER, beacon, live, rollout

_WAVES = [
    {"name": "a", "sites": ["hq/a"]},
    {"name": "b", "sites": ["hq/b"]},
    {"name": "tag", "tags": ["t"]},
    {"name": "all", "rest": True},
]
_ROLLOUTS = st.lists(
    st.tuples(
        st.sampled_from([NEW, NEWER]),
        st.sampled_from(_WAVES),
        st.sampled_from(list(Status)),
        st.booleans(),
    ),
    max_size=8,
)


def empty_view() -> FleetState:
    with tempfile.TemporaryDirectory() as folder:
        return FleetState(ReplayGuard(Path(folder) / "replays", MONDAY, fresh=True))


def release_row(release) -> dict:
    return {
        "id": release.firmware_id,
        "version": release.version,
        "checksum": release.checksum,
        "size": 1,
        "description": "",
        "manifest": None,
        "damaged_at": None,
        "state": "stable",
    }


@given(
    _ROLLOUTS,
    st.sampled_from(["hq/a/1", "hq/b", "lab"]),
    st.frozensets(st.just("t")),
    st.sampled_from(["1.2.2", "1.2.3", "1.3.0"]),
)
def test_a_beacon_is_told_the_same_by_those_that_select_it_as_by_all(made, site, tags, version):
    view = empty_view()
    for release in (NEW, NEWER):
        view.put_release(release_row(release))
    for number, (release, wave, status, required) in enumerate(made):
        one = rollout(f"r{number}", release, waves=[wave], required=required)
        state = (
            live(one, status).state
            if status is not Status.SCHEDULED
            else initial_state(one, MONDAY)
        )
        view.put_rollout(one, state, 0, float(number))
    facts = beacon(version=version, site=site, tags=tags)
    for retired in (False, True):
        some, every = view.active_rollouts_for(facts), view.active_rollouts("esp32c3")
        assert set(map(id, some)) <= set(map(id, every))
        now = MONDAY + 60
        assert decide(some, facts, now, place=ANY_TIME) == decide(every, facts, now, place=ANY_TIME)
        if made and not retired:  # what it remembers of a place follows
            view.retire_rollout(f"r{len(made) - 1}")
