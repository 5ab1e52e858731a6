"""Rollouts as rows: state as JSON, transitions with their audit entries and events, refusals."""

import dataclasses
import json

from sqlalchemy import Connection

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.db.tables import (
    Fields,
    audit,
    events,
    firmwares,
    rollouts,
)
from beacon_ota.orchestrator.rollout.types import (
    RolloutState,
    Status,
    Transition,
    WaveState,
)


def insert_rollout(conn: Connection, row: Fields) -> Fields:
    """Store a rollout, and return its row.

    Raises:
        UsageError: ``firmware_state``, and those of ``rollouts.add``.
    """
    firmware = firmwares.get(conn, row["firmware_id"])
    if firmware is None or firmwares.effective_state(firmware) == "deprecated":
        raise release_withdrawn(None if firmware is None else firmware["state"])
    return rollouts.add(conn, row)


def rollout_moved() -> UsageError:
    """Return the refusal to move a rollout that has changed since the move was decided."""
    return UsageError(
        "rollout_moved", "the rollout has just been moved by somebody else; look again"
    )


def release_withdrawn(state: str | None) -> UsageError:
    """Return the refusal to roll out a release that was withdrawn."""
    return UsageError(
        "firmware_state",
        "a release that was withdrawn cannot be rolled out",
        found=state,
        expected=["testing", "stable"],
    )


def dump_state(state: RolloutState) -> str:
    """Return a state as JSON."""
    return json.dumps(dataclasses.asdict(state))


def load_state(text: str) -> RolloutState:
    """Return a state from JSON."""
    fields = json.loads(text)
    fields["waves"] = tuple(WaveState(**wave) for wave in fields["waves"])
    fields["status"] = Status(fields["status"])
    return RolloutState(**fields)


def transition_row(rollout_id: str, change: Transition) -> Fields:
    return {
        "rollout_id": rollout_id,
        "at": change.at,
        "kind": change.kind.value,
        "wave": change.wave,
        "stage": change.stage,
        "reason": change.reason,
        "detail": change.detail,
        "actor": change.by,
    }


def record_transition(conn: Connection, rollout_id: str, change: Transition) -> Fields:
    """Record a transition in the audit log and among the events; return the event."""
    kind = f"rollout.{change.kind.value}"
    data = {
        name: value
        for name, value in (("wave", change.wave), ("stage", change.stage))
        if value is not None
    }
    reason = ": ".join(filter(None, (change.reason, change.detail)))
    audit.append(conn, change.at, change.by, kind, rollout_id, reason, data)
    told = {"by": change.by, "reason": change.reason, "detail": change.detail, **data}
    return events.add(conn, change.at, kind, rollout_id, told)
