"""Who listens, and who stands between: neither learns a thing, nor changes one."""

import asyncio
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from beacon_ota.errors import BeaconOtaError
from beacon_ota.provision import flow, p256, session
from beacon_ota.provision.client import BlufiClient
from beacon_ota.provision.desired_config import DesiredConfig, parse_position
from beacon_ota.provision.gatt import GattConnection
from beacon_ota.provision.session import Initiator, SecretError, hkdf, hmac_sha256
from beacon_ota.virtual.radio.capture import Capture
from beacon_ota.wire import blufi, ec1, spake2
from beacon_ota.wire.records import Records
from tests.provision import scene as scenes
from tests.provision.scene import NAME, PASSWORD, PIN, SSID, WIFI, run, scene

WRITE, NOTIFY = 0x12, 0x1B  # ATT
PINS = 10_000
M, N = p256.decode_point(spake2.M), p256.decode_point(spake2.N)
CREDENTIALS = b"door" + bytes(range(16))
POSITION = parse_position("00112233-4455-6677-8899-aabbccddeeff:7:65535")


def messages(captured: Capture, opcode: int) -> Iterator[blufi.Message]:
    """Give what one side said before everything was sealed."""
    link = blufi.Link(opcode == WRITE)
    for one in captured:
        pdu = one.att_pdu
        if pdu and pdu[0] == opcode and len(pdu) > 7 and not pdu[4] & 1:
            message = link.receive(pdu[3:])
            if message is not None:
                yield message


def exchange(captured: Capture) -> tuple[bytes, bytes, bytes]:
    """Return C_HELLO, S_HELLO and C_FIN as they went over the air."""
    up = [m.data for m in messages(captured, WRITE) if m.type == blufi.NEGOTIATE]
    down = [m.data for m in messages(captured, NOTIFY) if m.type == blufi.NEGOTIATE]
    assert [m[2] for m in (*up, *down)] == [ec1.C_HELLO, ec1.C_FIN, ec1.S_HELLO, ec1.S_FIN]
    return up[0], down[0], up[1]


def fits(heard: tuple[bytes, bytes, bytes], w: int, k: bytes) -> bool:
    """Whether a PIN's w and a guess at K explain the client's proof: a dictionary's oracle."""
    c_hello, s_hello, c_fin = heard
    tt, root = ec1.derive_spake2(NAME.encode(), c_hello, s_hello, k, w.to_bytes(32, "big"))
    mine, _, _ = ec1.derive_keys(hkdf, hmac_sha256, c_hello, s_hello, tt, root)
    return c_fin[4:] == mine


def minus(point: p256.Point | None, other: p256.Point | None) -> p256.Point | None:
    return p256.add_points(point, p256.negate_point(other) if other else None)


def of(message: bytes) -> p256.Point:
    return p256.decode_point(message[20:])


def test_an_eavesdropper_learns_nothing(v1, monkeypatch):
    """Everything on the air is captured, and 10,000 PINs, the right one among them, are tried."""
    drawn = random.Random(3).randbytes
    known = drawn(32)
    monkeypatch.setattr(
        "beacon_ota.provision.client.Initiator",
        functools.partial(Initiator, random=lambda n: known if n == 32 else drawn(n)),
    )
    config = {"site": "a secret place", "ibeacon": POSITION, "fleet_key": bytes(range(16, 32))}
    pin = "4711"
    with scene(v1, pin=pin) as s:
        captured = s.room.start_capture()
        book = s.book
        done = s.online(secret=scenes.Secret(pin=pin), config=config, creds=CREDENTIALS, book=book)
        assert done.poll == "ok"
        [(_, key, _)] = book.entered
        stored = session.enroll_pin(pin, NAME.encode())
        sent = b"".join(one.payload for one in captured)
        said = b"".join(one.att_pdu[7:] for one in captured if one.att_pdu and len(one.att_pdu) > 7)
        heard = exchange(captured)
    # Nothing as it is, nor any eight bytes of it, whatever piece it was sent in.
    assert NAME.encode() in sent and len(said) > 1000
    for secret in (
        PASSWORD.encode(),
        b"a secret place",
        key,
        CREDENTIALS,
        config["fleet_key"],
        stored,
        scenes.ID.encode(),
        b"orchestrator.local",
    ):
        for at in range(max(1, len(secret) - 7)):
            assert secret[at : at + 8] not in sent and secret[at : at + 8] not in said
    assert pin.encode() not in said and b"\x02\x04" + SSID.encode() not in said
    # The proof on the air is explained by no PIN: what it hides behind is not there to be had.
    pa, pb = of(heard[0]), of(heard[1])
    at_hand = [p256.encode_point(point) for point in (pa, pb, p256.GENERATOR, M, N)] + [bytes(64)]
    for number in range(PINS):
        w = session.pin_scalar(f"{number:04}", NAME.encode())
        assert not fits(heard, w, at_hand[number % len(at_hand)])
    w = session.pin_scalar(pin, NAME.encode())
    x_g, y_g = minus(pa, p256.multiply_point(w, M)), minus(pb, p256.multiply_point(w, N))
    derived = [
        x_g,
        y_g,
        p256.add_points(x_g, y_g),
        p256.multiply_point(w, x_g),
        p256.multiply_point(w, y_g),
    ]
    derived += [minus(x_g, y_g), p256.multiply_point(w, pa), p256.multiply_point(w, pb)]
    for point in derived:
        assert point is not None and not fits(heard, w, p256.encode_point(point))
    for k in at_hand:
        assert not fits(heard, w, k)
    # With the client's scalar, which never left it, the same oracle finds the PIN.
    x = int.from_bytes(known, "big")
    secret = p256.multiply_point(x, y_g)
    assert secret is not None and fits(heard, w, p256.encode_point(secret))


class Impostor:
    """Plays the beacon to a client, with a guess at the PIN; stands in a connection's place."""

    mtu = 185
    gone = False

    def __init__(self, guess: str):
        self._w = session.pin_scalar(guess, NAME.encode())
        self._y = random.Random(guess).randrange(1, p256.ORDER)
        self._link = blufi.Link(True)
        self._frames: asyncio.Queue[bytes] = asyncio.Queue()
        self.heard: list[bytes] = []  # of the exchange
        self.right = False
        self.given: list[blufi.Message] = []

    async def __aenter__(self) -> "Impostor":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def receive(self, seconds: float) -> bytes | None:
        async with asyncio.timeout(seconds):
            return await self._frames.get()

    async def send(self, frame: bytes) -> None:
        message = self._link.receive(frame)
        if message is None:
            return
        if message.type != blufi.NEGOTIATE:
            self.given.append(message)
        elif message.data[2] == ec1.C_HELLO:
            self._say(message.data, self._hello(message.data))
        else:
            self._say(message.data, self._fin(message.data))
            if self.right:
                self._link.protect(session.SEALED, Records(session.Ccm, self._keys, True))

    def _say(self, taken: bytes, message: bytes) -> None:
        self.heard += [taken, message]
        self._link.send(blufi.NEGOTIATE, message)
        while frame := self._link.transmit():
            self._frames.put_nowait(frame)

    def _hello(self, c_hello: bytes) -> bytes:
        blind = p256.multiply_point(self._w, N)
        point = p256.add_points(p256.multiply_point(self._y, p256.GENERATOR), blind)
        assert point is not None
        return ec1.build_message(ec1.S_HELLO, ec1.SPAKE2, bytes(16) + p256.encode_point(point))

    def _fin(self, c_fin: bytes) -> bytes:
        c_hello, s_hello = self.heard
        tt, root = ec1.derive_spake2(
            NAME.encode(), c_hello, s_hello, self.k(self._w), self._w.to_bytes(32, "big")
        )
        theirs, mine, self._keys = ec1.derive_keys(hkdf, hmac_sha256, c_hello, s_hello, tt, root)
        self.right = c_fin[4:] == theirs
        return ec1.build_message(ec1.S_FIN, ec1.SPAKE2, mine)

    def k(self, w: int) -> bytes:
        """Return K as it would be with the PIN that w belongs to."""
        point = p256.multiply_point(self._y, minus(of(self.heard[0]), p256.multiply_point(w, M)))
        assert point is not None
        return p256.encode_point(point)


def between(stand: Any) -> BlufiClient:
    """Return a client that talks to this instead of to its beacon."""
    client = BlufiClient("", NAME, None)  # type: ignore[arg-type]
    client._gatt = stand
    return client


def test_an_impostor_has_one_guess():
    """It finds out whether its guess was right, and nothing about any other PIN; nor is it told."""

    async def meet(impostor: Impostor) -> None:
        async with between(impostor) as client:
            await client.prove_secret(pin=PIN)

    wrong = Impostor("00000000")
    with pytest.raises(SecretError) as caught:
        run(meet(wrong))
    assert caught.value.code == "wrong_secret" and "impostor" in caught.value.message
    assert not wrong.right and not wrong.given
    heard = wrong.heard[0], wrong.heard[1], wrong.heard[2]
    for guess in [PIN, "00000000", *(f"{number:08}" for number in range(40))]:
        w = session.pin_scalar(guess, NAME.encode())
        assert not fits(heard, w, wrong.k(w)), guess
    # With the right guess it would know: the oracle is a good one.
    lucky = Impostor(PIN)
    run(meet(lucky))
    w = session.pin_scalar(PIN, NAME.encode())
    assert [one.type for one in lucky.given] == [blufi.DISCONNECT_BLE]
    assert lucky.right and fits((lucky.heard[0], lucky.heard[1], lucky.heard[2]), w, lucky.k(w))


class Between:
    """Somebody on the way: lets frames through, some of them changed."""

    def __init__(self, gatt: GattConnection, change: Callable[[bool, bytes], bytes]):
        self._gatt, self._change = gatt, change
        self.seen: list[bytes] = []

    async def __aenter__(self) -> "Between":
        await self._gatt.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._gatt.__aexit__()

    @property
    def mtu(self) -> int:
        return self._gatt.mtu

    @property
    def gone(self) -> bool:
        return self._gatt.gone

    async def send(self, frame: bytes) -> None:
        self.seen.append(frame)
        await self._gatt.send(self._change(True, frame))

    async def receive(self, seconds: float) -> bytes | None:
        frame = await self._gatt.receive(seconds)
        return self._change(False, frame) if frame else frame


def bend(up: bool, kind: int, at: int, bit: int = 1) -> Callable[[bool, bytes], bytes]:
    """Flip a bit of one of the exchange's messages."""

    def change(going_up: bool, frame: bytes) -> bytes:
        ours = frame[0] == blufi.NEGOTIATE and frame[4:6] == b"\xec\x01" and frame[6] == kind
        if going_up != up or not ours:
            return frame
        return frame[: 4 + at] + bytes((frame[4 + at] ^ bit,)) + frame[5 + at :]

    return change


def forge(up: bool, frame: bytes) -> bytes:
    """The beacon, unlike itself, asks for Espressif's negotiation."""
    if up or frame[0] != blufi.NEGOTIATE:
        return frame
    return frame[:3] + b"\1\0"


def meddle(up: bool, frame: bytes) -> bytes:
    """Another mode than the one that was asked for, in a sealed frame."""
    if not up or frame[0] != blufi.SET_OPMODE:
        return frame
    return frame[:4] + bytes((frame[4] ^ 2,)) + frame[5:]


MEDDLING = {
    "the client's nonce": bend(True, ec1.C_HELLO, 4),
    "the client's point": bend(True, ec1.C_HELLO, 20),
    "the suite": bend(True, ec1.C_HELLO, 3, 0x30),
    "the beacon's nonce": bend(False, ec1.S_HELLO, 4),
    "the beacon's suite": bend(False, ec1.S_HELLO, 3, 0x30),
    "the client's proof": bend(True, ec1.C_FIN, 4),
    "the beacon's proof": bend(False, ec1.S_FIN, 19),
    "another negotiation": forge,
    "a request": meddle,
}


def test_who_changes_a_bit_changes_nothing(v1):
    """Each message of the exchange, and what is sealed: both sides refuse, nothing is stored."""

    async def body(s: scenes.Scene, change: Callable[[bool, bytes], bytes]) -> Between:
        found = await s.find()
        stand = Between(GattConnection(found.device, found.name, s.radio), change)
        with pytest.raises(BeaconOtaError):
            async with between(stand) as client:
                await client.prove_secret(pin=PIN)
                await client.join_network(SSID.encode(), PASSWORD.encode())
        return stand

    with scene(v1) as s:
        for name, change in MEDDLING.items():
            stand = run(body(s, change))
            for frame in stand.seen:
                assert frame[0] == blufi.NEGOTIATE or frame[1] & 1, f"{name}: in the clear"
            assert s.beacon.setting("wifi_ssid") is None, name
            s.skip(300)  # the wait after as many wrong guesses as there can be
        assert s.beacon.setting("pin_fail") in (None, 1, 2)
        assert s.online().poll == "ok"


def test_two_halves_of_an_attack(v1):
    """Between client and beacon with a wrong PIN on both sides: one guess each, and no session."""

    async def body(s: scenes.Scene) -> None:
        impostor = Impostor("00000000")
        with pytest.raises(SecretError):
            async with between(impostor) as client:
                await client.prove_secret(pin=PIN)
        assert not impostor.given
        found = await s.find()
        with pytest.raises(SecretError) as caught:
            await flow.provision_beacon(
                found,
                s.radio,
                flow.fixed_secret(scenes.Secret(pin="00000000")),
                DesiredConfig(WIFI),
                None,
            )
        assert caught.value.failures == 1

    with scene(v1) as s:
        run(body(s))
        assert s.beacon.setting("pin_fail") == 1
        assert s.beacon.setting("wifi_ssid") is None
