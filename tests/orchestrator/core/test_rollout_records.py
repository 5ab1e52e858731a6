"""Rollouts as rows: a state is read as it was written; a transition leaves its three traces."""

from dataclasses import replace

from beacon_ota.orchestrator.core.rollout_records import (
    dump_state,
    load_state,
    record_transition,
    transition_row,
)
from beacon_ota.orchestrator.db.tables import audit, events
from beacon_ota.orchestrator.rollout.types import (
    Kind,
    RolloutState,
    Status,
    Transition,
    WaveState,
)

CHANGE = Transition(10.0, Kind.HALTED, 1, 2, "failure_share", "3 of 5 failed", "engine")


def test_a_state_is_read_as_it_was_written():
    state = RolloutState(5.0, (WaveState(), WaveState(2, 6.0, 7.0, 8.0, 9.0)))
    for one in (state, replace(state, status=Status.HALTED, since=4.0, reason="why", by="ada")):
        assert load_state(dump_state(one)) == one


def test_a_transition_is_a_row_an_audit_entry_and_an_event(local):
    row = transition_row("r1", CHANGE)
    assert row["kind"] == "halted" and (row["wave"], row["stage"]) == (1, 2)

    async def record():
        return await local.service.db.write(record_transition, "r1", CHANGE)

    event = local.call(record())
    assert event["kind"] == "rollout.halted" and event["data"]["detail"] == "3 of 5 failed"
    read = local.service.db.read_now
    assert read(events.list_latest, 1) == [event]
    (entry,) = (one for one in read(audit.list_entries) if one["target"] == "r1")
    assert (entry["actor"], entry["reason"]) == ("engine", "failure_share: 3 of 5 failed")
