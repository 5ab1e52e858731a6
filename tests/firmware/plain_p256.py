# P-256 the plain way: Jacobian double-and-add, inversion by Fermat. What the device's arithmetic is
# checked against and measured by; runs under both Pythons.

P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)


def on_curve(point):
    x, y = point
    return 0 <= x < P and 0 <= y < P and (y * y - x * x * x + 3 * x - B) % P == 0


def double(a):
    x, y, z = a
    if not z:
        return a
    yy = y * y % P
    s = 4 * x * yy % P
    zz = z * z % P
    m = 3 * (x - zz) * (x + zz) % P
    nx = (m * m - 2 * s) % P
    return nx, (m * (s - nx) - 8 * yy * yy) % P, 2 * y * z % P


def join(a, b):
    if not a[2] or not b[2]:
        return b if not a[2] else a
    aa = a[2] * a[2] % P
    bb = b[2] * b[2] % P
    u = a[0] * bb % P
    s = a[1] * bb * b[2] % P
    h = (b[0] * aa - u) % P
    r = (b[1] * aa * a[2] - s) % P
    if not h:
        return (0, 1, 0) if r else double(a)
    hh = h * h % P
    hhh = h * hh % P
    v = u * hh % P
    x = (r * r - hhh - 2 * v) % P
    return x, (r * (v - x) - s * hhh) % P, h * a[2] * b[2] % P


def affine(a):
    if not a[2]:
        return None
    inverse = pow(a[2], P - 2, P)
    square = inverse * inverse % P
    return a[0] * square % P, a[1] * square * inverse % P


def lift(point):
    return (point[0], point[1], 1) if point else (0, 1, 0)


def add(a, b):
    return affine(join(lift(a), lift(b)))


def multiply(k, point):
    k %= N
    total = (0, 1, 0)
    power = lift(point)
    while k:
        if k & 1:
            total = join(total, power)
        power = double(power)
        k >>= 1
    return affine(total)
