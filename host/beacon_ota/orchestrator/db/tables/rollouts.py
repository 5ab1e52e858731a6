"""Rollouts and their transitions. The state follows from the transitions; both are stored."""

from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, bindparam, func, insert, select, update

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.db.schema import attempts, firmwares, rollouts, transitions
from beacon_ota.orchestrator.db.tables import Fields, fields
from beacon_ota.orchestrator.db.tables.firmwares import effective_state
from beacon_ota.orchestrator.db.tables.prepared import PreparedStatement
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.rollout.types import Status

_r, _f = rollouts.c, firmwares.c
_LIVES = (_r.status != Status.ABORTED.value) & _r.ended_at.is_(None)
_STEP_S = 0.001  # minimum distance of two rollouts' ``created_at``, which orders them
_BASIS = PreparedStatement(
    select(_r.revision, _r.status, _f.state, _f.damaged_at).where(
        _r.id == bindparam("rollout"), _f.id == _r.firmware_id
    )
)


class Basis(NamedTuple):
    """The facts on which a decision about a rollout rests; it is committed only if they still hold.

    Attributes:
        revision: the rollout's revision.
        status: the rollout's status; a mirror's own halt changes it without a new revision.
        release_state: ``testing``, ``stable`` or ``deprecated`` (also when it is damaged).
    """

    revision: int
    status: str
    release_state: str


def read_basis(conn: Connection, rollout_id: str) -> Basis | None:
    """Return the committed facts on which decisions about a rollout rest."""
    row = _BASIS.fetch_first(conn, {"rollout": rollout_id})
    return None if row is None else Basis(row["revision"], row["status"], effective_state(row))


def add(conn: Connection, row: Fields) -> Fields:
    """Store a rollout, and return its row.

    Decisions go through the rollouts from the newest to the oldest, so ``created_at`` must never
    go back: when the clock was set back, a new rollout is dated just after the newest one.

    Raises:
        UsageError: ``rollout_taken``; ``rollouts_too_many``: too many rollouts of the device type
            are not over.
    """
    if get(conn, row["id"]) is not None:
        raise UsageError(
            "rollout_taken",
            "a rollout with this seed was started before; plan again",
            found=row["id"],
        )
    _check_room(conn, row["firmware_id"])
    newest = conn.scalar(select(func.max(_r.created_at)))
    stored = dict(row)
    if newest is not None:
        stored["created_at"] = max(row["created_at"], newest + _STEP_S)
    conn.execute(insert(rollouts), stored)
    return stored


def _check_room(conn: Connection, firmware_id: str) -> None:
    device_type = select(firmwares.c.device_type).where(firmwares.c.id == firmware_id)
    of_type = select(firmwares.c.id).where(firmwares.c.device_type == device_type.scalar_subquery())
    query = select(func.count()).select_from(rollouts).where(_LIVES, _r.firmware_id.in_(of_type))
    count = conn.scalar(query) or 0
    if count >= LIMITS.rollouts:
        raise UsageError(
            "rollouts_too_many",
            "too many rollouts of this device type are not over; abort those that nobody needs",
            found=count,
            expected=f"fewer than {LIMITS.rollouts}",
        )


def get(conn: Connection, rollout_id: str) -> Fields | None:
    """Return a rollout."""
    return fields(conn.execute(select(rollouts).where(_r.id == rollout_id)).first())


def list_all(
    conn: Connection, limit: int, status: str | None = None, begins: str = ""
) -> list[Fields]:
    """Return rollouts, newest first; with ``status`` only those that have it.

    Args:
        begins: only rollouts whose ids begin with this text.
    """
    query = select(rollouts)
    if begins:
        query = query.where(_r.id.startswith(begins, autoescape=True))
    if status is not None:
        query = query.where(_r.status == status)
    return _newest_first(conn, query.limit(limit))


def list_active(conn: Connection) -> list[Fields]:
    """Return all rollouts that are not over, newest first: not aborted and not retired."""
    return _newest_first(conn, select(rollouts).where(_LIVES))


def list_under_way(conn: Connection) -> list[Fields]:
    """Return all that are not over or have attempts under way, newest first."""
    open_ids = select(attempts.c.rollout_id).where(attempts.c.result.is_(None))
    return _newest_first(conn, select(rollouts).where(_LIVES | _r.id.in_(open_ids)))


def list_for_release(conn: Connection, firmware_id: str, limit: int) -> list[Fields]:
    """Return the rollouts of a release, newest first."""
    query = select(rollouts).where(_r.firmware_id == firmware_id)
    return _newest_first(conn, query.limit(limit))


def _newest_first(conn: Connection, query: Select[Any]) -> list[Fields]:
    rows = conn.execute(query.order_by(_r.created_at.desc(), _r.id))
    return [dict(row._mapping) for row in rows]


def update_if_unmoved(conn: Connection, rollout_id: str, revision: int, values: Fields) -> bool:
    """Update a rollout if it still has the revision on which the move was decided.

    Returns:
        False when another process or request moved it meanwhile: nothing was changed, and the
        caller must decide again.
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


def list_transitions(conn: Connection, rollout_id: str, limit: int = 1000) -> list[Fields]:
    """Return what happened to a rollout, in order."""
    query = (
        select(transitions)
        .where(transitions.c.rollout_id == rollout_id)
        .order_by(transitions.c.id.desc())
        .limit(limit)
    )
    rows: list[Any] = list(conn.execute(query))
    return [dict(row._mapping) for row in reversed(rows)]
