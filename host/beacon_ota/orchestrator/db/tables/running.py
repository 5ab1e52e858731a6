"""Which images a fleet's beacons have in their two slots, counted."""

from typing import NamedTuple

from sqlalchemy import Connection, func, select

from beacon_ota.orchestrator.db.schema import attempts, beacons, firmwares

_a, _b, _f = attempts.c, beacons.c, firmwares.c


class SlotPair(NamedTuple):
    """Beacons with the same images: SHA-256 each, None where it is not known.

    Attributes:
        version: the version that they run.
        image: the image in the running slot.
        other: the image in the other slot, according to the update to the running image.
        beacons: the number of such beacons.
    """

    version: str | None
    image: str | None
    other: str | None
    beacons: int


def count_slot_pairs(conn: Connection, device_type: str) -> list[SlotPair]:
    """Count the beacons of a device type by the images in their slots, the largest groups first."""
    update = (
        select(_a.from_image)
        .select_from(attempts.join(firmwares, _f.id == _a.firmware_id))
        .where(_a.beacon_id == _b.id, _a.result == "success", _f.checksum == _b.image)
        .order_by(_a.offered_at.desc())
        .limit(1)
        .correlate(beacons)
        .scalar_subquery()
    )
    each = (
        select(_b.version, _b.image, update.label("other"))
        .where(_b.device_type == device_type)
        .subquery()
    )
    keys = (each.c.version, each.c.image, each.c.other)
    rows = conn.execute(select(*keys, func.count()).group_by(*keys)).all()
    found = [SlotPair(*row) for row in rows]
    return sorted(found, key=lambda one: (-one.beacons, one.version or "", one.image or ""))
