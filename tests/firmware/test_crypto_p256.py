"""The device's P-256 against the plain arithmetic and against ``cryptography``."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.firmware import plain_p256 as plain
from tests.firmware.interpreter import Interpreter, Raised

N, P, G = plain.N, plain.P, plain.G

scalars = st.one_of(
    st.integers(0, N - 1),
    st.integers(0, 2000).map(lambda i: N - 1 - i),
    st.integers(0, 2000),
    # Long runs of ones and zeros: carries through every window.
    st.tuples(st.integers(0, 255), st.integers(0, 255)).map(
        lambda t: ((1 << t[0]) - (1 << t[1])) % N
    ),
)
EDGES = [*range(40), *range(N - 40, N + 40), N // 2, N // 2 + 1, 2 * N, 2 * N + 1]
EDGES += [1 << i for i in (5, 52, 104, 156, 208, 255)]
EDGES += [(1 << i) - 1 for i in (5, 52, 104, 156, 208, 255, 256)]


@pytest.fixture(scope="module")
def device():
    with Interpreter("from crypto import p256, base") as interpreter:
        yield interpreter


def key(k: int) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(k, ec.SECP256R1())


def public(k: int) -> tuple[int, int]:
    numbers = key(k).public_key().public_numbers()
    return numbers.x, numbers.y


def test_plain_reference_is_right():
    for k in (1, 2, 3, N - 1, 0x1234567890ABCDEF << 100):
        assert plain.multiply(k, G) == public(k)
    assert plain.multiply(N, G) is None


def test_edge_scalars(device):
    q = public(0xC0FFEE)
    for k in EDGES:
        assert device.ask("base.multiply({})", k) == plain.multiply(k, G), k
        assert device.ask("p256.multiply({}, {})", k, q) == plain.multiply(k, q), k
    assert device.ask("p256.multiply(5, None)") is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(scalars, st.integers(1, N - 1)), min_size=4, max_size=4))
def test_agrees_with_cryptography(device, pairs):
    peers = [(k, public(other)) for k, other in pairs]
    got = device.ask("[(base.multiply(k), p256.multiply(k, q)) for k, q in {}]", peers)
    for (k, peer), (mine, shared) in zip(peers, got, strict=True):
        if not k:
            assert mine is None and shared is None
            continue
        assert mine == public(k)
        peer_key = ec.EllipticCurvePublicNumbers(*peer, ec.SECP256R1()).public_key()
        assert shared[0].to_bytes(32, "big") == key(k).exchange(ec.ECDH(), peer_key)
        assert plain.on_curve(shared)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, N - 1), scalars, st.integers(1, 9))
def test_sums(device, a, b, small):
    """Every pair that meets in an addition: others, equals, negatives, infinity."""
    q, r = public(a), plain.multiply(b, G)
    double = plain.multiply(2 * a, G)
    for left, right in ((q, r), (r, q), (q, q), (q, (q[0], P - q[1])), (q, None), (None, q)):
        assert device.ask("p256.add({}, {})", left, right) == plain.add(left, right)
    assert device.ask("p256.add({}, {})", q, q) == double
    assert device.ask("p256.negate({})", q) == (q[0], P - q[1])
    # The comb with a point added at the end: chord, tangent, and nothing left.
    assert device.ask("base.multiply({}, {})", b, q) == plain.add(r, q)
    assert device.ask("base.multiply({}, {})", a, q) == double
    assert device.ask("base.multiply({}, {})", N - a, q) is None
    assert device.ask("base.multiply(0, {})", q) == q
    multiple = plain.multiply(small, q)
    assert device.ask("p256.add(p256.multiply({}, {}), {})", N - small, q, multiple) is None


def test_jacobian_steps_with_any_z(device):
    """The inside of a multiplication: doubling and mixed addition for z other than 1."""
    q = public(77)
    for k, z in ((77, 5), (N - 77, 5), (78, P - 1), (1, 2**255), (12345, P // 3)):
        x, y = public(k)
        point = (x * z * z % P, y * z**3 % P, z)
        assert device.ask("p256.affine(p256.add_mixed({}, {}, {}, {}))", *point, q) == plain.add(
            (x, y), q
        )
        for times in (0, 1, 2, 5, 60):
            got = device.ask("p256.affine(p256.double({}, {}, {}, {}))", *point, times)
            assert got == plain.multiply(k << times, G)
    assert device.ask("p256.affine(p256.double(0, 1, 0, 3))") is None
    assert device.ask("p256.affine(p256.add_mixed(0, 1, 0, {}))", q) == q


@settings(max_examples=100, deadline=None)
@given(st.integers(1, P - 1))
def test_inversion(device, a):
    assert device.ask("p256.invert({})", a) == pow(a, -1, P)


def test_small_and_large_inverses(device):
    for a in (1, 2, 3, P - 1, P - 2, (P + 1) // 2, 1 << 255, (1 << 96) - 1):
        assert device.ask("p256.invert({})", a) * a % P == 1


def refused(device, data: bytes) -> bool:
    try:
        device.ask("p256.decode({})", data)
    except Raised as raised:
        assert raised.name == "ValueError"
        return True
    return False


def wide(x: int, y: int) -> bytes:
    return x.to_bytes(32, "big") + y.to_bytes(32, "big")


def test_points_from_outside(device):
    for k in (1, 2, N - 1, 987654321):
        point = public(k)
        assert device.ask("p256.decode({})", wide(*point)) == point
        assert device.ask("p256.encode(p256.decode({}))", wide(*point)) == wide(*point)
    x, y = public(31337)
    root = plain.multiply(3, G)
    assert root
    sqrt_b = pow(plain.B, (P + 1) // 4, P)  # x = 0 is on the curve
    assert device.ask("p256.decode({})", wide(0, sqrt_b)) == (0, sqrt_b)
    for bad in (
        wide(x, y ^ 1),
        wide(x ^ 1, y),
        wide(y, x),
        wide(0, 0),
        wide(x, 0),
        wide(0, sqrt_b + P) if sqrt_b + P < 1 << 256 else wide(P, sqrt_b),
        wide(P, sqrt_b),  # zero, written as the modulus
        wide(0, P),
        wide((1 << 256) - 1, (1 << 256) - 1),
        b"",
        wide(x, y)[:-1],
        wide(x, y) + b"\0",
        b"\4" + wide(x, y),
    ):
        assert refused(device, bad), bad.hex()
    # Small coordinates have a second way to be written in 256 bits; both must not pass.
    for small in range(2, 60):
        yy = (small**3 - 3 * small + plain.B) % P
        y = pow(yy, (P + 1) // 4, P)
        if y * y % P == yy:
            assert not refused(device, wide(small, y))
            assert refused(device, wide(small + P, y))


def test_twist_points_are_refused(device):
    """x without a y on the curve: with any y at all it is a point of some other curve."""
    found = 0
    for x in range(1, 200):
        yy = (x**3 - 3 * x + plain.B) % P
        if pow(yy, (P - 1) // 2, P) != 1:
            found += 1
            for y in (1, pow(yy, (P + 1) // 4, P)):
                assert refused(device, wide(x, y))
    assert found > 50


def test_table_of_the_comb(device):
    for i in range(16):
        scalar = (1 << 208) + sum((1 if i >> t & 1 else -1) << 52 * t for t in range(4))
        assert device.ask("base._entry({})", i) == plain.multiply(scalar, G)
