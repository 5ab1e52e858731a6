"""Makes BluFi frames for the fuzzers: proper conversations and mutations of them."""

import random
from collections.abc import Iterator, Sequence

from beacon_ota.provision import session
from beacon_ota.wire import blufi, ec1, tlv, wifi
from beacon_ota.wire.records import Records

NAME = "BLUFI_001124"


PIN = "73914826"


KEYS = bytes(range(50))


_LONGEST = 24  # frames of a case


_SIZES = (0, 1, 2, 3, 4, 5, 13, 19, 20, 79, 80, 84, 255, 256, 261, 512)


_INTERESTING = (0, 1, 2, 3, 4, 9, 0x10, 0x20, 0x21, 0x7F, 0x80, 0xEC, 0xFE, 0xFF)


_KINDS = (0x00, 0x01, 0x04, 0x08, 0x09, 0x0C, 0x0D, 0x14, 0x1C, 0x24, 0x3D, 0x41, 0x45, 0x49, 0x4D)


FrameCase = tuple[bytes, ...]


def format_case(case: FrameCase) -> str:
    return " ".join(frame.hex() or "-" for frame in case)


def fixed_bytes(size: int) -> bytes:
    return bytes(range(1, size + 1))


def proper_conversations() -> Iterator[FrameCase]:
    """Yield the conversations of a proper client and a proper beacon."""
    hello = ec1.build_message(ec1.C_HELLO, ec1.SPAKE2, bytes(16) + spake2_point())
    config = tlv.encode(tlv.CONFIG, {"site": "hq", "beacon_key": bytes(32), "utc_off": -60})
    state = tlv.encode(tlv.STATE, {"beacon_id": "b", "version": "1.0.0", "poll": "ok"})
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
        (blufi.CUSTOM, tlv.encode(tlv.QUERY, {})),
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
    if rng.random() < 0.7:  # frames out of sequence are refused early: mostly renumber them
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
