"""Moves of a rollout: each is committed upon the revision it was decided upon, or not at all."""

import asyncio

import pytest

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.db.tables import rollouts
from beacon_ota.orchestrator.rollout import advance as moves
from tests.orchestrator.world import upload

CANARY = {"preset": "canary", "window": "00:00-24:00"}
EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}


def begun(local, tmp_path, plan) -> str:
    """Start a rollout over twenty beacons; its first stage is open."""
    release = upload(local.admin(), "2.0.0", tmp_path, channel="stable")["firmware_id"]
    rollout = local.admin().create_rollout(release, plan)["rollout_id"]
    local.step()
    return rollout


def test_a_move_decided_before_a_halt_elsewhere_does_not_undo_it(local, elsewhere, tmp_path):
    local.beacons(20)
    rollout = begun(local, tmp_path, CANARY)
    entry = local.service.fleet.rollouts[rollout]

    async def race() -> str:
        now, engine, db = local.clock.at, local.engine, local.service.db
        elsewhere.halt(rollout)
        # What the other process did is being read, as by a worker that follows …
        following = db.read_in_order(rollouts.get, rollout, then=engine.apply_row)
        # … while this one has decided upon what it knew, and waits for the database.
        made = moves.open_next_stage(
            entry.rollout, entry.state, engine.count_outcomes(entry, now), now, "engine"
        )
        async with engine.rollout_lock:
            committing = asyncio.ensure_future(engine.commit_transitions(entry, made))
            elsewhere.hold()
            await following
            elsewhere.let_go()
            with pytest.raises(UsageError) as caught:
                await committing
        return caught.value.code

    assert local.call(race()) == "rollout_moved"
    assert elsewhere.rollout(rollout)["status"] == "halted"
    assert [one["kind"] for one in elsewhere.transitions(rollout)][-1] == "halted"
    assert entry.state.status == "halted"  # it was read again


def test_who_resumes_has_to_have_seen_the_halt(local, elsewhere, tmp_path):
    """What widens a rollout is not decided again upon what others did; what stops it is."""
    rollout = begun(local, tmp_path, CANARY)
    local.admin().post_rollout_action(rollout, "pause")
    elsewhere.halt(rollout)
    with pytest.raises(UsageError) as caught:
        local.admin().post_rollout_action(rollout, "resume", "the pause is over")
    assert caught.value.code == "rollout_moved"
    assert elsewhere.rollout(rollout)["status"] == "halted"
    local.admin().post_rollout_action(rollout, "resume", "the halt is known")
    paused = moves.pause_rollout(
        local.service.fleet.rollouts[rollout].state, local.clock.at, "somebody"
    )
    state = moves.apply_transition(local.service.fleet.rollouts[rollout].state, paused[0])
    elsewhere.move(rollout, state)
    local.admin().post_rollout_action(rollout, "halt", "whatever it is")
    assert elsewhere.rollout(rollout)["status"] == "halted"


def test_a_release_that_was_withdrawn_elsewhere_is_not_rolled_out(local, elsewhere, tmp_path):
    release = upload(local.admin(), "2.0.0", tmp_path, channel="stable")["firmware_id"]
    elsewhere.execute("UPDATE firmwares SET state = 'deprecated'")
    with pytest.raises(UsageError) as caught:
        local.admin().create_rollout(release, EVERYBODY)
    assert caught.value.code == "firmware_state"
    assert not elsewhere.execute("SELECT id FROM rollouts")
