"""Which keys a beacon may sign with: none that may have reached it is forgotten before its time."""

import hmac
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_ota.errors import BeaconOtaError
from beacon_ota.orchestrator.db.tables import keys
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.wire import auth, auth_header


def take(beacon, answer) -> None:
    """Store the key that comes with an answer, as a beacon does."""
    pad = bytes.fromhex(answer.json["rekey"])
    nonce = auth_header.parse_header(beacon.last_header)[2]  # type: ignore[index]
    mask = hmac.digest(beacon.key, auth.rekey_text(nonce), "sha256")
    beacon.key = bytes(a ^ b for a, b in zip(pad, mask, strict=True))


def heard(beacon) -> bytes:
    """Have a beacon follow what it is told until it is told nothing more; return its key."""
    for _ in range(20):
        answer = beacon.report("idle")
        assert answer.status == 200, answer.body
        if "rekey" not in answer.json:
            return beacon.key
        take(beacon, answer)
    raise AssertionError("it is told keys without end")


def test_a_second_rekey_before_the_next_request(local):
    admin = local.admin()
    (beacon,) = local.beacons(1)
    admin.post_beacon_action(beacon.id, "rekey")
    take(beacon, beacon.report("idle"))
    first = beacon.key
    admin.post_beacon_action(beacon.id, "rekey")
    assert beacon.poll().status == 204 and admin.get_beacon(beacon.id)["rekeying"]
    assert heard(beacon) != first and not admin.get_beacon(beacon.id)["rekeying"]


@pytest.mark.parametrize("has", ["old", "rekeyed", "put"])
def test_a_rekey_and_then_another_key_by_a_cable(local, has):
    """Whichever of the two arrived."""
    admin = local.admin()
    (beacon,) = local.beacons(1)
    admin.post_beacon_action(beacon.id, "rekey")
    before = beacon.key
    answer = beacon.report("idle")
    if has == "rekeyed":
        take(beacon, answer)
    put = secrets.token_bytes(32)
    admin.set_beacon_key(beacon.id, put.hex())
    if has == "put":
        beacon.key = put
    assert beacon.poll().status == 204
    assert heard(beacon) == put
    beacon.key = before
    assert beacon.call("GET", "/firmwares/latest/esp32c3", check=False).status == 401


@pytest.mark.parametrize("has", range(3))
def test_two_keys_by_cable(local, has):
    admin = local.admin()
    (beacon,) = local.beacons(1)
    given = [beacon.key, secrets.token_bytes(32), secrets.token_bytes(32)]
    for key in given[1:]:
        admin.set_beacon_key(beacon.id, key.hex())
    beacon.key = given[has]
    assert beacon.poll().status == 204
    assert heard(beacon) == given[2]


def test_the_old_key_again_by_cable_while_a_new_one_may_have_arrived(local):
    admin = local.admin()
    for arrived in (False, True):
        (beacon,) = local.beacons(1, prefix=f"again{arrived}")
        old = beacon.key
        admin.post_beacon_action(beacon.id, "rekey")
        answer = beacon.report("idle")
        admin.set_beacon_key(beacon.id, old.hex())
        if arrived:
            take(beacon, answer)
        assert beacon.poll().status == 204
        assert heard(beacon) == old


def test_given_keys_outlive_a_restart_and_end_with_the_beacon(local):
    admin = local.admin()
    (beacon,) = local.beacons(1)
    admin.post_beacon_action(beacon.id, "rekey")
    take(beacon, beacon.report("idle"))
    admin.post_beacon_action(beacon.id, "rekey")
    local.stop()
    local.start()
    beacon.connect(local.url)
    assert beacon.poll().status == 204
    admin = local.admin()
    admin.call("DELETE", f"/api/beacons/{beacon.id}")
    admin.create_beacon(beacon.id, "esp32c3", key="ab" * 32)
    assert beacon.call("GET", "/firmwares/latest/esp32c3", check=False).status == 401
    beacon.key = bytes.fromhex("ab" * 32)
    assert beacon.poll().status == 204


def test_too_many_keys_are_refused_by_name_and_cost_no_key(local):
    admin = local.admin()
    (beacon,) = local.beacons(1)
    admin.post_beacon_action(beacon.id, "rekey")
    take(beacon, beacon.report("idle"))
    for _ in range(LIMITS.given_keys - 1):
        admin.post_beacon_action(beacon.id, "rekey")
    for call in (
        lambda: admin.post_beacon_action(beacon.id, "rekey"),
        lambda: admin.set_beacon_key(beacon.id, "cd" * 32),
    ):
        with pytest.raises(BeaconOtaError) as caught:
            call()
        assert caught.value.code == "keys_outstanding"
    assert beacon.poll().status == 204
    heard(beacon)
    assert not admin.get_beacon(beacon.id)["rekeying"]
    admin.post_beacon_action(beacon.id, "rekey")


def test_one_change_of_keys_is_told_once(local):
    admin = local.admin()
    (beacon,) = local.beacons(1)
    admin.post_beacon_action(beacon.id, "rekey")
    take(beacon, beacon.report("idle"))
    node = local.service.fleet.beacons[beacon.id]
    for _ in range(3):  # as several processes that have not heard of each other's
        local.call(local.service.adopt_key(node, beacon.key))
    local.call(local.service.adopt_key(node, bytes(32)))  # no key of its
    told = [
        one
        for one in admin.list_audit_entries(target=beacon.id)
        if one["action"] == "beacon.rekeyed"
    ]
    assert len(told) == 1 and beacon.poll().status == 204


def test_keys_are_shown_to_nobody(local):
    admin = local.admin()
    (beacon,) = local.beacons(1)
    admin.set_beacon_key(beacon.id, "cd" * 32)
    for shown in (admin.get_beacon(beacon.id), admin.call("GET", "/api/beacons")["beacons"][0]):
        assert not {"key", "next_key", "given_keys"} & set(shown)
        assert "cd" * 32 not in str(shown)


KEY = st.integers(0, 3).map(lambda n: bytes([n]) * 32)


@settings(max_examples=300)
@given(st.data())
def test_no_order_of_events_locks_a_beacon_out(data):
    """The beacon has, at any time, the key it used last or one that was given since."""
    row = {"id": "b", "key": bytes(32), "next_key": None, "given_keys": None}
    has = bytes(32)
    on_its_way: list[bytes] = []  # given since the beacon was last heard; any may arrive
    for _ in range(data.draw(st.integers(1, 25))):
        step = data.draw(st.sampled_from(["give", "arrive", "use"]))
        if step == "give":
            new = data.draw(KEY)
            row |= keys.columns_after_add(row, new)
            on_its_way.append(new)
        elif step == "arrive" and on_its_way:
            # In the order in which they were given; what is passed over never comes.
            index = data.draw(st.integers(0, len(on_its_way) - 1))
            has, on_its_way = on_its_way[index], on_its_way[index + 1 :]
        elif step == "use":
            assert has in keys.usable_keys(row)
            newest = has == keys.usable_keys(row)[-1]
            if news := keys.columns_after_use(row, has):
                row |= news
                if newest:
                    on_its_way.clear()  # that was the last to arrive
        assert {has, *on_its_way} <= set(keys.usable_keys(row))
        wanted = row["next_key"]
        assert wanted == (
            None if keys.usable_keys(row)[-1] == row["key"] else keys.usable_keys(row)[-1]
        )
