"""The listing of beacons and one beacon's page: complete, current, and never with a key."""

import json

from beacon_ota.orchestrator.db.connection import StorageError


def listed(local, query=""):
    return local.admin().call("GET", f"/api/beacons{query}")


def test_pages_follow_each_other(local):
    made = [beacon.id for beacon in local.beacons(5)]
    seen, after = [], ""
    while after is not None:
        found = listed(local, f"?limit=2&after={after}")
        assert found["total"] == 5
        seen += [row["beacon_id"] for row in found["beacons"]]
        after = found["next"]
    assert seen == made


def test_a_beacon_that_was_just_heard_is_shown_as_heard(local):
    (beacon,) = local.beacons(1)
    assert listed(local)["beacons"][0]["last_seen"] is None
    assert beacon.poll().status == 204
    (row,) = listed(local)["beacons"]
    assert row["last_seen"] is not None and row["version"] == "1.0.0"


def test_no_answer_has_a_key(local):
    (beacon,) = local.beacons(1)
    shown = local.admin().call("GET", f"/api/beacons/{beacon.id}")
    for answer in (listed(local), shown):
        assert beacon.key.hex() not in json.dumps(answer)
    assert {"attempts", "reports", "journal", "standing", "unproven"} <= set(shown)


def test_a_database_that_takes_no_writes_hides_nothing(local, monkeypatch):
    (beacon,) = local.beacons(1)

    async def fail():
        raise StorageError("storage", "full")

    with monkeypatch.context() as patched:
        patched.setattr(local.service, "flush_last_seen", fail)
        assert listed(local)["beacons"][0]["beacon_id"] == beacon.id
