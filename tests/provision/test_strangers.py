"""Who proves nothing keeps nobody out: every place that one peer can hold comes free by itself."""

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from bleak import BleakClient
from bleak.exc import BleakError

from beacon_ota.errors import BeaconOtaError, ReachError
from beacon_ota.provision.gatt import GattConnection
from beacon_ota.provision.session import Initiator, hmac_sha256
from beacon_ota.wire import access, access_reader, adverts, blufi
from beacon_ota.wire.blufi import GET_VERSION, NEGOTIATE
from tests.provision import scene as scenes
from tests.provision.raw import FRAGMENT, Wire, frame, wire
from tests.provision.scene import run, scene

STAY = 60  # seconds that a link has to prove something
SHARE = 15  # of them that nobody else can end
PROVED = 1800  # for who knows the PIN
STEP = 10  # s between two things that a stranger does: less than any silence that is allowed
READER = {"creds": b"door" + bytes(range(16))}


def _version(n: int) -> list[bytes]:
    return [frame(GET_VERSION, seq=n)]


def _fragments(n: int) -> list[bytes]:
    total = (500).to_bytes(2, "little") if n == 0 else (500 - 4 * n).to_bytes(2, "little")
    return [frame(NEGOTIATE, total + b"1234", seq=n, fc=FRAGMENT)]


def _mistakes(n: int) -> list[bytes]:
    return [frame(NEGOTIATE, b"\x99", seq=n)]


def _acknowledgements(n: int) -> list[bytes]:
    return [frame(blufi.ACK, b"\0", seq=n)]


@pytest.mark.parametrize("words", [_version, _fragments, _mistakes, _acknowledgements])
def test_a_stranger_has_a_minute_whatever_he_says(v1, words):
    """Never silent for long, and at an end all the same."""

    async def body(s: scenes.Scene) -> None:
        async with wire(s) as line:

            async def say(n: int) -> None:
                await line.say(*words(n))
                while await line.gatt.receive(0.2) is not None:
                    pass

            await outstays(s, say)

    with scene(v1, scale=1) as s:
        run(body(s))
        assert s.online().poll == "ok"


async def outstays(s: scenes.Scene, say: Callable[[int], Awaitable[None]]) -> None:
    """Say something for more than a minute; it ends, and not by silence."""
    with pytest.raises(ReachError) as caught:
        for n in range(STAY // STEP + 1):
            await say(n)
            s.skip(STEP)
        for n in range(STAY // STEP + 1, 1000):  # until it looks
            await say(n)
    assert caught.value.code == "disconnected"


def test_wrong_pins_are_no_way_to_stay(v1):
    """Each exchange begins again on the same link."""

    async def body(s: scenes.Scene) -> None:
        async with s.client(prove=False) as client:

            async def guess(n: int) -> None:
                with pytest.raises(BeaconOtaError) as caught:
                    await client.prove_secret(pin="00000000")
                if caught.value.code == "disconnected":
                    raise caught.value

            await outstays(s, guess)

    with scene(v1, scale=1) as s:
        run(body(s))


def test_half_an_exchange_is_no_way_to_stay(v1):
    """S_HELLO is out, C_FIN never comes; meanwhile the version is asked for."""

    async def body(s: scenes.Scene) -> None:
        async with s.client(prove=False) as client:
            exchange = Initiator(client.name.encode(), pin="00000000")
            await client._send_message(NEGOTIATE, exchange.hello())
            await client._expect_message(NEGOTIATE, 60)

            async def ask(n: int) -> None:
                await client.protocol_version()

            await outstays(s, ask)

    with scene(v1, scale=1) as s:
        run(body(s))


def test_who_knows_the_pin_takes_his_time(v1):
    """Far more than a minute, but no day."""

    async def body(s: scenes.Scene) -> None:
        async with s.client() as client:
            await (
                client.query_state()
            )  # its time runs from when the beacon has seen the proof through
            for _ in range(PROVED // 250):
                s.skip(250)
                assert (await client.query_state()).beacon_id == scenes.ID
            s.skip(100)
            with pytest.raises(ReachError):
                while True:  # until it looks
                    await client.query_state()
                    await asyncio.sleep(0.2)

    with scene(v1, scale=1) as s:
        run(body(s))
        assert s.online().poll == "ok"


@contextlib.asynccontextmanager
async def strangers(s: scenes.Scene, links: int) -> AsyncIterator[None]:
    """So many peers who ask for the version all the time, and are back at once when cut off."""
    answered = asyncio.Event()
    found = await s.find()

    async def one() -> None:
        while True:
            try:
                async with GattConnection(found.device, found.name, s.radio) as gatt:
                    for n in range(1_000_000):
                        await Wire(gatt).say(frame(GET_VERSION, seq=n))
                        if await gatt.receive(0.2) is not None:
                            answered.set()
            except ReachError:
                pass

    tasks = [asyncio.create_task(one()) for _ in range(links)]
    try:
        async with asyncio.timeout(60):
            await answered.wait()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("links", [1, 3])
def test_the_owner_has_his_turn(v1, links):
    """However soon strangers are back: who came first is served first, for a quarter minute."""

    async def body(s: scenes.Scene) -> str:
        async with strangers(s, links):
            return (await s.provision()).poll

    with scene(v1, scale=2) as s:
        assert run(body(s)) == "ok"


def test_who_waits_does_not_disturb_who_proves(v1):
    """A session that has begun is not ended before its share is over, nor once the PIN is known."""

    async def body(s: scenes.Scene) -> None:
        async with s.client() as client, strangers_try(s):
            for _ in range(4):
                s.skip(SHARE)
                assert (await client.query_state()).beacon_id == scenes.ID

    @contextlib.asynccontextmanager
    async def strangers_try(s: scenes.Scene) -> AsyncIterator[None]:
        found = await s.find(opened=False)

        async def one() -> None:
            while True:
                with contextlib.suppress(ReachError):
                    async with GattConnection(found.device, found.name, s.radio) as gatt:
                        await Wire(gatt).say(frame(GET_VERSION))
                        await gatt.receive(5)

        task = asyncio.create_task(one())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    with scene(v1, scale=1) as s:
        run(body(s))


def test_who_waits_when_the_window_closes_is_not_served(v1):
    given = {"wifi_ssid": b"gone", "beacon_key": bytes(32)}

    async def body(s: scenes.Scene) -> None:
        found = await s.find()
        async with (
            GattConnection(found.device, found.name, s.radio) as first,
            GattConnection(found.device, found.name, s.radio) as second,
        ):
            await Wire(first).say(frame(GET_VERSION))
            assert (await Wire(first).hear())[0] == blufi.VERSION
            await Wire(second).say(frame(GET_VERSION))
            assert await second.receive(0.5) is None
            s.skip(40)
            with pytest.raises(ReachError):
                while await second.receive(30) is not None:
                    raise AssertionError("served")

    with scene(v1, settings=given, policy={"blufi": 1, "open_s": 30}, scale=1) as s:
        run(s.heard(lambda b: b.has(adverts.PROVISIONED)))
        s.unlock()
        run(body(s))


def test_a_credential_for_the_door_keeps_no_session(v1):
    """Who may enter does not hold provisioning by entering again and again."""

    async def body(s: scenes.Scene) -> None:
        async with wire(s) as line:
            client = line.gatt._client
            heard: asyncio.Queue[bytes] = asyncio.Queue()
            await client.start_notify(access.STATUS, lambda _, d: heard.put_nowait(bytes(d)))

            async def enter(n: int) -> None:
                await line.say(frame(GET_VERSION, seq=n))
                while await line.gatt.receive(0.2) is not None:
                    pass
                with contextlib.suppress(BleakError):
                    await client.write_gatt_char(
                        access.CONTROL, access_reader.build_request(b"door"), response=True
                    )
                    _, nonce = access.parse_message(await heard.get())
                    proof = access_reader.build_proof(
                        hmac.digest(bytes(range(16)), nonce, "sha256")
                    )
                    await client.write_gatt_char(access.CONTROL, proof, response=True)
                    assert access.parse_message(await heard.get())[0] == access.GRANTED

            await outstays(s, enter)

    with scene(v1, settings=READER, scale=1) as s:
        run(body(s))


@contextlib.asynccontextmanager
async def taken(s: scenes.Scene) -> AsyncIterator[list[BleakClient]]:
    """All four links, none of which says anything."""
    found = await s.find(opened=False)
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for _ in range(4):
            client = BleakClient(found.device, **s.radio.client)
            clients.append(await stack.enter_async_context(client))
        yield clients


def test_positioning_goes_on_while_all_links_are_taken(v1):
    settings = {"ibeacon": bytes(range(20)), "wifi_ssid": b"gone", "beacon_key": bytes(32)}

    async def body(s: scenes.Scene) -> None:
        async with taken(s) as clients:
            await s.heard(lambda b: b.position)
            [shown] = [one for one in s.space.list_radios() if one["address"] == scenes.ADDRESS]
            assert shown["advertising"]
            assert all(client.is_connected for client in clients)
        await s.heard(lambda b: b.position)

    with scene(v1, settings=settings, scale=1) as s:
        run(body(s))


@pytest.mark.parametrize("rubbish", [False, True])
def test_a_reader_finds_a_link(v1, rubbish):
    """All four are held by people who prove nothing, whether they speak or not."""

    async def hold(clients: list[BleakClient]) -> None:
        while True:
            for client in clients:
                with contextlib.suppress(BleakError):
                    await client.write_gatt_char(
                        access.CONTROL, access_reader.build_request(b"none"), response=True
                    )
            await asyncio.sleep(0.2)

    async def enter(s: scenes.Scene) -> int:
        found = await s.find(opened=False)
        async with BleakClient(found.device, timeout=60, **s.radio.client) as client:
            heard: asyncio.Queue[bytes] = asyncio.Queue()
            await client.start_notify(access.STATUS, lambda _, d: heard.put_nowait(bytes(d)))
            await client.write_gatt_char(
                access.CONTROL, access_reader.build_request(b"door"), response=True
            )
            _, nonce = access.parse_message(await heard.get())
            key = access.door_key(hmac_sha256, bytes(range(16)), scenes.ID)
            proof = access_reader.build_proof(hmac.digest(key, nonce, "sha256"))
            await client.write_gatt_char(access.CONTROL, proof, response=True)
            return access.parse_message(await heard.get())[0]

    async def body(s: scenes.Scene) -> None:
        async with taken(s) as clients:
            task = asyncio.create_task(hold(clients)) if rubbish else None
            try:
                s.skip(SHARE)
                assert await enter(s) == access.GRANTED
            finally:
                if task:
                    task.cancel()

    with scene(v1, settings=READER, scale=1) as s:
        run(body(s))


def test_whoever_is_let_in_again_and_again_stays(v1):
    """A reader at the wall keeps its link as long as it proves something."""

    async def body(s: scenes.Scene) -> None:
        found = await s.find(opened=False)
        async with BleakClient(found.device, **s.radio.client) as client:
            heard: asyncio.Queue[bytes] = asyncio.Queue()
            await client.start_notify(access.STATUS, lambda _, d: heard.put_nowait(bytes(d)))

            async def enter(key: bytes) -> int:
                await client.write_gatt_char(
                    access.CONTROL, access_reader.build_request(b"door"), response=True
                )
                _, nonce = access.parse_message(await heard.get())
                proof = access_reader.build_proof(hmac.digest(key, nonce, "sha256"))
                await client.write_gatt_char(access.CONTROL, proof, response=True)
                return access.parse_message(await heard.get())[0]

            for _ in range(2 * STAY // STEP):
                assert await enter(bytes(range(16))) == access.GRANTED
                s.skip(STEP)
            with pytest.raises((BleakError, TimeoutError)):
                for n in range(1000):  # until it looks
                    async with asyncio.timeout(5):
                        assert await enter(bytes(16)) == access.REFUSED
                    if n < STAY // STEP:
                        s.skip(STEP)

    with scene(v1, settings=READER, scale=1) as s:
        run(body(s))
