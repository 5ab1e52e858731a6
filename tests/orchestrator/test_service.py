"""The service's changes: each is made upon what is committed, whoever else makes it too."""

import asyncio
import os
from functools import partial

from beacon_ota.orchestrator.store import beacons


def test_a_new_key_is_adopted_once_by_requests_that_overlap(local):
    (beacon,) = local.beacons(1)
    node = local.service.view.nodes[beacon.id]

    async def overlap(key: bytes, after: float) -> None:
        row = await local.service.db.write(partial(beacons.change, next_key=key), beacon.id)
        local.service.view.put_beacon(row)
        first = asyncio.ensure_future(local.service.adopt_key(node))
        await asyncio.sleep(after)
        await asyncio.gather(first, local.service.adopt_key(node))

    for number in range(40):  # also while the first one is being committed
        key = os.urandom(32)
        local.call(overlap(key, (number % 8) * 0.0005))
        assert (node.key, node.next_key) == (key, None)
    done = [one for one in local.admin().audit(limit=1000) if one["action"] == "beacon.rekeyed"]
    assert len(done) == 40


def test_a_key_that_was_replaced_elsewhere_is_not_adopted(local, elsewhere):
    (beacon,) = local.beacons(1)
    old, replaced, new = beacon.key, os.urandom(32), os.urandom(32)
    local.admin().call("PUT", f"/api/beacons/{beacon.id}/key", json={"key": replaced.hex()})
    elsewhere.execute("UPDATE beacons SET next_key = ?", new)
    beacon.key = replaced
    answer = beacon.call("GET", "/firmwares/latest/esp32c3?version=1.0.0", check=False)
    assert (answer.status, answer.json["code"]) == (401, "bad_mac")
    assert "x-beacon-mac" not in answer.headers
    node = local.service.view.nodes[beacon.id]
    assert (node.key, node.next_key) == (old, new)
    for key in (old, new):
        beacon.key = key
        assert beacon.poll().status == 204
    assert (node.key, node.next_key) == (new, None)
