"""When a beacon can be provisioned, and what its button does."""

import time

import pytest

from beacon_ota.errors import BeaconOtaError
from beacon_ota.provision.client import BlufiClient
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
        async with BlufiClient(found.device, found.name, s.radio) as client:
            with pytest.raises(BeaconOtaError) as caught:
                await client.prove_secret(pin=PIN)
            return caught.value.code

    return run(body())


def becomes(s: scenes.Scene, opened: bool) -> None:
    """The beacon opens, or it does not, though it has looked."""
    if opened:
        s.wait(s.opened, what="open")
    else:
        assert s.stays(lambda: not s.opened(), 1)


def test_a_provisioned_beacon_is_closed(v1):
    with scene(v1, settings=GIVEN) as s:
        found = run(s.heard(lambda b: b.has(adverts.PROVISIONED)))
        assert not found.open and found.state == "running"
        assert refusal(s) == "closed"
        # To everybody else, too: an error frame, and the link is cut.

        async def version() -> str:
            async with BlufiClient(found.device, found.name, s.radio) as client:
                with pytest.raises(BeaconOtaError) as caught:
                    await client.protocol_version()
                with pytest.raises(BeaconOtaError) as after:
                    await client._next(0x41, 60)
                return caught.value.code + " " + after.value.code

        assert run(version()) == "closed disconnected"
        assert s.beacon.setting("pin_fail") is None


def test_the_button_opens_for_a_while(v1):
    with scene(v1, settings=GIVEN, policy={"open_s": 300}) as s:
        run(s.heard(lambda b: b.has(adverts.PROVISIONED)))
        s.unlock()
        # Positioning goes on meanwhile: the frames take turns.
        found = run(s.heard(lambda b: b.position == bytes(range(20)) and b.open))
        assert found.state == "open" and found.has(adverts.PROVISIONED)
        s.skip(100)
        assert s.stays(s.opened)
        s.skip(200)
        s.wait(lambda: not s.opened(), what="closed again")
        assert refusal(s) == "closed"


def test_a_bounce_is_no_press(v1):
    with scene(v1, settings=GIVEN, scale=1) as s:
        run(s.heard(lambda b: b.has(adverts.PROVISIONED)))
        for _ in range(5):
            s.beacon.press()
            s.beacon.release()
            time.sleep(0.005)
        assert s.stays(lambda: not s.opened())
        s.unlock()


def test_neither_network_for_ten_minutes(v1):
    with scene(v1, settings=GIVEN) as s:
        s.wait(lambda: s.beacon.wlan.connected)
        s.network.points[0].visible = False
        s.beacon.drop_wifi()
        s.wait(lambda: not s.beacon.wlan.connected)
        s.skip(300)
        assert s.stays(lambda: not s.opened(), 2)
        s.skip(300)
        s.wait(s.opened, what="open")
        # Provisioned with the network there is now, or closed because the old one is back.
        s.network.points[0].visible = True
        s.wait(lambda: s.beacon.wlan.connected)
        s.wait(lambda: not s.opened(), what="closed")


def test_a_lost_beacon_gets_another_network(v1):
    with scene(v1, settings=GIVEN, policy={"lost_s": 60}, power=False) as s:
        s.network.points[0].visible = False
        s.beacon.power_on()
        run(s.heard(lambda b: b.has(adverts.PROVISIONED)))
        s.skip(60)
        s.network.add_access_point("moved", "other password")
        s.wait(s.opened, what="open")
        done = s.online(wifi=scenes.Wifi.of("moved", "other password"))
        assert done.poll == "ok"


def test_a_beacon_that_was_lost_for_hours_gets_another_network(v1):
    """Its pauses between attempts are as long as they become by then."""
    with scene(v1, settings=GIVEN, policy={"lost_s": 60}, power=False) as s:
        s.network.points[0].visible = False
        s.beacon.power_on()
        run(s.heard(lambda b: b.has(adverts.PROVISIONED)))
        for _ in range(8):  # a failed round each time, and the pause after it
            s.skip(1000)
            s.stays(lambda: True, 0.7)
        s.network.add_access_point("moved", "other password")
        s.wait(s.opened, what="open")
        done = s.online(wifi=scenes.Wifi.of("moved", "other password"))
        assert done.poll == "ok" and s.joined() == b"moved"


@pytest.mark.parametrize(
    ("policy", "new", "lost"), [(0, False, False), (1, True, False), (2, True, True)]
)
def test_policies(v1, policy, new, lost):
    rules = {"blufi": policy, "lost_s": 60}
    with scene(v1, policy=rules) as s:
        run(s.heard(lambda b: b.version))
        becomes(s, new)
    with scene(v1, settings={**GIVEN, "wifi_ssid": b"gone"}, policy=rules) as s:
        run(s.heard(lambda b: b.version))
        assert not s.opened()
        s.skip(60)
        becomes(s, lost)
        if policy:
            s.unlock()
        else:
            s.press(0)
            becomes(s, False)


def test_without_a_secret_there_is_nothing_to_open(v1):
    with scene(v1, settings={"pin_w": None}) as s:
        found = run(s.heard(lambda b: b.version))
        assert not found.open and not s.opened()


def test_ten_seconds_forget_everything_it_was_given(v1):
    kept = {"floor": b"0.9.0", "bad_sha": bytes(32), "pin_fail": 3}
    with scene(v1, settings={**GIVEN, **kept}, scale=1) as s:
        run(s.heard(lambda b: b.has(adverts.PROVISIONED)))
        s.skip(12)  # too late to unlock anything
        s.beacon.press()
        run(s.heard(lambda b: b.has(adverts.PRESSED)))
        assert s.stays(lambda: len(s.beacon.boots) == 1), "not before ten seconds"
        s.skip(10)
        s.wait(lambda: len(s.beacon.boots) == 2, what="reset")
        s.beacon.release()
        stored = {key: value for (space, key), value in s.beacon.settings().items()}
        assert not stored.keys() & GIVEN.keys()
        assert stored["beacon_id"] == b"beacon-1" and stored["pin_w"] == scenes.enrolled()
        assert stored["floor"] == b"0.9.0" and stored["bad_sha"] == bytes(32)
        assert stored["pin_fail"] == 3 and "policy" in stored
        found = run(s.heard(lambda b: b.state == "new"))
        assert found.position is None
        s.wait(lambda: b"forgot" in bytes(str(s.beacon.settings()), "utf-8"))


def test_half_a_wish_does_nothing(v1):
    """Neither a short press nor ten seconds: somebody thought better of it."""
    with scene(v1, settings=GIVEN, scale=1) as s:
        s.wait(lambda: s.beacon.wlan.connected)
        s.press(5)
        assert s.stays(lambda: not s.opened() and len(s.beacon.boots) == 1)
        assert s.beacon.setting("wifi_ssid") == SSID.encode()


def test_a_cut_while_it_forgets(v1):
    """All or nothing, whichever flash operation the power fails at."""
    from beacon_ota.virtual.flash.nor import PowerCutPoint

    cut_at = 0
    results = set()
    while True:
        with scene(v1, settings=GIVEN, scale=5) as s:
            # Nobody knows it here, which it writes down; from then on its flash is still.
            s.wait(lambda: s.beacon.setting("journal1") is not None)
            before = s.flash.ops
            s.flash.cut = PowerCutPoint(before + cut_at, "inside", 7)
            s.beacon.press()
            run(s.heard(lambda b: b.has(adverts.PRESSED)))
            s.skip(10)
            s.wait(lambda: not s.beacon.powered or len(s.beacon.boots) > 1)
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
