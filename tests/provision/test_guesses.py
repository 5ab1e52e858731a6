"""Guesses at the PIN: counted, slowed down, locked, unlocked by who has the beacon in his hands."""

import pytest

from beacon_ota.provision.client import BlufiClient
from beacon_ota.provision.session import Initiator, SecretError
from beacon_ota.wire import adverts, blufi
from tests.provision import scene as scenes
from tests.provision.scene import PIN, run, scene


async def guess(client: BlufiClient, pin: str = "00000000") -> SecretError:
    """Try a PIN that is wrong; returns how that was taken."""
    with pytest.raises(SecretError) as caught:
        await client.prove_secret(pin=pin)
    return caught.value


async def exhaust(s: scenes.Scene) -> list[SecretError]:
    """Guess until the beacon hears no more."""
    said: list[SecretError] = []
    while not said or said[-1].code != "locked":
        found = await s.find()
        async with BlufiClient(found.device, found.name, s.radio) as client:
            said.append(await guess(client))
        if said[-1].code == "wrong_secret":
            s.skip(said[-1].wait)
    return said


def test_ten_wrong_pins_lock_the_beacon(v1):
    with scene(v1, scale=1) as s:
        said = run(exhaust(s))
        assert [one.code for one in said] == ["wrong_secret"] * 9 + ["locked"]
        assert [one.failures for one in said] == list(range(1, 11))
        for one, least in zip(said, (1, 2, 4, 8, 16, 32, 64, 128, 256), strict=False):
            assert least - 5 <= one.wait <= least, one.failures
        assert s.beacon.setting("pin_fail") == 10
        assert run(s.heard(lambda b: b.has(adverts.LOCKED))).state == "locked"

        async def right() -> str:
            async with s.client(prove=False) as client:
                return (await guess(client, PIN)).code

        # Neither the right PIN, nor time, nor a power cut opens it again; the count stays.
        assert run(right()) == "locked"
        s.beacon.power_cut()
        s.beacon.power_on()
        s.wait(s.opened)
        assert run(right()) == "locked"
        assert s.beacon.setting("pin_fail") == 10
        # Only who cuts the power and then holds the button.
        s.beacon.power_cut()
        s.beacon.power_on()
        s.wait(s.opened)
        s.press(2)
        s.wait(lambda: s.beacon.setting("pin_fail") is None, what="unlocked")
        assert s.online().poll == "ok"


def test_the_button_alone_does_not_unlock(v1):
    with scene(v1, settings={"pin_fail": 10}) as s:
        s.wait(s.opened)
        s.skip(11)
        s.press(2)
        s.wait(lambda: "provisioning: button" in s.beacon.console, what="pressed")
        assert s.beacon.setting("pin_fail") == 10


def test_too_soon_is_not_heard_and_not_counted(v1):
    async def body(s: scenes.Scene) -> None:
        async with s.client(prove=False) as client:
            first = await guess(client)
            assert (first.code, first.failures) == ("wrong_secret", 6)
            again = await guess(client, PIN)
            assert (again.code, again.failures) == ("too_soon", 6) and 0 < again.wait <= 32
            assert s.beacon.setting("pin_fail") == 6
            s.skip(again.wait)
            await client.prove_secret(pin=PIN)
            assert s.beacon.setting("pin_fail") is None

    with scene(v1, settings={"pin_fail": 5}, scale=1) as s:
        s.wait(s.opened)
        s.skip(16)
        run(body(s))


def test_the_wait_survives_a_power_cut(v1):
    with scene(v1, settings={"pin_fail": 6}, scale=1) as s:

        async def body() -> SecretError:
            async with s.client(prove=False) as client:
                return await guess(client, PIN)

        said = run(body())
        assert (said.code, said.failures) == ("too_soon", 6) and 25 < said.wait <= 32


def test_whoever_got_an_answer_has_guessed(v1):
    """Leaving after S_HELLO, or cutting the power: no guess is free."""

    async def half(s: scenes.Scene) -> None:
        async with s.client(prove=False) as client:
            exchange = Initiator(client.name.encode(), pin="00000000")
            await client._send(blufi.NEGOTIATE, exchange.hello())
            await client._expect(blufi.NEGOTIATE, 60)

    with scene(v1) as s:
        for number in (1, 2, 3):
            run(half(s))
            assert s.beacon.setting("pin_fail") == number
            if number == 2:
                s.beacon.power_cut()
                s.beacon.power_on()
                s.wait(s.opened)
            s.skip(2**number)
        # Whoever knows it begins at nought again.
        assert s.online().poll == "ok"
        assert s.beacon.setting("pin_fail") is None


def test_suites_count_together(v1):
    async def body(s: scenes.Scene) -> None:
        async with s.client(prove=False) as client:
            with pytest.raises(SecretError) as caught:
                await client.prove_secret(pop=b"not that one at all")
            assert caught.value.failures == 1
            s.skip(1)
            assert (await guess(client)).failures == 2

    with scene(v1, settings={"pop": scenes.POP}) as s:
        run(body(s))


def test_a_hello_that_is_none_is_no_guess(v1):
    """Nothing that serves to guess went out: it counts as a mistake, not as a guess."""

    async def body(s: scenes.Scene) -> None:
        async with s.client(prove=False) as client:
            for message in (
                b"\xec\x01\x01\x21" + bytes(80),
                b"\xec\x01\x01\x21",
                b"\xec\x01\x03\x21",
            ):
                await client._send(blufi.NEGOTIATE, message)
                with pytest.raises(Exception) as caught:
                    await client._expect(blufi.NEGOTIATE, 60)
                assert getattr(caught.value, "code", "") in ("ec1_point", "ec1_state")
            assert s.beacon.setting("pin_fail") is None
            await client.prove_secret(pin=PIN)

    with scene(v1) as s:
        run(body(s))
