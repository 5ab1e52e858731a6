"""The device's RSA-PSS verification against ``cryptography``: what one makes the other accepts,
and everything bent is refused by both."""

import hashlib
import random
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.firmware.interpreter import Interpreter

DIGEST = hashlib.sha256(b"release").digest()


@pytest.fixture(scope="module")
def key():
    return rsa.generate_private_key(65537, 3072)


@pytest.fixture(scope="module")
def device():
    with Interpreter("from crypto import pss") as interpreter:
        yield interpreter


def sign(key, digest=DIGEST, salt=32, hash_: Any = hashes.SHA256, mgf: Any = hashes.SHA256):
    return key.sign(digest, padding.PSS(padding.MGF1(mgf()), salt), Prehashed(hash_()))


def host(key, digest, signature) -> bool:
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    try:
        key.public_key().verify(signature, digest, pss, Prehashed(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def modulus(key) -> bytes:
    return key.public_key().public_numbers().n.to_bytes(384, "big")


def test_good_signatures(key, device):
    n = modulus(key)
    for i in range(8):
        digest = hashlib.sha256(bytes([i])).digest()
        assert device.ask("pss.verify({}, {}, {})", n, digest, sign(key, digest)) is True
    assert device.ask("pss.verify({}, {}, {})", int.from_bytes(n, "big"), DIGEST, sign(key))


def test_other_signers_schemes_and_salts(key, device):
    n = modulus(key)
    other = rsa.generate_private_key(65537, 3072)
    small = rsa.generate_private_key(65537, 2048)
    sha512 = hashlib.sha512(b"release").digest()
    for signature in (
        sign(other),
        sign(key, salt=0),
        sign(key, salt=20),
        sign(key, salt=31),
        sign(key, salt=33),
        sign(key, salt=350 - 32),
        sign(key, mgf=hashes.SHA1),
        sign(key, digest=sha512, hash_=hashes.SHA512),
        key.sign(DIGEST, padding.PKCS1v15(), Prehashed(hashes.SHA256())),
        sign(small),
        bytes(128) + sign(small),
    ):
        assert device.ask("pss.verify({}, {}, {})", n, DIGEST, signature) is False
    assert device.ask("pss.verify({}, {}, {})", modulus(other), DIGEST, sign(key)) is False
    assert device.ask("pss.verify({}, {}, {})", n, bytes(32), sign(key)) is False


@pytest.fixture(scope="module")
def power():
    """The modular power alone: what it comes to is given back instead of judged."""
    with Interpreter(
        "from crypto import pss\npss._check_encoding = lambda encoded, _: encoded"
    ) as found:
        yield found


LOWEST, HIGHEST = 1 << 3071 | 1, (1 << 3072) - 1


@settings(max_examples=60, deadline=None)
@given(st.integers(LOWEST, HIGHEST).map(lambda n: n | 1), st.integers(0, HIGHEST))
@example(LOWEST, LOWEST - 1)
@example(LOWEST, 2)
@example(HIGHEST, HIGHEST - 1)
@example(HIGHEST, 1 << 3071)
@example(HIGHEST - (1 << 1536), 0)
def test_the_power_under_any_modulus(power, n, s):
    s %= n
    found = power.ask("pss.verify({}, {}, {})", n, DIGEST, s.to_bytes(384, "big"))
    assert int.from_bytes(found, "big") == pow(s, 65537, n)


def test_bent_inputs(key, device):
    n = modulus(key)
    good = sign(key)
    number = int.from_bytes(n, "big")
    s = int.from_bytes(good, "big")
    for signature in (b"", good[:-1], good + b"\0", b"\0" + good, bytes(384), b"\xff" * 384, n):
        assert device.ask("pss.verify({}, {}, {})", n, DIGEST, signature) is False
    for signature in (1, number - 1, number - s):
        assert not device.ask("pss.verify({}, {}, {})", n, DIGEST, signature.to_bytes(384, "big"))
    if s + number < 1 << 3072:  # the same residue, written above the modulus
        assert not device.ask(
            "pss.verify({}, {}, {})", n, DIGEST, (s + number).to_bytes(384, "big")
        )
    for digest in (b"", DIGEST[:31], DIGEST + b"\0"):
        assert device.ask("pss.verify({}, {}, {})", n, digest, good) is False
    for bad in (0, 1, 4, number - 1, number >> 1, number << 1 | 1, b"", n[:-1], bytes(384)):
        assert device.ask("pss.verify({}, {}, {})", bad, DIGEST, good) is False


def test_flipped_bits(key, device):
    n = modulus(key)
    good = sign(key)
    rng = random.Random(7)
    for _ in range(40):
        bit = rng.randrange(3072)
        bent = (int.from_bytes(good, "big") ^ 1 << bit).to_bytes(384, "big")
        assert host(key, DIGEST, bent) is False
        assert device.ask("pss.verify({}, {}, {})", n, DIGEST, bent) is False


def encoded(key, message: int) -> bytes:
    """Sign without padding: the encoded message is ours to bend."""
    numbers = key.private_numbers()
    return pow(message, numbers.d, numbers.public_numbers.n).to_bytes(384, "big")


def mgf1(seed: bytes, size: int) -> bytes:
    blocks = (hashlib.sha256(seed + i.to_bytes(4, "big")).digest() for i in range(size // 32 + 1))
    return b"".join(blocks)[:size]


def emsa(db: bytes, salt: bytes, *, trailer=0xBC, top=0x7F) -> int:
    """EMSA-PSS as in RFC 8017 §9.1.1, with every part open to bending."""
    h = hashlib.sha256(bytes(8) + DIGEST + salt).digest()
    masked = bytearray(a ^ b for a, b in zip(db, mgf1(h, len(db)), strict=True))
    masked[0] &= top
    return int.from_bytes(bytes(masked) + h + bytes([trailer]), "big")


def test_every_field_of_the_encoding(key, device):
    n = modulus(key)
    salt = bytes(range(32))
    good = bytes(318) + b"\1" + salt
    cases = [
        (emsa(good, salt), True),
        (emsa(good, salt, trailer=0xCC), False),
        (emsa(bytes(318) + b"\2" + salt, salt), False),
        (emsa(b"\1" + bytes(317) + b"\1" + salt, salt), False),
        (emsa(bytes(317) + b"\1\1" + salt, salt), False),
        (emsa(bytes(317) + b"\1\0" + salt, salt), False),
        (emsa(bytes(317) + b"\1" + b"\7" + salt, b"\7" + salt), False),  # a salt of 33
        (emsa(bytes(319) + b"\1" + salt[1:], salt[1:]), False),  # a salt of 31
        (emsa(bytes(351), b""), False),
    ]
    for message, wanted in cases:
        signature = encoded(key, message)
        assert host(key, DIGEST, signature) is wanted
        assert device.ask("pss.verify({}, {}, {})", n, DIGEST, signature) is wanted
    # The 3072nd bit must be zero: emBits is 3071. Only reachable when it stays below n.
    raised = emsa(good, salt) | 1 << 3071
    if raised < int.from_bytes(n, "big"):
        assert not device.ask("pss.verify({}, {}, {})", n, DIGEST, encoded(key, raised))
