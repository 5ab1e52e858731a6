"""EC1 between the beacon's own crypto, in the interpreter, and the client's on ``cryptography``."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_ota.errors import BeaconOtaError, DeniedError, UsageError
from beacon_ota.provision import p256
from beacon_ota.provision.session import SEALED, Initiator, enroll_pin
from beacon_ota.wire import blufi, ec1
from tests.firmware.interpreter import Interpreter, Raised
from tests.provision.vectors import (
    C_FIN,
    C_HELLO,
    DEVICE,
    FRAMES,
    KEYS,
    NAME,
    PIN,
    POP,
    S_FIN,
    S_HELLO,
    W,
)

SETUP = """
from crypto import exchange, p256
from crypto.ccm import Ccm
from wire import blufi, ec1
from wire.records import Records

class Over(Exception):
    pass

def guarded(call, *args):
    try:
        return call(*args)
    except ec1.Abort as abort:
        raise Over(abort.code, abort.by_peer)

def begin(name, stored, pop, chunks):
    global r
    more = iter(chunks or ())
    random = (lambda n: next(more)) if chunks else exchange.urandom
    r = exchange.Responder(name, stored, pop, random)
    p256.run_steps(r.prepare())

def hello(message):
    reply = guarded(r.hello, message)
    p256.run_steps(r.work())
    return reply

def finish(message):
    global link
    reply = guarded(r.finish, message)
    link = blufi.Link(True)
    link.protect(0x22, Records(Ccm, r.keys, True))
    return reply
"""


@pytest.fixture(scope="module")
def device():
    with Interpreter(SETUP) as interpreter:
        yield interpreter


def begin(device, *, stored=None, pop=None, name=NAME, random=None):
    device.ask("begin({}, {}, {}, {})", name, stored, pop, random)


def run(device, client: Initiator):
    """Carry the four messages; return the client's records."""
    answer = client.answer(device.ask("hello({})", client.hello()))
    return client.finish(device.ask("finish({})", answer))


def test_vectors_of_the_beacon(device):
    stored = enroll_pin(PIN, NAME)
    assert stored[:32].hex() == W
    assert device.ask("exchange.enroll({}, {})", PIN.encode(), NAME) == stored
    begin(device, stored=stored, random=DEVICE)
    assert device.ask("hello({})", bytes.fromhex(C_HELLO)).hex() == S_HELLO
    assert device.ask("finish({})", bytes.fromhex(C_FIN)).hex() == S_FIN
    assert device.ask("r.keys").hex() == KEYS
    device.ask("[link.receive(bytes((0x1c, 0, i, 0))) for i in range(4)] and None")
    ask = "(lambda m: (m.type, m.data, m.sealed))(link.receive({}))"
    for type_, data, frame in FRAMES:
        assert device.ask(ask, bytes.fromhex(frame)) == (type_, data, True)


@pytest.mark.parametrize(
    "secret", [{"pin": PIN}, {"pop": POP}, {"pop": bytes(255)}], ids=["pin", "pop", "long"]
)
def test_both_suites_and_sealed_frames_both_ways(device, secret: dict[str, Any]):
    if "pin" in secret:
        begin(device, stored=enroll_pin(PIN, NAME))
    else:
        begin(device, pop=secret["pop"])
    link = blufi.Link(False)
    link.protect(SEALED, run(device, Initiator(NAME, **secret)))
    for size in (0, 1, 7, 14, 300, 1024):
        data = bytes(i & 0xFF for i in range(size))
        for mtu in (23, 256):
            link.mtu = mtu
            device.ask("setattr(link, 'mtu', {})", mtu)
            link.send(blufi.CUSTOM, data)
            while frame := link.transmit():
                got = device.ask(
                    "(lambda m: m and (m.type, m.data, m.sealed))(link.receive({}))", frame
                )
            assert got == (blufi.CUSTOM, data, True)
            device.ask("link.send(blufi.CUSTOM, {})", data)
            while frame := device.ask("link.transmit()"):
                message = link.receive(frame)
            assert message and message.data == data and message.sealed


@pytest.mark.parametrize(("pin", "pop"), [(PIN, None), (None, POP)])
def test_a_beacon_with_both_secrets_takes_either(device, pin, pop):
    begin(device, stored=enroll_pin(PIN, NAME), pop=POP)
    run(device, Initiator(NAME, pin=pin, pop=pop))


def over(device, expression: str, *values) -> tuple[int, bool]:
    with pytest.raises(Raised) as raised:
        device.ask(expression, *values)
    assert raised.value.name == "Over"
    code, by_peer = str(raised.value).split("(")[1].rstrip(")").split(", ")
    return int(code), by_peer == "True"


@pytest.mark.parametrize(
    ("client", "stored", "pop"),
    [
        (Initiator(NAME, pin="73914827"), PIN, None),
        (Initiator(b"BLUFI_C3-0002", pin=PIN), PIN, None),
        (Initiator(NAME, pop=POP + b"\0"), None, POP),
        (Initiator(NAME, pop=POP[:-1]), None, POP),
    ],
    ids=["pin", "name", "long", "short"],
)
def test_wrong_secret_is_found_by_the_beacon_first(device, client, stored, pop):
    begin(device, stored=stored and enroll_pin(stored, NAME), pop=pop)
    fin = client.answer(device.ask("hello({})", client.hello()))
    assert over(device, "finish({})", fin) == (ec1.A_CONFIRM, False)
    # That was the only try: the right tag could not be offered either.
    assert over(device, "finish({})", fin) == (ec1.A_STATE, False)
    assert device.ask("r.keys") is None


def test_suite_that_the_beacon_does_not_have(device):
    begin(device, pop=POP)
    assert over(device, "hello({})", Initiator(NAME, pin=PIN).hello()) == (ec1.A_SUITE, False)
    begin(device, stored=enroll_pin(PIN, NAME))
    assert over(device, "hello({})", Initiator(NAME, pop=POP).hello()) == (ec1.A_SUITE, False)


def test_points_that_give_nothing(device):
    """Off the curve, out of range, and the one that cancels the blinding."""
    stored = enroll_pin(PIN, NAME)
    w_m = stored[32:96]
    hello = Initiator(NAME, pin=PIN).hello()
    x, y = p256.decode_point(hello[20:])
    for point in (
        w_m,
        p256.encode_point((x, y ^ 1)),
        p256.encode_point((y, x)),
        bytes(64),
        b"\xff" * 64,
        p256.P.to_bytes(32, "big") + bytes(32),
    ):
        begin(device, stored=stored)
        assert over(device, "hello({})", hello[:20] + point) == (ec1.A_POINT, False)
        assert over(device, "hello({})", hello) == (ec1.A_STATE, False)
    begin(device, stored=stored)
    doubled = p256.encode_point(
        p256.negate_point(p256.decode_point(w_m))
    )  # K = y·(-2·w·M): a point, wrong secret
    reply = device.ask("hello({})", hello[:20] + doubled)
    assert (
        over(device, "finish({})", ec1.build_message(ec1.C_FIN, ec1.SPAKE2, bytes(16)))[0]
        == ec1.A_CONFIRM
    )
    assert len(reply) == 84


def test_messages_out_of_turn(device):
    stored = enroll_pin(PIN, NAME)
    hello = Initiator(NAME, pin=PIN).hello()
    fin = ec1.build_message(ec1.C_FIN, ec1.SPAKE2, bytes(16))
    for first, code in (
        (fin, ec1.A_STATE),
        (hello[:-1], ec1.A_STATE),
        (hello + b"\0", ec1.A_STATE),
        (b"\xec\2" + hello[2:], ec1.A_VERSION),
        (b"\xec\1\2" + hello[3:], ec1.A_STATE),
        (hello[:3] + b"\x01" + hello[4:], ec1.A_SUITE),
        (b"", ec1.A_STATE),
        (b"\xec", ec1.A_STATE),
        (b"\0\1\7", ec1.A_STATE),
    ):
        begin(device, stored=stored)
        assert over(device, "hello({})", first) == (code, False), first.hex()
        assert over(device, "hello({})", hello) == (ec1.A_STATE, False)
    begin(device, stored=stored)
    abort = ec1.build_message(ec1.ABORT, ec1.SPAKE2, b"\4")
    assert over(device, "hello({})", abort) == (ec1.A_CONFIRM, True)
    begin(device, stored=stored)
    device.ask("hello({})", hello)
    assert over(device, "finish({})", hello) == (ec1.A_STATE, False)


def test_wrong_order_of_calls_is_the_callers_fault(device):
    begin(device, stored=enroll_pin(PIN, NAME))
    for call in ("p256.run_steps(r.work())", "p256.run_steps(r.prepare())"):
        with pytest.raises(Raised, match="ValueError"):
            device.ask(call)
    for arguments in (
        (NAME, bytes(159), None),
        (NAME, bytes(160), None),
        (NAME, None, bytes(7)),
        (NAME, None, bytes(256)),
    ):
        with pytest.raises(Raised, match="ValueError"):
            device.ask("begin({}, {}, {}, None)", *arguments)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 83 * 8 + 7), st.sampled_from(["c_hello", "s_hello", "c_fin", "s_fin"]))
def test_any_flipped_bit_ends_it(device, bit, which):
    """Whatever is changed on the way: no side ends with a session the other does not have."""

    def bend(name, message):
        if name != which:
            return message
        at = bit % (len(message) * 8)
        bent = bytearray(message)
        bent[at >> 3] ^= 1 << (at & 7)
        return bytes(bent)

    begin(device, pop=POP)
    client = Initiator(NAME, pop=POP)
    with pytest.raises((BeaconOtaError, Raised)):
        reply = device.ask("hello({})", bend("c_hello", client.hello()))
        fin = client.answer(bend("s_hello", reply))
        done = device.ask("finish({})", bend("c_fin", fin))
        client.finish(bend("s_fin", done))
    if which != "s_fin":  # the beacon may be done by then, but it took no other's tag
        assert device.ask("r.keys") is None


def test_fresh_numbers_each_time(device):
    seen = set()
    for _ in range(3):
        begin(device, pop=POP)
        client = Initiator(NAME, pop=POP)
        hello = client.hello()
        seen |= {
            hello[4:20],
            hello[20:],
            device.ask("hello({})", hello)[4:20],
            device.ask("r.keys"),
        }
    assert len(seen) == 10


def test_scalars_out_of_range_are_drawn_again(device):
    good = [(7).to_bytes(32, "big"), bytes(16)]
    order = p256.ORDER.to_bytes(32, "big")
    begin(device, pop=POP, random=[bytes(32), order, b"\xff" * 32, *good])
    assert device.ask("r._y") == 7
    more = iter([bytes(32), order, *good])
    hello = Initiator(NAME, pop=POP, random=lambda n: next(more)).hello()
    assert p256.decode_point(hello[20:]) == p256.multiply_point(7, p256.GENERATOR)


def test_an_impostor_that_has_seen_our_tag(device):
    begin(device, pop=POP)
    client = Initiator(NAME, pop=POP)
    client.answer(device.ask("hello({})", client.hello()))
    with pytest.raises(DeniedError) as raised:
        client.finish(ec1.build_message(ec1.S_FIN, ec1.ECDH, bytes(16)))
    assert raised.value.code == "wrong_secret"
    with pytest.raises(UsageError):
        client.finish(ec1.build_message(ec1.S_FIN, ec1.ECDH, bytes(16)))
