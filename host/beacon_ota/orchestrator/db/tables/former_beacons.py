"""Beacons that have left a mirror's site, and which changes that mirror may still report of them.

A mirror that is cut off goes on serving a beacon that was moved to another site meanwhile. The
primary takes what the mirror heard of it as long as the beacon uses the key that the mirror has.
Under another key the mirror cannot have heard the beacon.
"""

import hashlib

from sqlalchemy import Connection, delete, select

from beacon_ota.orchestrator.db.schema import beacons, former_beacons, mirrors
from beacon_ota.orchestrator.db.tables import Fields, insert_or_ignore

_f = former_beacons.c


def key_digest(key: bytes) -> str:
    """Return the digest by which a mirror names a key without revealing it."""
    return hashlib.sha256(b"beacon-ota key\n" + key).hexdigest()


def site_covers(site: str, path: str | None) -> bool:
    """Tell whether a path is a site's or below it; "" is everything."""
    return not site or path == site or (path or "").startswith(site + "/")


def record_departure(conn: Connection, beacon_id: str, site: str | None) -> None:
    """Note which mirrors a beacon leaves; called before the beacon is moved to ``site``."""
    row = conn.execute(
        select(beacons.c.site, beacons.c.key).where(beacons.c.id == beacon_id)
    ).first()
    if row is None or row.site == site:
        return
    used = select(mirrors.c.id, mirrors.c.site).where(mirrors.c.removed_at.is_(None))
    for mirror in conn.execute(used).all():
        if site_covers(mirror.site, row.site) and not site_covers(mirror.site, site):
            set_last_key(conn, mirror.id, beacon_id, row.key)


def set_last_key(conn: Connection, mirror_id: str, beacon_id: str, key: bytes) -> None:
    """Note the key that a mirror has of a beacon that has left it."""
    remove_former(conn, mirror_id, beacon_id)
    row: Fields = {"mirror_id": mirror_id, "beacon_id": beacon_id, "key_digest": key_digest(key)}
    insert_or_ignore(conn, former_beacons, [row])


def may_report(conn: Connection, mirror_id: str, beacon_id: str) -> bool:
    """Tell whether a mirror may still report about a beacon that has left its site."""
    where = (_f.mirror_id == mirror_id) & (_f.beacon_id == beacon_id)
    known = conn.scalar(select(_f.key_digest).where(where))
    key = conn.scalar(select(beacons.c.key).where(beacons.c.id == beacon_id))
    return known is not None and key is not None and key_digest(key) == known


def remove_former(
    conn: Connection, mirror_id: str | None = None, beacon_id: str | None = None
) -> None:
    """Forget a beacon, a mirror, or a beacon of a mirror."""
    gone = delete(former_beacons)
    if mirror_id is not None:
        gone = gone.where(_f.mirror_id == mirror_id)
    if beacon_id is not None:
        gone = gone.where(_f.beacon_id == beacon_id)
    conn.execute(gone)
