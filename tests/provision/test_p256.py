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
    assert p256.multiply_point(a, GENERATOR) == public(a)
    if (a + b) % ORDER:
        assert p256.add_points(public(a), public(b)) == public((a + b) % ORDER)
    assert p256.add_points(public(a), p256.negate_point(public(a))) is None
    assert p256.add_points(None, public(a)) == public(a) == p256.add_points(public(a), None)
    shared = p256.multiply_point(a, public(b))
    peer = ec.EllipticCurvePublicNumbers(*public(b), ec.SECP256R1()).public_key()
    exchanged = ec.derive_private_key(a, ec.SECP256R1()).exchange(ec.ECDH(), peer)
    assert shared and p256.encode_point(shared)[:32] == exchanged


def test_edges():
    assert (
        p256.multiply_point(0, GENERATOR) is None and p256.multiply_point(ORDER, GENERATOR) is None
    )
    assert p256.multiply_point(ORDER + 1, GENERATOR) == GENERATOR
    assert p256.multiply_point(-1, GENERATOR) == p256.negate_point(GENERATOR)
    assert p256.multiply_point(7, None) is None and p256.add_points(None, None) is None


@given(st.one_of(st.binary(max_size=70), st.binary(min_size=64, max_size=64)))
def test_any_bytes(data):
    with pytest.raises(ValueError):
        p256.decode_point(data)


@given(scalars)
def test_points_are_read_and_nothing_beside_them(k):
    x, y = public(k)
    data = p256.encode_point((x, y))
    assert p256.decode_point(data) == (x, y)
    for bad in ((x, y ^ 1), (x ^ 1, y), (x, 0), (P, y)):
        with pytest.raises(ValueError):
            p256.decode_point(p256.encode_point(bad))
    with pytest.raises(ValueError):
        p256.decode_point(b"\4" + data)
