# The curve P-256 (FIPS 186-4 D.1.2.3) on MicroPython's big integers, for provisioning only.
#
# On the C3 a product of two 256-bit numbers costs about 4,000 instructions and its reduction
# 10,000, so formulas are chosen by how few reductions they need, and inversion is Euclid's
# (0.6 M) instead of Fermat's (4.9 M). Points outside are pairs (x, y), or None for the point at
# infinity; inside, Jacobian triples (x, y, z) with z = 0 for infinity. Big integers take no
# constant time: secrets are made for one exchange, over a radio link, and thrown away.

from micropython import const

P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B

# Signed windows of five bits: digits are odd and below 16, so eight multiples are kept.
_WINDOW = const(5)
_HALF = const(16)
_WHOLE = const(32)
_ODD = const(8)


# The point that 64 bytes x ‖ y name, or ValueError: a coordinate that is no field element, or
# a point off the curve, would let a peer learn the secret piece by piece. The cofactor is 1, so
# every point of the curve is in the group; infinity has no such encoding.
def decode(data):
    if len(data) != 64:
        raise ValueError("point length")
    x = int.from_bytes(data[:32], "big")
    y = int.from_bytes(data[32:], "big")
    if x >= P or y >= P or (y * y - (x * x - 3) * x - _B) % P:
        raise ValueError("point off the curve")
    return x, y


def encode(point):
    return point[0].to_bytes(32, "big") + point[1].to_bytes(32, "big")


# No point of the curve has y = 0: the group's order is odd.
def negate(point):
    return point and (point[0], P - point[1])


def add(a, b):
    if a is None or b is None:
        return a or b
    return affine(add_mixed(a[0], a[1], 1, b))


# Runs a multiplication to its end. Multiplications are generators, so that other tasks can run
# every 10 ms or so: a quarter of a second is too long for a door.
def run_steps(steps):
    try:
        while True:
            next(steps)
    except StopIteration as done:
        return done.value


def multiply(k, point):
    return run_steps(steps(k, point))


# k·point for any point of the curve: once its small odd multiples are affine there is one mixed
# addition for every six doublings.
def steps(k, point):
    k %= N
    if not k or point is None:
        return None
    table = _odd_multiples(point)
    yield
    digits = _digits(k)
    x, y = table[digits.pop() >> 1]
    z = 1
    doublings = 0
    while digits:
        digit = digits.pop()
        doublings += 1
        if digit:
            x, y, z = double(x, y, z, doublings)
            doublings = 0
            other = table[abs(digit) >> 1]
            x, y, z = add_mixed(x, y, z, other if digit > 0 else negate(other))
            yield
    return affine(double(x, y, z, doublings))


# Width-5 non-adjacent form, least significant digit first: each is 0, or odd and below 16.
# The scalar passes through a small integer byte by byte: shifting all of it for every bit would
# cost as much as five additions of points.
def _digits(k):
    digits = []
    low = have = 0
    for byte in k.to_bytes(34, "little"):
        low += byte << have
        have += 8
        while have > _WINDOW:
            digit = 0
            if low & 1:
                digit = low & (_WHOLE - 1)
                if digit >= _HALF:
                    digit -= _WHOLE
                low -= digit
            digits.append(digit)
            low >>= 1
            have -= 1
    while not digits[-1]:
        digits.pop()
    return digits


# 1P, 3P … 15P, affine. 2P and the last multiple always share their z (Meloni's co-Z addition, seven
# products): their sum has z times the distance of their x, and 2P follows it there for nothing.
# The way back needs one inversion, for each z divides the next.
def _odd_multiples(point):
    p = P
    x, y, z = double(point[0], point[1], 1, 1)
    zz = z * z % p
    u, v = point[0] * zz % p, zz * z % p * point[1] % p
    found = []
    for _ in range(_ODD - 1):
        d = x - u
        dd = d * d % p
        x = x * dd % p
        w = u * dd % p
        e = y - v
        u = (e * e - x - w) % p
        y = (x - w) * y % p
        v = (e * (x - u) - y) % p
        z = z * d % p
        found.append((u, v, d))
    inverse = invert(z)
    table = [point]
    while found:
        u, v, d = found.pop()
        table.insert(1, _scale(u, v, inverse))
        inverse = inverse * d % p
    return table


# 2^times · (x, y, z): eight products and seven reductions each. y is kept doubled in between
# (2y from 2y needs no halving), and a = -3 gives the tangent as 3(x - z²)(x + z²).
def double(x, y, z, times):
    p = P
    y += y
    for _ in range(times):
        zz = z * z % p
        z = y * z % p
        yy = y * y % p
        m = x * yy % p
        t = (x - zz) * 3 * (x + zz) % p
        x = (t * t - (m << 1)) % p
        y = ((t << 1) * (m - x) - yy * yy) % p
    if y & 1:
        y += p
    return x, y >> 1, z


# (x, y, z) + point, the second one affine: eleven products. The sum of a point with itself or
# with its negative has no chord, and both do occur: peers choose the points.
def add_mixed(x, y, z, point):
    if not z:
        return point[0], point[1], 1
    p = P
    zz = z * z % p
    h = (point[0] * zz - x) % p
    r = (zz * z % p * point[1] - y) % p
    if not h:
        return (0, 1, 0) if r else double(point[0], point[1], 1, 1)
    hh = h * h % p
    v = x * hh % p
    hhh = hh * h % p
    x = (r * r - hhh - v - v) % p
    return x, (r * (v - x) - y * hhh) % p, z * h % p


def affine(jacobian):
    x, y, z = jacobian
    return _scale(x, y, invert(z)) if z else None


def _scale(x, y, inverse):
    square = inverse * inverse % P
    return x * square % P, square * inverse % P * y % P


# 1/a modulo P for a in 1 … P-1, by Euclid: about 150 short steps. (pow() takes no negative
# exponent on MicroPython, and a^(P-2) is eight times slower.)
def invert(a):
    b = P
    x, y = 1, 0
    while a != 1:
        q, r = divmod(b, a)
        b = a
        a = r
        x, y = y - q * x, x
    return x % P
