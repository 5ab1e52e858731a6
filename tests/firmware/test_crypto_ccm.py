"""The device's AES-CCM and AES-CTR against ``cryptography``."""

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.firmware.interpreter import Interpreter, Raised

key = st.binary(min_size=16, max_size=16)
nonce = st.binary(min_size=13, max_size=13)
aad = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=1, max_size=40))


@pytest.fixture(scope="module")
def device():
    with Interpreter("from crypto.ccm import Ccm\nfrom crypto.ctr import Ctr\n" + CTR) as one:
        yield one


CTR = """
def ctr(key, start, data, offset):
    data = bytearray(data)
    Ctr(key, start).apply(data, offset)
    return bytes(data)
"""


@settings(max_examples=80, deadline=None)
@given(key, nonce, aad, st.binary(max_size=300))
def test_seals_and_opens_what_the_library_does(device, key, nonce, aad, data):
    sealed = AESCCM(key, 8).encrypt(nonce, data, aad)
    assert device.ask("Ccm({}).seal({}, {}, {})", key, nonce, aad, data) == sealed
    assert device.ask("Ccm({}).open({}, {}, {})", key, nonce, aad, sealed) == data


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=40), st.data())
def test_any_change_is_refused(device, data, draw):
    key, nonce, aad = bytes(16), bytes(13), b"head"
    sealed = AESCCM(key, 8).encrypt(nonce, data, aad)
    where = draw.draw(st.integers(0, len(sealed) * 8 - 1))
    bent = bytearray(sealed)
    bent[where >> 3] ^= 1 << (where & 7)
    assert device.ask("Ccm({}).open({}, {}, {})", key, nonce, aad, bytes(bent)) is None
    for wrong in (
        (key, nonce, b"heat", sealed),
        (key, bytes(12) + b"\1", aad, sealed),
        (b"\1" * 16, nonce, aad, sealed),
        (key, nonce, aad, sealed[:-1]),
        (key, nonce, aad, sealed + b"\0"),
        (key, nonce, aad, sealed[:7]),
        (key, nonce, aad, b""),
    ):
        assert device.ask("Ccm({}).open({}, {}, {})", *wrong) is None


def test_every_length_around_the_blocks(device):
    for size in [*range(50), 239, 240, 241, 247, 255, 256, 4095, 4096, 5000]:
        data = bytes(i & 0xFF for i in range(size))
        sealed = AESCCM(b"k" * 16, 8).encrypt(b"n" * 13, data, b"\1\2\3\4")
        assert (
            device.ask("Ccm({}).open({}, {}, {})", b"k" * 16, b"n" * 13, b"\1\2\3\4", sealed)
            == data
        )


def test_sizes(device):
    for key, nonce in ((bytes(15), bytes(13)), (bytes(32), bytes(13)), (bytes(16), bytes(12))):
        with pytest.raises(Raised, match="ValueError"):
            device.ask("Ccm({}).seal({}, b'', b'')", key, nonce)


@settings(max_examples=60, deadline=None)
@given(
    key,
    st.one_of(key, st.integers(0, 600).map(lambda i: ((1 << 128) - 1 - i).to_bytes(16, "big"))),
    st.integers(0, 5000),
    st.binary(max_size=700),
)
def test_ctr_at_any_offset(device, key, start, offset, data):
    stream = Cipher(algorithms.AES(key), modes.CTR(start)).encryptor()
    stream.update(bytes(offset))
    assert device.ask("ctr({}, {}, {}, {})", key, start, data, offset) == stream.update(data)


def test_ctr_far_into_a_release(device):
    key, start = bytes(range(16)), b"\xff" * 12 + bytes(4)  # the low 32 bits do not wrap alone
    for block in (1 << 16, (1 << 32) - 3, 1 << 33):
        counter = (int.from_bytes(start, "big") + block) % (1 << 128)
        stream = Cipher(algorithms.AES(key), modes.CTR(counter.to_bytes(16, "big"))).encryptor()
        assert device.ask(
            "ctr({}, {}, {}, {})", key, start, bytes(100), block * 16
        ) == stream.update(bytes(100))
