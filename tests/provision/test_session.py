"""The client of the exchange alone; tests/firmware/test_crypto_exchange.py gives it a beacon."""

import pytest

from beacon_ota.errors import BeaconOtaError, UsageError
from beacon_ota.provision.session import SEALED, Ccm, Initiator, enroll_pin, pin_scalar
from beacon_ota.wire import blufi, ec1
from tests.provision.vectors import (
    C_FIN,
    C_HELLO,
    CLIENT,
    FRAMES,
    NAME,
    PIN,
    POP,
    S_FIN,
    S_HELLO,
    W,
)


def test_vectors():
    assert pin_scalar(PIN, NAME) == int(W, 16)
    assert enroll_pin(PIN, NAME)[:32].hex() == W
    more = iter(CLIENT)
    client = Initiator(NAME, pin=PIN, random=lambda n: next(more))
    assert client.hello().hex() == C_HELLO
    assert client.answer(bytes.fromhex(S_HELLO)).hex() == C_FIN
    link = blufi.Link(False)
    link.mtu = 256
    for _ in range(4):  # the vectors begin at sequence number 4
        link.send(blufi.GET_VERSION)
        link.transmit()
    link.protect(SEALED, client.finish(bytes.fromhex(S_FIN)))
    for type_, data, frame in FRAMES:
        link.send(type_, data)
        assert link.transmit() == bytes.fromhex(frame)


@pytest.mark.parametrize(
    ("pin", "pop"),
    [(None, None), (PIN, POP), ("", None), (None, bytes(7)), (None, bytes(256))],
)
def test_secrets(pin, pop):
    with pytest.raises(UsageError) as raised:
        Initiator(NAME, pin=pin, pop=pop)
    assert raised.value.code == "ec1_secret"


def test_each_step_once():
    client = Initiator(NAME, pop=POP)
    for call in (client.answer, client.finish):
        with pytest.raises(UsageError):
            call(b"")
    client.hello()
    with pytest.raises(UsageError):
        client.hello()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (ec1.build_message(ec1.S_HELLO, ec1.ECDH, bytes(80)), "ec1_point"),
        (ec1.build_message(ec1.S_HELLO, ec1.ECDH, b"\xff" * 80), "ec1_point"),
        (ec1.build_message(ec1.S_HELLO, ec1.SPAKE2, bytes(80)), "ec1_suite"),
        (ec1.build_message(ec1.S_HELLO, ec1.ECDH, bytes(79)), "ec1_state"),
        (ec1.build_message(ec1.S_FIN, ec1.ECDH, bytes(16)), "ec1_state"),
        (b"\xec\2" + ec1.build_message(ec1.S_HELLO, ec1.ECDH, bytes(80))[2:], "ec1_version"),
        (bytes(128), "ec1_state"),  # another scheme's public value
        (b"", "ec1_state"),
    ],
)
def test_answers_that_end_it(answer, code):
    client = Initiator(NAME, pop=POP)
    client.hello()
    with pytest.raises(BeaconOtaError) as raised:
        client.answer(answer)
    assert raised.value.code == code
    with pytest.raises(UsageError):
        client.answer(answer)


def test_a_point_that_cancels_the_blinding():
    client = Initiator(NAME, pin=PIN)
    client.hello()
    w_n = enroll_pin(PIN, NAME)[96:]
    with pytest.raises(BeaconOtaError) as raised:
        client.answer(ec1.build_message(ec1.S_HELLO, ec1.SPAKE2, bytes(16) + w_n))
    assert raised.value.code == "ec1_point"


@pytest.mark.parametrize(
    ("code", "name", "kind"),
    [(1, "ec1_version", 1), (4, "wrong_secret", 4), (5, "locked", 4), (99, "ec1_abort", 1)],
)
def test_aborts_have_names(code, name, kind):
    client = Initiator(NAME, pin=PIN)
    client.hello()
    with pytest.raises(BeaconOtaError) as raised:
        client.answer(ec1.build_message(ec1.ABORT, ec1.SPAKE2, bytes([code])))
    assert (raised.value.code, raised.value.exit_code) == (name, kind)


def test_records_shorter_than_a_tag():
    ccm = Ccm(bytes(16))
    sealed = ccm.seal(bytes(13), b"head", b"")
    assert len(sealed) == 8 and ccm.open(bytes(13), b"head", sealed) == b""
    for size in range(8):
        assert ccm.open(bytes(13), b"head", sealed[:size]) is None
