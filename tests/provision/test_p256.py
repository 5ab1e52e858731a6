"""The client's point arithmetic against ``cryptography``."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_ota.provision import p256
from beacon_ota.provision.p256 import GENERATOR, ORDER, P

scalars = st.one_of(
    st.integers(1, ORDER - 1), st.integers(1, 50), st.integers(ORDER - 50, ORDER - 1)
)


def public(k: int) -> p256.Point:
    numbers = ec.derive_private_key(k, ec.SECP256R1()).public_key().public_numbers()
    return numbers.x, numbers.y


@settings(max_examples=60, deadline=None)
@given(scalars, scalars)
def test_multiples_and_sums(a, b):
    assert p256.multiply(a, GENERATOR) == public(a)
    if (a + b) % ORDER:
        assert p256.add(public(a), public(b)) == public((a + b) % ORDER)
    assert p256.add(public(a), p256.negate(public(a))) is None
    assert p256.add(None, public(a)) == public(a) == p256.add(public(a), None)
    shared = p256.multiply(a, public(b))
    peer = ec.EllipticCurvePublicNumbers(*public(b), ec.SECP256R1()).public_key()
    exchanged = ec.derive_private_key(a, ec.SECP256R1()).exchange(ec.ECDH(), peer)
    assert shared and p256.encode(shared)[:32] == exchanged


def test_edges():
    assert p256.multiply(0, GENERATOR) is None and p256.multiply(ORDER, GENERATOR) is None
    assert p256.multiply(ORDER + 1, GENERATOR) == GENERATOR
    assert p256.multiply(-1, GENERATOR) == p256.negate(GENERATOR)
    assert p256.multiply(7, None) is None and p256.add(None, None) is None


@given(st.one_of(st.binary(max_size=70), st.binary(min_size=64, max_size=64)))
def test_any_bytes(data):
    with pytest.raises(ValueError):
        p256.decode(data)


@given(scalars)
def test_points_are_read_and_nothing_beside_them(k):
    x, y = public(k)
    data = p256.encode((x, y))
    assert p256.decode(data) == (x, y)
    for bad in ((x, y ^ 1), (x ^ 1, y), (x, 0), (P, y)):
        with pytest.raises(ValueError):
            p256.decode(p256.encode(bad))
    with pytest.raises(ValueError):
        p256.decode(b"\4" + data)
