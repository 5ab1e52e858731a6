"""When a beacon can be provisioned, and what its button does."""

import time

import pytest

from beacon_ota.errors import BeaconOtaError
from beacon_ota.provision.client import Client
from beacon_ota.wire import adverts
from tests.provision import scene as scenes
from tests.provision.scene import PIN, SSID, run, scene

GIVEN = {
    "wifi_ssid": SSID.encode(),
    "wifi_pass": scenes.PASSWORD.encode(),
    "beacon_key": bytes(range(32)),
    "ibeacon": bytes(range(20)),
    "site": b"berlin",
    "creds": b"door" + bytes(16),
}


def refusal(s: scenes.Scene) -> str:
    """What happens to somebody who tries all the same."""

    async def body() -> str:
        found = await s.find(opened=False)
        async with Client(found.device, found.name, s.radio) as client:
            with pytest.raises(BeaconOtaError) as caught:
                await client.prove(pin=PIN)
            return caught.value.code

    return run(body())


def test_a_provisioned_beacon_is_closed(v1):
    with scene(v1, settings=GIVEN) as s:
        found = run(s.heard(lambda b: b.has(adverts.PROVISIONED)))
        assert not found.open and found.state == "running"
        assert refusal(s) == "closed"
        # To everybody else, too: an error frame, and the link is cut.

        async def version() -> str:
            async with Client(found.device, found.name, s.radio) as client:
                with pytest.raises(BeaconOtaError) as caught:
                    await client.version()
                with pytest.raises(BeaconOtaError) as after:
                    await client._next(0x41, 5)
                return caught.value.code + " " + after.value.code

        assert run(version()) == "closed disconnected"
        assert s.beacon.setting("pin_fail") is None


def test_the_button_opens_for_a_while(v1):
    with scene(v1, settings=GIVEN, policy={"open_s": 30}, scale=10) as s:
        run(s.heard(lambda b: b.has(adverts.PROVISIONED)))
        s.press(0.5)
        began = s.beacon.clock.now()
        # Positioning goes on meanwhile: the frames take turns.
        found = run(s.heard(lambda b: b.position == bytes(range(20)) and b.open))
        assert found.state == "open" and found.has(adverts.PROVISIONED)
        s.wait(lambda: not s.opened(), what="closed again")
        assert 20 < s.beacon.clock.now() - began < 45
        assert refusal(s) == "closed"


def test_a_bounce_is_no_press(v1):
    with scene(v1, settings=GIVEN, scale=1) as s:
        run(s.heard(lambda b: b.has(adverts.PROVISIONED)))
        for _ in range(5):
            s.beacon.press()
            s.beacon.release()
            time.sleep(0.005)
        time.sleep(0.3)
        assert not s.opened()
        s.press(0.2)
        s.wait(s.opened)


def test_neither_network_for_ten_minutes(v1):
    with scene(v1, settings=GIVEN, scale=100) as s:
        s.wait(lambda: s.beacon.wlan.connected)
        s.network.points[0].visible = False
        s.beacon.drop_wifi()
        began = s.beacon.clock.now()
        s.wait(s.opened, what="open")
        assert 590 < s.beacon.clock.now() - began < 660
        # Provisioned with the network there is now, or closed because the old one is back.
        s.network.points[0].visible = True
        s.wait(lambda: s.beacon.wlan.connected, 30)
        s.wait(lambda: not s.opened(), what="closed")


def test_a_lost_beacon_gets_another_network(v1):
    with scene(v1, settings=GIVEN, scale=100, policy={"lost_s": 60}) as s:
        s.network.points[0].visible = False
        s.network.add("moved", "other password")
        s.wait(s.opened, what="open")
        done = s.online(wifi=scenes.Wifi.of("moved", "other password"))
        assert done.poll == "ok"


@pytest.mark.parametrize(
    ("policy", "new", "lost"), [(0, False, False), (1, True, False), (2, True, True)]
)
def test_policies(v1, policy, new, lost):
    rules = {"blufi": policy, "lost_s": 10}
    with scene(v1, policy=rules, scale=20) as s:
        run(s.heard(lambda b: True))
        time.sleep(0.2)
        assert s.opened() == new
    with scene(v1, settings={**GIVEN, "wifi_ssid": b"gone"}, policy=rules, scale=50) as s:
        began = s.beacon.clock.now()
        s.wait(lambda: s.beacon.clock.now() > began + 30)
        assert s.opened() == lost
        s.press(0.5)
        time.sleep(0.1)
        assert s.opened() == (policy > 0)


def test_without_a_secret_there_is_nothing_to_open(v1):
    with scene(v1, settings={"pin_w": None}) as s:
        found = run(s.heard(lambda b: b.version))
        assert not found.open and not s.opened()


def test_ten_seconds_forget_everything_it_was_given(v1):
    kept = {"floor": b"0.9.0", "bad_sha": bytes(32), "pin_fail": 3}
    with scene(v1, settings={**GIVEN, **kept}, scale=10) as s:
        s.wait(lambda: s.beacon.clock.now() > 12, what="too late to unlock anything")
        s.beacon.press()
        run(s.heard(lambda b: b.has(adverts.HELD)))
        time.sleep(0.55)
        assert len(s.beacon.boots) == 1, "not before ten seconds"
        s.wait(lambda: len(s.beacon.boots) == 2, what="reset")
        s.beacon.release()
        stored = {key: value for (space, key), value in s.beacon.settings().items()}
        assert not stored.keys() & GIVEN.keys()
        assert stored["beacon_id"] == b"beacon-1" and len(stored["pin_w"]) == 160
        assert stored["floor"] == b"0.9.0" and stored["bad_sha"] == bytes(32)
        assert stored["pin_fail"] == 3 and "policy" in stored
        found = run(s.heard(lambda b: b.state == "new"))
        assert found.position is None
        s.wait(lambda: b"forgot" in bytes(str(s.beacon.settings()), "utf-8"))


def test_half_a_wish_does_nothing(v1):
    """Neither a short press nor ten seconds: somebody thought better of it."""
    with scene(v1, settings=GIVEN, scale=10) as s:
        s.wait(lambda: s.beacon.wlan.connected)
        s.press(7)
        time.sleep(0.3)
        assert not s.opened() and len(s.beacon.boots) == 1
        assert s.beacon.setting("wifi_ssid") == SSID.encode()


def test_a_cut_while_it_forgets(v1):
    """All or nothing, whichever flash operation the power fails at."""
    from beacon_ota.virtual.flash import Cut

    cut_at = 0
    results = set()
    while True:
        with scene(v1, settings=GIVEN, scale=50) as s:
            s.wait(lambda: s.beacon.wlan.connected)
            time.sleep(0.05)
            before = s.flash.ops
            s.flash.cut = Cut(before + cut_at, "inside", 7)
            s.beacon.press()
            s.beacon.wait_for(lambda: not s.beacon.powered or len(s.beacon.boots) > 1, 10)
            s.beacon.release()
            whole = s.beacon.powered
            s.flash.cut = None
            if not whole:
                s.beacon.power_on()
            s.wait(lambda: "provisioning" in s.beacon.console or s.beacon.wlan.connected)
            left = {key for space, key in s.beacon.settings() if key in GIVEN}
            assert left in (set(), set(GIVEN)), (cut_at, left)
            assert s.beacon.setting("spare") is None
            results.add(not left)
            if whole:
                break
        cut_at += 3
    assert results == {True, False}
