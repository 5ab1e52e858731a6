"""Offers and ends of attempts: made once, upon what is committed, and kept when they cannot be."""

import asyncio

import pytest

from beacon_ota.orchestrator.db.connection import StorageError
from beacon_ota.orchestrator.rollout.decide import decide
from beacon_ota.orchestrator.rollout.types import Result
from tests.orchestrator.world import upload

PLAN = {"preset": "all-at-once", "window": "00:00-24:00", "ladder": [{"share": 1}]}


def rollout_of(local, tmp_path) -> str:
    """Start a rollout at every beacon; return its id."""
    release = upload(local.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]
    order = {"firmware_id": release, "plan": PLAN}
    rollout = local.admin().call("POST", "/api/rollouts", json=order)["rollout_id"]
    local.step()
    return rollout


def decision_for(local, beacon):
    """Return the fleet's state of a beacon, and what is decided of it now."""
    fleet = local.service.fleet
    state = fleet.beacons[beacon.id]
    active = fleet.active_rollouts_for(state.beacon)
    return state, decide(active, state.beacon, local.clock.now(), place=fleet.place_of(state))


def test_a_beacon_that_asks_twice_at_once_gets_one_attempt(local, tmp_path):
    (beacon,) = local.beacons(1)
    beacon.poll()
    rollout_of(local, tmp_path)
    state, decision = decision_for(local, beacon)
    assert decision.offered

    async def ask_twice():
        attempts = local.service.attempts
        return await asyncio.gather(*(attempts.commit_offer(state, decision) for _ in range(2)))

    first, second = local.call(ask_twice())
    assert first is not None and first == second
    assert list(local.service.fleet.open_attempts) == [first.id]


def test_an_offer_at_a_rollout_that_was_moved_elsewhere_is_withdrawn(local, elsewhere, tmp_path):
    (beacon,) = local.beacons(1)
    beacon.poll()
    rollout = rollout_of(local, tmp_path)
    state, decision = decision_for(local, beacon)
    elsewhere.halt(rollout)
    assert local.call(local.service.attempts.commit_offer(state, decision)) is None
    assert not local.service.fleet.open_attempts and not state.attempts
    assert elsewhere.execute("SELECT id FROM attempts") == []


def test_an_end_that_the_database_does_not_take_is_kept_for_the_gates(local, tmp_path, monkeypatch):
    (beacon,) = local.beacons(1)
    beacon.poll()
    rollout_of(local, tmp_path)
    offer = beacon.offered()
    service = local.service
    attempt = service.fleet.open_attempts[offer["attempt_id"]]

    def refuse(*_given, **_more):
        raise StorageError("storage", "full")

    with monkeypatch.context() as patched:
        patched.setattr(service.db, "write", refuse)
        with pytest.raises(StorageError):
            local.call(service.attempts.conclude_attempt(attempt, Result.LOST))
    assert service.attempts.unrecorded == {attempt.id: Result.LOST}
    local.call(service.attempts.conclude_attempt(attempt, Result.LOST))
    assert not service.attempts.unrecorded and not service.fleet.open_attempts
