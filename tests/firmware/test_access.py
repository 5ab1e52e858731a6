"""Access control over the air, with the real app: also while it installs an update."""

import asyncio
import hashlib
import hmac
import time

import pytest
from bleak import BleakClient, BleakScanner
from bleak.exc import BleakError

from beacon_ota.provision import session
from beacon_ota.virtual.radio.selection import select_radio
from beacon_ota.virtual.radio.space import RadioSpace
from beacon_ota.wire import access, access_reader
from tests.firmware.beacons import bench
from tests.firmware.server import BEACON

IDENT, SECRET = b"door", bytes(range(16))
OTHERS = b"".join(bytes([i]) * 20 for i in range(31))
CREDENTIALS = OTHERS + IDENT + SECRET
LATEST = 0.25  # seconds until an answer


class Reader:
    """A reader at the door."""

    def __init__(self, client: BleakClient):
        self.client = client
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def start(self) -> None:
        await self.client.start_notify(
            access.STATUS, lambda _, data: self.heard.put_nowait(bytes(data))
        )

    async def say(self, message: bytes) -> tuple[int, bytes, float]:
        """Write; return what the beacon answers, and after how many seconds."""
        begun = time.monotonic()
        await self.client.write_gatt_char(access.CONTROL, message, response=True)
        answer = await asyncio.wait_for(self.heard.get(), 60)
        kind, payload = access.parse_message(answer)
        return kind, bytes(payload), time.monotonic() - begun

    async def enter(
        self, ident: bytes = IDENT, secret: bytes = SECRET, door: str | None = None
    ) -> tuple[int, float]:
        """Ask to be let in; return the verdict and the longest of the two waits.

        Args:
            door: the id of the beacon that the proof is for; None: for anyone's, the old way.
        """
        kind, nonce, first = await self.say(access_reader.build_request(ident))
        assert kind == access.CHALLENGE and len(nonce) == access.NONCE
        kind, _, second = await self.say(prove(nonce, secret, door))
        return kind, max(first, second)


def prove(nonce: bytes, secret: bytes, door: str | None) -> bytes:
    """Answer a challenge as a reader does, by docs/contracts.md."""
    key = secret
    if door is not None:
        key = hmac.digest(secret, b"beacon-ota access to the door " + door.encode(), "sha256")[:16]
    return access_reader.build_proof(hmac.digest(key, nonce, "sha256"))


def at_the_door(space: RadioSpace, visit) -> None:
    """Run ``visit(reader)`` connected to the beacon of the space."""

    async def main() -> None:
        chosen = select_radio(space.spec)
        device = await BleakScanner.find_device_by_filter(lambda *_: True, **chosen.scanner)
        assert device is not None
        async with BleakClient(device, **chosen.client) as client:
            reader = Reader(client)
            await reader.start()
            await visit(reader)

    asyncio.run(main())


@pytest.fixture
def space():
    with RadioSpace(seed=1) as space:
        yield space


def test_who_may_enter(v1, space):
    async def visit(reader: Reader) -> None:
        assert (await reader.enter())[0] == access.GRANTED
        assert (await reader.enter(secret=bytes(16)))[0] == access.REFUSED
        assert (await reader.enter(ident=b"none", secret=bytes(16)))[0] == access.REFUSED
        assert (await reader.enter(OTHERS[20:24], OTHERS[24:40]))[0] == access.GRANTED
        # A proof without a challenge, and one that is used a second time.
        assert (await reader.say(access_reader.build_proof(bytes(32))))[0] == access.REFUSED
        _, nonce, _ = await reader.say(access_reader.build_request(IDENT))
        proof = access_reader.build_proof(hmac.new(SECRET, nonce, hashlib.sha256).digest())
        assert (await reader.say(proof))[0] == access.GRANTED
        assert (await reader.say(proof))[0] == access.REFUSED
        # Rubbish is not answered.
        for message in (b"", b"\x09", b"\x01abc", bytes(20)):
            await reader.client.write_gatt_char(access.CONTROL, message, response=True)
        assert (await reader.enter())[0] == access.GRANTED

    settings = {"creds": CREDENTIALS}
    with bench(v1, settings=settings, scale=1, bluetooth=space.make_backend()) as b:
        b.wait(lambda: space.list_radios(), what="on the air")
        at_the_door(space, visit)


def test_a_proof_is_for_one_door(v1, space):
    """What proves a credential at one door proves nothing at another: none can be passed on."""

    async def visit(reader: Reader) -> None:
        # A credential that is held as it is: for this door, or for anybody's, the old way.
        assert (await reader.enter(door=BEACON))[0] == access.GRANTED
        assert (await reader.enter())[0] == access.GRANTED
        for other in ("beacon-2", BEACON + "1", BEACON[:-1], ""):
            assert (await reader.enter(door=other))[0] == access.REFUSED
        # One that is bound is not held here but its key for this door: nothing else is good.
        assert (await reader.enter(b"mine", SECRET, BEACON))[0] == access.GRANTED
        assert (await reader.enter(b"mine", SECRET))[0] == access.REFUSED
        assert (await reader.enter(b"mine", SECRET, "beacon-2"))[0] == access.REFUSED
        # And the key that another door holds opens that one only.
        assert (await reader.enter(b"mine", other_key))[0] == access.REFUSED
        assert (await reader.enter(b"none", SECRET, BEACON))[0] == access.REFUSED

    mine = access.door_key(session.hmac_sha256, SECRET, BEACON)
    other_key = access.door_key(session.hmac_sha256, SECRET, "beacon-2")
    settings = {"creds": IDENT + SECRET + b"mine" + mine}
    with bench(v1, settings=settings, scale=1, bluetooth=space.make_backend()) as b:
        b.wait(lambda: space.list_radios(), what="on the air")
        at_the_door(space, visit)


def test_a_door_without_an_id_goes_by_its_chip(v1, space):
    async def visit(reader: Reader) -> None:
        assert (await reader.enter(door="beacon-7cdfa1a1b2c3"))[0] == access.GRANTED
        assert (await reader.enter(door=BEACON))[0] == access.REFUSED

    settings = {"creds": IDENT + SECRET, "beacon_id": None}
    mac = bytes.fromhex("7cdfa1a1b2c3")
    with bench(v1, settings=settings, scale=1, bluetooth=space.make_backend(), mac=mac) as b:
        b.wait(lambda: space.list_radios(), what="on the air")
        at_the_door(space, visit)


def test_a_challenge_grows_old(v1, space):
    async def visit(reader: Reader) -> None:
        _, nonce, _ = await reader.say(access_reader.build_request(IDENT))
        await asyncio.sleep(1.75)
        proof = access_reader.build_proof(hmac.new(SECRET, nonce, hashlib.sha256).digest())
        assert (await reader.say(proof))[0] == access.REFUSED

    settings = {"creds": CREDENTIALS}
    with bench(v1, settings=settings, scale=4, bluetooth=space.make_backend()) as b:
        b.wait(lambda: space.list_radios(), what="on the air")
        at_the_door(space, visit)


def visits(v1, v2, space: RadioSpace) -> list[float]:
    """Ask to be let in again and again during an update; return all waits, in seconds.

    Flash takes its time, and the download comes at the chip's pace.
    """
    waits = []

    settings = {"creds": CREDENTIALS}
    with bench(
        v1, settings=settings, scale=1, timing=True, bluetooth=space.make_backend(), power=False
    ) as b:
        b.server.image, b.server.offering = v2, True
        b.beacon.link.faults.throttle = 30_000

        async def visit(reader: Reader) -> None:
            while not b.server.last("rebooting"):
                try:
                    verdict, wait = await reader.enter()
                except (BleakError, TimeoutError) as error:
                    late = f"{error!r} in the middle: {b.beacon.console[-500:]}"
                    assert b.server.last("verifying"), late
                    return
                assert verdict == access.GRANTED
                if b.server.last("downloading"):
                    waits.append(wait)

        b.beacon.power_on()
        at_the_door(space, visit)
    return waits


def test_doors_open_during_an_update(v1, v2, space):
    assert visits(v1, v2, space)


@pytest.mark.slow
def test_nobody_ever_waits_for_an_update(v1, v2, space):
    """Every answer within 250 ms, on a machine that has nothing else to do."""
    waits = visits(v1, v2, space)
    print(f"{len(waits)} visits, the longest wait {1000 * max(waits):.0f} ms")
    assert len(waits) > 5 and max(waits) < LATEST, waits
