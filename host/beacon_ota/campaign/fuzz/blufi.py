"""Fuzzing of provisioning: frames, messages and the exchange of keys, first in this process and
then over the air.

``parsers`` mutates conversations and keeps those that take a step of the codecs no other one has
taken; ``air`` says mutated things to a virtual beacon that runs the real firmware, before, in and
after the exchange of keys. What may come of it: a named refusal, or the end of the connection. A
case is written as its frames in hex, separated by blanks: :func:`replay` runs it again.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from beacon_ota.campaign.fuzz.coverage import CoverageEdge, trace_edges
from beacon_ota.errors import BeaconOtaError, ReachError
from beacon_ota.provision import session
from beacon_ota.provision.flow import AGAIN_S, ATTEMPTS
from beacon_ota.provision.session import Initiator, SecretError
from beacon_ota.wire import blufi, ec1, records, spake2, tlv, wifi
from beacon_ota.wire.records import Records

NAME = "BLUFI_001124"
PIN = "73914826"
MAC = bytes.fromhex("7cdfa1001122")
KEYS = bytes(range(50))

_WATCHED = {module.__file__ for module in (blufi, ec1, records, spake2, tlv, wifi)}
_ACKS = 8
_LONGEST = 24  # frames of a case
_SIZES = (0, 1, 2, 3, 4, 5, 13, 19, 20, 79, 80, 84, 255, 256, 261, 512)
_INTERESTING = (0, 1, 2, 3, 4, 9, 0x10, 0x20, 0x21, 0x7F, 0x80, 0xEC, 0xFE, 0xFF)
_KINDS = (0x00, 0x01, 0x04, 0x08, 0x09, 0x0C, 0x0D, 0x14, 0x1C, 0x24, 0x3D, 0x41, 0x45, 0x49, 0x4D)

FrameCase = tuple[bytes, ...]


@dataclass
class FuzzResult:
    """What came of it.

    Attributes:
        cases: that were run, in this process and over the air.
        air: of those, over the air.
        steps: from line to line of the codecs, that were reached.
        corpus: cases that reached something new.
        wrong: what must not be, with the case.
    """

    cases: int = 0
    air: int = 0
    steps: int = 0
    corpus: int = 0
    wrong: list[str] = field(default_factory=list)


def fuzz_provisioning(seconds: float, seed: int = 1, *, air_share: float = 0.5) -> FuzzResult:
    """Fuzz for some seconds; every choice depends on the seed."""
    found = fuzz_parsers(seconds * (1 - air_share), seed)
    if air_share > 0:
        over = fuzz_over_air(seconds * air_share, seed)
        found.cases += over.cases
        found.air = over.cases
        found.wrong += over.wrong
    return found


def replay_case(text: str) -> None:
    """Run a case of :func:`parsers` again.

    Raises:
        AssertionError: what was wrong.
    """
    _feed_both_ends(tuple(bytes.fromhex(part) if part != "-" else b"" for part in text.split()))


def _format_case(case: FrameCase) -> str:
    return " ".join(frame.hex() or "-" for frame in case)


# -- in this process


def fuzz_parsers(seconds: float, seed: int = 1) -> FuzzResult:
    """Mutate conversations, guided by the steps they take."""
    rng = random.Random(seed)
    found = FuzzResult()
    corpus: list[FrameCase] = []
    seen: set[tuple[str, int, int]] = set()
    end = time.monotonic() + seconds
    seeds = list(proper_conversations())
    while True:
        case = seeds.pop() if seeds else mutate_case(rng, rng.choice(corpus), corpus)
        reached, wrong = _trace_case(case)
        found.cases += 1
        if wrong:
            found.wrong.append(f"{wrong}: {_format_case(case)}")
        if not reached <= seen:
            seen |= reached
            corpus.append(case)
        if (time.monotonic() >= end and not seeds) or len(found.wrong) >= 10:
            found.steps, found.corpus = len(seen), len(corpus)
            return found


def _trace_case(case: FrameCase) -> tuple[set[CoverageEdge], str]:
    reached, error = trace_edges(lambda: _feed_both_ends(case), _WATCHED)
    return reached, f"{type(error).__name__} {error}" if error else ""


def _feed_both_ends(case: FrameCase) -> None:
    """Feed the frames to both ends, in the clear and with keys, and look at what is left."""
    for device in (True, False):
        for sealed in (True, False):
            link = blufi.Link(device)
            if sealed:
                link.protect(session.SEALED, Records(session.Ccm, KEYS, device))
            _feed_link(link, case)
    _answer_hellos(case)


def _feed_link(link: blufi.Link, case: FrameCase) -> None:
    for frame in case:
        try:
            message = link.receive(frame)
        except blufi.BlufiError as refused:
            assert 0 <= refused.code <= 13
            if refused.code == blufi.E_DECRYPT:
                return  # that ends a session
        else:
            if message is not None:
                assert len(message.data) <= blufi.MAX_MESSAGE
                _parse_message(message)
        assert len(link._buffer or b"") <= blufi.MAX_MESSAGE and len(link._acks) <= _ACKS
        while (answer := link.transmit()) is not None:
            assert 4 <= len(answer) <= 261
    for _ in range(2):  # the first may complain about an unfinished message
        good = bytes((blufi.GET_VERSION, 0, link._rx_seq, 0))
        try:
            message = link.receive(good)
            assert message is not None and message.type == blufi.GET_VERSION
            return
        except blufi.BlufiError as refused:
            assert refused.code == blufi.E_STATE, refused.code
    raise AssertionError("a good frame is refused afterwards")


def _parse_message(message: blufi.Message) -> None:
    data = message.data
    for reader, refusal in (
        (tlv.decode_message, tlv.MalformedMessage),
        (wifi.parse_report, blufi.BlufiError),
        (wifi.parse_list, blufi.BlufiError),
        (lambda data: ec1.parse_message(data, ec1.C_HELLO, (ec1.SPAKE2, ec1.ECDH)), ec1.Abort),
        (lambda data: ec1.parse_message(data, ec1.C_FIN, (ec1.SPAKE2,)), ec1.Abort),
    ):
        try:
            reader(data)
        except refusal:
            pass


def _answer_hellos(case: FrameCase) -> None:
    """Answer a client's hello with each frame's content."""
    for frame in case[:2]:
        client = Initiator(NAME.encode(), pop=PIN.encode(), random=_fixed_bytes)
        try:
            client._awaits = ec1.S_HELLO  # as after hello(), whose arithmetic is not the point
            client._x = 1
            client.answer(frame[4:])
        except BeaconOtaError:
            pass


def _fixed_bytes(size: int) -> bytes:
    return bytes(range(1, size + 1))


def proper_conversations() -> Iterator[FrameCase]:
    """Give what a proper client and a proper beacon say."""
    hello = ec1.build_message(ec1.C_HELLO, ec1.SPAKE2, bytes(16) + spake2_point())
    config = tlv.encode_message(tlv.CONFIG, {"site": "hq", "beacon_key": bytes(32), "utc_off": -60})
    state = tlv.encode_message(tlv.STATE, {"beacon_id": "b", "version": "1.0.0", "poll": "ok"})
    up = [
        (blufi.GET_VERSION, b""),
        (blufi.NEGOTIATE, hello),
        (blufi.NEGOTIATE, ec1.build_message(ec1.C_FIN, ec1.SPAKE2, bytes(16))),
        (blufi.NEGOTIATE, ec1.build_message(ec1.ABORT, ec1.SPAKE2, b"\4\1\0\1")),
        (blufi.NEGOTIATE, b"\0\1\7"),
        (blufi.SET_OPMODE, b"\1"),
        (blufi.STA_SSID, b"site"),
        (blufi.STA_PASSWORD, b"correct horse"),
        (blufi.CUSTOM, config),
        (blufi.CUSTOM, tlv.encode_message(tlv.QUERY, {})),
        (blufi.CUSTOM, bytes(700)),
        (blufi.CONNECT, b""),
    ]
    down = [
        (blufi.VERSION, b"\1\3"),
        (blufi.ERROR, b"\4"),
        (blufi.NEGOTIATE, ec1.build_message(ec1.S_HELLO, ec1.ECDH, bytes(16) + spake2_point())),
        (blufi.REPORT, wifi.build_report(wifi.FAILED, ssid=b"site", reason=201)),
        (blufi.LIST, wifi.build_list([(b"site", -55), (b"x" * 32, -90)])),
        (blufi.CUSTOM, state),
    ]
    for device, said in ((False, up), (True, down)):
        for mode in (0, 0x11, session.SEALED):
            for mtu in (23, 185):
                for ack in (False, True):
                    yield _encode_frames(device, said, mode, mtu, ack)


def spake2_point() -> bytes:
    """Return a point of the curve, as a hello has it."""
    from beacon_ota.provision import p256

    return p256.encode_point(p256.GENERATOR)


def _encode_frames(
    device: bool, said: Sequence[tuple[int, bytes]], mode: int, mtu: int, ack: bool
) -> FrameCase:
    link = blufi.Link(device)
    link.mtu = mtu
    sealed = mode == session.SEALED
    link.protect(mode, Records(session.Ccm, KEYS, device) if sealed else None)
    found: list[bytes] = []
    for kind, data in said:
        link.send(kind, data, ack)
        while (frame := link.transmit()) is not None:
            found.append(frame)
    return tuple(found)


def mutate_case(rng: random.Random, case: FrameCase, corpus: Sequence[FrameCase]) -> FrameCase:
    frames = list(case)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(frames)) if frames else 0
        choice = rng.randrange(8)
        if choice == 0 and len(frames) > 1:
            del frames[at]
        elif choice == 1:
            frames.insert(at, rng.choice(frames) if frames else b"")
        elif choice == 2:
            other = rng.choice(corpus)
            frames[at:at] = other[: rng.randrange(len(other) + 1)]
        elif choice == 3 and frames:
            frames[at : at + 1] = [_random_frame(rng)]
        elif frames:
            frames[at] = _mutate_frame(rng, frames[at])
    frames = frames[:_LONGEST]
    if rng.random() < 0.7:  # what is out of turn goes no further: mostly put it in turn
        frames = [f[:2] + bytes((i & 255,)) + f[3:] for i, f in enumerate(frames)]
    if rng.random() < 0.7:
        frames = [f[:3] + bytes((_length_field(f),)) + f[4:] if len(f) >= 4 else f for f in frames]
    return tuple(frames)


def _length_field(frame: bytes) -> int:
    return max(0, len(frame) - 4 - (2 if frame[1] & 2 else 0)) & 255


def _mutate_frame(rng: random.Random, frame: bytes) -> bytes:
    raw = bytearray(frame)
    choice = rng.randrange(6)
    at = rng.randrange(len(raw)) if raw else 0
    if choice == 0 and raw:
        raw[at] ^= 1 << rng.randrange(8)
    elif choice == 1 and raw:
        raw[at] = rng.choice(_INTERESTING)
    elif choice == 2:
        del raw[at:]
    elif choice == 3:
        raw[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))
    elif choice == 4 and len(raw) > 4:
        raw[1] |= 0x10
        raw[4:4] = rng.choice((0, 1, len(raw), 1024, 1025, 65535)).to_bytes(2, "little")
    elif raw:
        raw[0] = rng.choice(_KINDS)
    return bytes(raw[:512])


def _random_frame(rng: random.Random) -> bytes:
    data = rng.randbytes(rng.choice(_SIZES))
    fc = rng.choice((0, 0, 0x01, 0x02, 0x08, 0x10, 0x12, rng.randrange(256)))
    return bytes((rng.choice(_KINDS), fc, 0, len(data) & 255)) + data


# -- over the air


def fuzz_over_air(seconds: float, seed: int = 1) -> FuzzResult:
    """Say mutated things to a virtual beacon: at first, in the exchange, in a session.

    After each of them it has to run still, and to serve the next client as if nothing had been.
    """
    from beacon_ota.campaign.rig import builds
    from beacon_ota.virtual.beacon import VirtualBeacon
    from beacon_ota.virtual.flash.nor import Flash
    from beacon_ota.virtual.net.network import Network
    from beacon_ota.virtual.radio.selection import select_radio
    from beacon_ota.virtual.radio.space import RadioSpace

    network = Network(join_time=0.1, scan_time=0.1)
    network.add_access_point(builds.SSID, builds.PASSWORD)
    given: dict[str, int | bytes] = {
        "beacon_id": b"fuzzed",
        "pin_w": session.enroll_pin(PIN, NAME.encode()),
    }
    with (
        RadioSpace(seed=seed) as room,
        contextlib.closing(Flash(_build_flash(builds.build_release("1.0.0"), given))) as flash,
        VirtualBeacon(flash, mac=MAC, network=network, bluetooth=room.make_backend()) as beacon,
    ):
        beacon.power_on()
        return asyncio.run(
            _fuzz_beacon(seconds, random.Random(seed), beacon, select_radio(room.spec))
        )


def _build_flash(release: bytes, settings: dict[str, int | bytes]) -> bytes:
    from beacon_ota.campaign.rig import builds
    from beacon_ota.images import boards, flash, synthetic

    return flash.build_flash(
        boards.load_board(builds.DEVICE), synthetic.bootloader_image(), release, settings
    )


async def _fuzz_beacon(seconds: float, rng: random.Random, beacon: Any, radio: Any) -> FuzzResult:
    from beacon_ota.provision import scan
    from beacon_ota.provision.client import BlufiClient

    found = FuzzResult()
    end = time.monotonic() + seconds
    talk = list(proper_conversations())
    while time.monotonic() < end or not found.cases:
        stage = rng.choice(("clear", "exchange", "session"))
        case = mutate_case(rng, rng.choice(talk), talk)[: rng.randrange(1, 13)]
        try:
            heard = await scan.find_beacon(radio, NAME, 60)
            async with BlufiClient(heard.device, heard.name, radio) as client:
                await _send_case(client, stage, case, rng)
            await _provision_properly(radio, beacon)
        except (BeaconOtaError, AssertionError) as error:
            found.wrong.append(f"{stage}: {error}: {_format_case(case)}")
        found.cases += 1
        if len(beacon.boots) != 1 or "Traceback" in beacon.console:
            ends = [(boot.ended, boot.cause) for boot in beacon.boots]
            output = "".join(boot.console for boot in beacon.boots)
            found.wrong.append(f"{stage}: the beacon failed {ends}: {_format_case(case)}\n{output}")
        if found.wrong:
            break
    return found


async def _provision_properly(radio: Any, beacon: Any) -> None:
    """Do what a proper client does, which tries again when the beacon is not done with another."""
    from beacon_ota.provision import scan
    from beacon_ota.provision.client import BlufiClient

    for attempt in range(ATTEMPTS):
        heard = await scan.find_beacon(radio, NAME, 60)
        try:
            async with BlufiClient(heard.device, heard.name, radio) as client:
                await client.prove_secret(pin=PIN)
                assert (await client.query_state()).beacon_id == "fuzzed"
                return
        except ReachError:
            if attempt == ATTEMPTS - 1:
                raise
            await asyncio.sleep(AGAIN_S)
        except SecretError as error:
            if error.code != "too_soon":
                raise
            beacon.skip_time(error.wait)  # somebody has guessed: an exchange that was not finished


async def _send_case(client: Any, stage: str, case: FrameCase, rng: random.Random) -> None:
    """Say it; the beacon may hang up at any time."""
    seq = 0
    if stage == "session":
        await client.prove_secret(pin=PIN)
    elif stage == "exchange":
        link = blufi.Link(False)
        link.send(blufi.NEGOTIATE, Initiator(NAME.encode(), pin=PIN).hello())
        while (frame := link.transmit()) is not None:
            await client._gatt.send(frame)
            seq += 1
    try:
        for frame in case:
            if stage == "session":
                await _send_sealed(client, frame)
            else:
                turn = bytes((seq + frame[2] & 255,)) if len(frame) > 2 else b""
                await client._gatt.send(frame[:2] + turn + frame[3:])
        await client._gatt.receive(rng.choice((0.01, 0.2)))
    except ReachError:
        pass


async def _send_sealed(client: Any, frame: bytes) -> None:
    """Say it as a proper message; what would only be obeyed, and end the fun, is left out."""
    kind, data = (frame[0] if frame else blufi.CUSTOM), frame[4:]
    try:
        harmful = (
            kind in _HARMFUL or kind == blufi.CUSTOM and tlv.decode_message(data)[0] == tlv.FORGET
        )
    except tlv.MalformedMessage:
        harmful = False
    if harmful:
        return
    client._link.send(kind, data)
    while (sealed := client._link.transmit()) is not None:
        await client._gatt.send(sealed)


_HARMFUL = (blufi.CONNECT, blufi.DISCONNECT_BLE)
