"""The service's changes: each is made upon what is committed, whoever else makes it too."""

import asyncio
import os

from beacon_ota.orchestrator.db.tables import beacons, keys


def test_a_new_key_is_adopted_once_by_requests_that_overlap(local):
    (beacon,) = local.beacons(1)
    service = local.service
    node = service.fleet.beacons[beacon.id]

    def give(conn, key: bytes):
        row = beacons.get(conn, beacon.id)
        assert row is not None
        return keys.add_key(conn, row, key)

    async def overlap(key: bytes, after: float) -> None:
        service.fleet.put_beacon(await service.db.write(give, key))
        first = asyncio.ensure_future(service.adopt_key(node, key))
        await asyncio.sleep(after)
        await asyncio.gather(first, service.adopt_key(node, key))

    for number in range(40):  # also while the first one is being committed
        key = os.urandom(32)
        local.call(overlap(key, (number % 8) * 0.0005))
        assert (node.key, node.next_key, node.given_keys) == (key, None, ())
    done = [
        one
        for one in local.admin().list_audit_entries(limit=1000)
        if one["action"] == "beacon.rekeyed"
    ]
    assert len(done) == 40


def test_a_key_that_was_replaced_elsewhere_is_not_adopted(local, elsewhere):
    (beacon,) = local.beacons(1)
    old, replaced, new = beacon.key, os.urandom(32), os.urandom(32)
    local.admin().call("PUT", f"/api/beacons/{beacon.id}/key", json={"key": replaced.hex()})
    elsewhere.execute("UPDATE beacons SET next_key = ?, given_keys = ?", new, new)
    beacon.key = replaced
    answer = beacon.call("GET", "/firmwares/latest/esp32c3?version=1.0.0", check=False)
    assert (answer.status, answer.json["code"]) == (401, "bad_mac")
    assert "x-beacon-mac" not in answer.headers
    node = local.service.fleet.beacons[beacon.id]
    assert (node.key, node.next_key) == (old, new)
    for key in (old, new):
        beacon.key = key
        assert beacon.poll().status == 204
    assert (node.key, node.next_key) == (new, None)


def test_the_key_of_a_beacon_that_was_removed_elsewhere_is_not_adopted(local, elsewhere):
    (beacon,) = local.beacons(1)
    given = os.urandom(32)
    local.admin().call("PUT", f"/api/beacons/{beacon.id}/key", json={"key": given.hex()})
    elsewhere.execute("DELETE FROM beacons")
    beacon.key = given
    answer = beacon.call("GET", "/firmwares/latest/esp32c3?version=1.0.0", check=False)
    assert answer.status == 401
    assert beacon.id not in local.service.fleet.beacons
