"""Another process on the same SQLite file: what it commits, the orchestrator has not heard of."""

import sqlite3
from typing import Any

from beacon_ota.orchestrator.core.rollout_records import dump_state, load_state
from beacon_ota.orchestrator.rollout import advance as moves
from beacon_ota.orchestrator.rollout.types import RolloutState
from tests.orchestrator.world import Local


class Elsewhere:
    """Commits past an orchestrator's view, as another worker does a moment ago."""

    def __init__(self, local: Local):
        self._clock = local.clock
        self._db = sqlite3.connect(
            local.service.settings.data / "beacon-ota.db",
            timeout=30,
            isolation_level=None,
            check_same_thread=False,
        )
        self._db.row_factory = sqlite3.Row

    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._db.close()

    def execute(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in self._db.execute(statement, values).fetchall()]

    def hold(self) -> None:
        """Have everybody who writes wait."""
        self._db.execute("BEGIN IMMEDIATE")

    def let_go(self) -> None:
        self._db.execute("COMMIT")

    def rollout(self, rollout_id: str) -> dict[str, Any]:
        return self.execute("SELECT * FROM rollouts WHERE id = ?", rollout_id)[0]

    def transitions(self, rollout_id: str) -> list[dict[str, Any]]:
        query = "SELECT * FROM transitions WHERE rollout_id = ? ORDER BY id"
        return self.execute(query, rollout_id)

    def attempt(self, attempt_id: str, **changed: Any) -> dict[str, Any]:
        """Return an attempt, after changing some of its columns."""
        for name, value in changed.items():
            self.execute(f"UPDATE attempts SET {name} = ? WHERE id = ?", value, attempt_id)
        return self.execute("SELECT * FROM attempts WHERE id = ?", attempt_id)[0]

    def move(self, rollout_id: str, state: RolloutState) -> None:
        self.execute(
            "UPDATE rollouts SET status = ?, state = ?, revision = revision + 1 WHERE id = ?",
            state.status.value,
            dump_state(state),
            rollout_id,
        )

    def halt(self, rollout_id: str) -> None:
        """Halt a rollout, with its transition."""
        state = load_state(self.rollout(rollout_id)["state"])
        (change,) = moves.halt_rollout(state, self._clock.at, "somebody")
        self.move(rollout_id, moves.apply_transition(state, change))
        self.execute(
            "INSERT INTO transitions (rollout_id, at, kind, reason, detail, actor)"
            " VALUES (?, ?, 'halted', '', '', 'somebody')",
            rollout_id,
            change.at,
        )
