"""The site tree: a path such as ``hq/a/2`` is a floor of a building of a site."""

from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from beacon_ota.orchestrator.db.schema import beacons, sites
from beacon_ota.orchestrator.db.tables import Fields, fields


def list_all(conn: Connection) -> list[Fields]:
    """Return all sites by path, each with its number of beacons, those of sites below excluded."""
    here = select(beacons.c.site, func.count()).group_by(beacons.c.site)
    counts = {row[0]: row[1] for row in conn.execute(here)}
    rows = conn.execute(select(sites).order_by(sites.c.path))
    return [{**row._mapping, "beacons": counts.get(row.path, 0)} for row in rows]


def get(conn: Connection, path: str) -> Fields | None:
    """Return a site."""
    return fields(conn.execute(select(sites).where(sites.c.path == path)).first())


def add(conn: Connection, row: Fields) -> None:
    """Add a site; its parent must exist."""
    conn.execute(insert(sites), row)


def update_columns(conn: Connection, path: str, **values: Any) -> Fields | None:
    """Set columns of a site; None when it does not exist."""
    conn.execute(update(sites).where(sites.c.path == path).values(**values))
    return get(conn, path)


def in_use(conn: Connection, path: str) -> str | None:
    """Return why a site cannot be removed: it has sites below it, or beacons."""
    if conn.execute(
        select(sites.c.path).where(sites.c.path.startswith(path + "/", autoescape=True)).limit(1)
    ).first():
        return "other sites lie below it"
    if conn.execute(select(beacons.c.id).where(beacons.c.site == path).limit(1)).first():
        return "beacons are there"
    return None


def remove(conn: Connection, path: str) -> bool:
    """Remove a site that nothing uses."""
    return bool(conn.execute(delete(sites).where(sites.c.path == path)).rowcount)
