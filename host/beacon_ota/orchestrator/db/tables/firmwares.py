"""Releases as the orchestrator holds them."""

from sqlalchemy import Connection, bindparam, func, insert, select, update

from beacon_ota.orchestrator.db.schema import firmwares
from beacon_ota.orchestrator.db.tables import Fields, fields
from beacon_ota.orchestrator.db.tables.prepared import PreparedStatement

_DEVICE_TYPE = PreparedStatement(
    select(firmwares.c.device_type).where(firmwares.c.id == bindparam("firmware"))
)


def add(conn: Connection, row: Fields) -> Fields:
    """Store a release; the caller has checked in this transaction that its version is free."""
    conn.execute(insert(firmwares), row)
    found = get(conn, row["id"])
    assert found is not None
    return found


def get(conn: Connection, firmware_id: str) -> Fields | None:
    """Return a release by its id."""
    return fields(conn.execute(select(firmwares).where(firmwares.c.id == firmware_id)).first())


def device_type_of(conn: Connection, firmware_id: str) -> str | None:
    """Return the device type of a release."""
    row = _DEVICE_TYPE.fetch_first(conn, {"firmware": firmware_id})
    return None if row is None else row["device_type"]


def get_by_version(conn: Connection, device_type: str, version: str) -> Fields | None:
    """Return the release of a version."""
    return fields(
        conn.execute(
            select(firmwares).where(
                firmwares.c.device_type == device_type, firmwares.c.version == version
            )
        ).first()
    )


def update_columns(conn: Connection, firmware_id: str, **values: object) -> Fields | None:
    """Set columns of a release; None when it does not exist."""
    conn.execute(update(firmwares).where(firmwares.c.id == firmware_id).values(**values))
    return get(conn, firmware_id)


def list_all(
    conn: Connection, device_type: str | None = None, state: str | None = None
) -> list[Fields]:
    """Return releases, newest first."""
    query = select(firmwares).order_by(firmwares.c.uploaded_at.desc(), firmwares.c.id)
    if device_type is not None:
        query = query.where(firmwares.c.device_type == device_type)
    if state is not None:
        query = query.where(firmwares.c.state == state)
    return [dict(row._mapping) for row in conn.execute(query)]


def effective_state(row: Fields) -> str:
    """Return the release state that decisions use: a damaged image is offered to no beacon.

    Args:
        row: the row of a release; ``state`` and ``damaged_at`` are enough.
    """
    return "deprecated" if row["damaged_at"] is not None else row["state"]


def list_blobs(conn: Connection) -> set[str]:
    """Return the digests of all bytes that a release refers to."""
    return set(conn.scalars(select(firmwares.c.blob).distinct()))


def count(conn: Connection) -> int:
    """Return how many releases there are."""
    return conn.scalar(select(func.count()).select_from(firmwares)) or 0
