"""The little P-256 arithmetic that SPAKE2 needs and ``cryptography`` does not offer.

The library multiplies points only inside ECDH and shows no more than the x coordinate of the
result; SPAKE2 adds and subtracts whole points (RFC 9382 §3.3). Plain affine double-and-add on
Python integers, some 20 ms and not constant time: each scalar is used once, for one exchange over
a radio link.
"""

P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B

Point = tuple[int, int]
"""An affine point; ``None`` in its place is the point at infinity."""

GENERATOR: Point = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)


def decode_point(data: bytes) -> Point:
    """Return the point that 64 bytes x ‖ y (big-endian) name.

    Raises:
        ValueError: not 64 bytes, a coordinate is no field element, or the point is not on the
            curve. The cofactor is 1: every point of the curve is in the group.
    """
    if len(data) != 64:
        raise ValueError("a point has 64 bytes")
    x, y = int.from_bytes(data[:32], "big"), int.from_bytes(data[32:], "big")
    if x >= P or y >= P or (y * y - x**3 + 3 * x - _B) % P:
        raise ValueError("not a point of the curve")
    return x, y


def encode_point(point: Point) -> bytes:
    """Return x ‖ y, 64 bytes."""
    return point[0].to_bytes(32, "big") + point[1].to_bytes(32, "big")


def negate_point(point: Point) -> Point:
    """Return the point with which ``point`` adds up to infinity."""
    return point[0], -point[1] % P


def add_points(a: Point | None, b: Point | None) -> Point | None:
    """Return a + b: chord, tangent, or infinity."""
    if a is None or b is None:
        return a or b
    if a[0] != b[0]:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, P)
    elif (a[1] + b[1]) % P:
        slope = (3 * a[0] * a[0] - 3) * pow(2 * a[1], -1, P)
    else:
        return None
    x = (slope * slope - a[0] - b[0]) % P
    return x, (slope * (a[0] - x) - a[1]) % P


def multiply_point(k: int, point: Point | None) -> Point | None:
    """Return k·point, for any integer k."""
    total: Point | None = None
    for bit in bin(k % ORDER)[2:]:
        total = add_points(total, total)
        if bit == "1":
            total = add_points(total, point)
    return total
