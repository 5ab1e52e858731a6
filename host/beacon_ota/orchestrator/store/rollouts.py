"""Rollouts and their transitions. The state is a fold of the transitions, kept beside them."""

from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, insert, select, update

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.schema import firmwares, rollouts, transitions
from beacon_ota.orchestrator.store import Fields, fields
from beacon_ota.orchestrator.store.firmwares import state_of
from beacon_ota.orchestrator.store.prepared import Prepared

_r, _f = rollouts.c, firmwares.c
_BASIS = Prepared(
    select(_r.revision, _r.status, _f.state, _f.damaged_at).where(
        _r.id == bindparam("rollout"), _f.id == _r.firmware_id
    )
)


class Basis(NamedTuple):
    """What a decision about a rollout is made upon. What follows is committed if it still holds.

    Attributes:
        revision: of the rollout.
        status: of the rollout; a mirror's own halt changes it without a new revision.
        release_state: ``testing``, ``stable`` or ``deprecated`` (also when it is damaged).
    """

    revision: int
    status: str
    release_state: str


def basis(conn: Connection, rollout_id: str) -> Basis | None:
    """Return what decisions about a rollout are to be made upon, as it is committed."""
    row = _BASIS.first(conn, {"rollout": rollout_id})
    return None if row is None else Basis(row["revision"], row["status"], state_of(row))


def add(conn: Connection, row: Fields) -> None:
    """Store a rollout (UsageError ``rollout_taken``)."""
    if get(conn, row["id"]) is not None:
        raise UsageError(
            "rollout_taken",
            "a rollout with this seed was started before; plan again",
            found=row["id"],
        )
    conn.execute(insert(rollouts), row)


def get(conn: Connection, rollout_id: str) -> Fields | None:
    """Return a rollout."""
    return fields(conn.execute(select(rollouts).where(_r.id == rollout_id)).first())


def every(conn: Connection, limit: int = 1000) -> list[Fields]:
    """Return rollouts, newest first."""
    query = select(rollouts).order_by(_r.created_at.desc(), _r.id).limit(limit)
    return [dict(row._mapping) for row in conn.execute(query)]


def advance(conn: Connection, rollout_id: str, revision: int, values: Fields) -> bool:
    """Move a rollout on from the revision that was decided upon.

    Returns:
        False when somebody else moved it meanwhile: nothing was changed, decide again.
    """
    done = conn.execute(
        update(rollouts)
        .where(_r.id == rollout_id, _r.revision == revision)
        .values(**values, revision=revision + 1)
    )
    return bool(done.rowcount)


def add_transitions(conn: Connection, rows: list[Fields]) -> None:
    """Record what happened to a rollout."""
    if rows:
        conn.execute(insert(transitions), rows)


def transitions_of(conn: Connection, rollout_id: str, limit: int = 1000) -> list[Fields]:
    """Return what happened to a rollout, in order."""
    query = (
        select(transitions)
        .where(transitions.c.rollout_id == rollout_id)
        .order_by(transitions.c.id.desc())
        .limit(limit)
    )
    rows: list[Any] = list(conn.execute(query))
    return [dict(row._mapping) for row in reversed(rows)]
