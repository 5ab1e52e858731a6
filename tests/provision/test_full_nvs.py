"""Provisioning a beacon whose NVS is full or worn out: refused by name, nothing half stored, and
not one guess that is not counted.
"""

import pytest

from beacon_ota.errors import BeaconOtaError, InputError
from beacon_ota.wire import adverts
from tests.provision import scene as scenes
from tests.provision.scene import NAME, PASSWORD, PIN, SSID, run, scene

KINDS = ("full", "worn")
CREDENTIALS = b"door" + bytes(range(16))


def spoil(s: scenes.Scene, kind: str) -> None:
    if kind == "full":
        s.beacon.fill_nvs()
    else:
        s.beacon.wear_nvs(1)


def heal(s: scenes.Scene) -> None:
    s.beacon.drain_nvs()
    s.beacon.wear_nvs(0)


async def refused(s: scenes.Scene, pin: str) -> str:
    async with s.client(prove=False) as client:
        with pytest.raises(BeaconOtaError) as caught:
            await client.prove_secret(pin=pin)
        return caught.value.code


@pytest.mark.parametrize("kind", KINDS)
def test_no_guess_goes_uncounted(v1, kind):
    """Neither a wrong PIN nor the right one is answered: it cannot be told before it is counted."""
    with scene(v1, settings={"pin_fail": 2}, scale=1) as s:
        s.wait(s.opened)
        s.skip(3)
        spoil(s, kind)
        for pin in ("00000000", PIN, "00000000"):
            assert run(refused(s, pin)) == "ec1_state"
        assert s.beacon.setting("pin_fail") == 2
        assert len(s.beacon.boots) == 1 and "blufi crash" not in s.beacon.console
        heal(s)
        assert s.online().poll == "ok"
        assert s.beacon.setting("pin_fail") is None


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_stored_is_refused_by_name(v1, kind):
    async def body(s: scenes.Scene) -> None:
        async with s.client() as client:
            before = s.beacon.settings()
            spoil(s, kind)
            for act in (
                lambda: client.replace_credentials(CREDENTIALS),
                lambda: client.configure(beacon_key=bytes(32), orch_url="http://x:8080"),
                lambda: client.join_network(SSID.encode(), PASSWORD.encode()),
            ):
                with pytest.raises(InputError) as caught:
                    await act()
                assert (caught.value.code, caught.value.found) == ("setting_refused", "storage")
            kept = {key: v for key, v in s.beacon.settings().items() if key[0] == "beacon"}
            assert {k: v for k, v in kept.items() if "journal" not in k[1]} == {
                k: v for k, v in before.items() if "journal" not in k[1]
            }
            heal(s)
            await client.replace_credentials(CREDENTIALS)
            report = await client.join_network(SSID.encode(), PASSWORD.encode())
            assert report.word == "connected"
            assert s.beacon.setting("wifi_ssid") == SSID.encode()

    with scene(v1) as s:
        run(body(s))
        assert len(s.beacon.boots) == 1


def test_espressifs_app_is_let_in_once_or_not_at_all(v1):
    """The network and the end of `legacy` are stored together."""
    with scene(v1, policy={"legacy": 1}) as s:
        s.wait(s.opened)
        values = s.beacon.setting("policy")
        assert isinstance(values, bytes) and b'"legacy": 1' in values

        async def body() -> None:
            async with s.client() as client:
                spoil(s, "full")
                with pytest.raises(InputError):
                    await client.join_network(SSID.encode(), PASSWORD.encode())
                assert s.beacon.setting("policy") == values
                assert s.beacon.setting("wifi_ssid") is None
                heal(s)
                await client.join_network(SSID.encode(), PASSWORD.encode())

        run(body())
        found = s.beacon.setting("policy")
        assert isinstance(found, bytes) and b'"legacy": 0' in found


def test_the_button_makes_room(v1):
    """Ten seconds of it forget everything, on a full NVS, too."""
    with scene(v1) as s:
        assert s.online().poll == "ok"
        spoil(s, "full")
        boots = len(s.beacon.boots)
        s.beacon.press()
        run(s.heard(lambda b: b.has(adverts.PRESSED)))
        s.skip(11)
        s.wait(lambda: len(s.beacon.boots) > boots, what="reset")
        s.beacon.release()
        s.wait(s.opened)
        assert s.beacon.setting("wifi_ssid") is None and s.beacon.setting("beacon_key") is None
        heal(s)
        assert run(s.find()).name == NAME


def test_a_button_that_cannot_make_room(v1):
    """A worn NVS forgets nothing: that is said, and the beacon goes on."""
    with scene(v1) as s:
        assert s.online().poll == "ok"
        spoil(s, "worn")
        s.beacon.press()
        run(s.heard(lambda b: b.has(adverts.PRESSED)))
        s.skip(11)
        s.wait(lambda: "button not_stored" in s.beacon.console, what="said")
        s.beacon.release()
        run(s.heard(lambda b: not b.has(adverts.PRESSED)))
        assert len(s.beacon.boots) == 1
        assert s.beacon.setting("wifi_ssid") == SSID.encode()
