"""Beacons counted by what is in their two slots."""

from sqlalchemy import insert

from beacon_ota.orchestrator.db.schema import beacons, firmwares
from beacon_ota.orchestrator.db.tables import attempts
from beacon_ota.orchestrator.db.tables.running import SlotPair, count_slot_pairs
from tests.orchestrator.db.test_tables import REPORT, attempt, beacon, conn  # noqa: F401


def test_the_other_slot_is_known_by_the_update_that_left_it(conn):  # noqa: F811
    for name, image in (("ba", "c"), ("bx", "c"), ("by", "old"), ("bz", None)):
        row = {**beacon(name), "image": image, "version": image and "v" + image}
        conn.execute(insert(beacons), row)
    conn.execute(insert(beacons), {**beacon("else"), "device_type": "other", "image": "c"})
    assert count_slot_pairs(conn, "esp32c3") == [
        SlotPair("vc", "c", None, 2),
        SlotPair(None, None, None, 1),
        SlotPair("vold", "old", None, 1),
    ]
    attempts.record_result(conn, 5.0, REPORT)  # of ba, from an image that was not said
    again = {"id": "later", "beacon_id": "ba", "n": 2, "offered_at": 2.0, "from_image": "old"}
    attempts.offer(conn, attempt(attempt_id=again.pop("id"), **again))
    assert count_slot_pairs(conn, "esp32c3")[0] == SlotPair("vc", "c", None, 2)  # no success yet
    attempts.record_result(conn, 6.0, {**REPORT, "attempt_id": "later"})
    found = {
        one.other: one.beacons for one in count_slot_pairs(conn, "esp32c3") if one.image == "c"
    }
    assert found == {"old": 1, None: 1}
    # The beacon runs something else meanwhile: what the attempt says is of no use.
    release = {"id": "g", "device_type": "esp32c3", "version": "2.0.0", "checksum": "new"}
    more = {"size": 1, "blob": "g", "state": "stable", "uploaded_at": 0.0, "uploaded_by": "x"}
    conn.execute(insert(firmwares), {**release, **more})
    conn.execute(beacons.update().where(beacons.c.id == "ba").values(image="new", version="vnew"))
    assert SlotPair("vnew", "new", None, 1) in count_slot_pairs(conn, "esp32c3")
