# The bytes of EC1. The exchange itself is tested with each side's crypto; here are the messages,
# what is refused, and that the shared schedule binds everything.
from hashlib import sha256

from beacon_ota.wire import ec1, spake2
from beacon_ota.wire.ec1 import Abort

HELLO = ec1.build_message(ec1.C_HELLO, ec1.SPAKE2, bytes(range(80)))
BOTH = (ec1.SPAKE2, ec1.ECDH)


def abort(data, type_=ec1.C_HELLO, suites=BOTH):
    try:
        ec1.parse_message(data, type_, suites)
    except Abort as error:
        return error.code, error.by_peer
    return None


# Stand-ins with the signatures of the real ones: what goes in, comes out mixed.
def hkdf(salt, ikm, info, length):
    out = b""
    while len(out) < length:
        out += sha256(b"".join((salt, b"|", ikm, b"|", info, b"|", bytes((len(out),))))).digest()
    return out[:length]


def hmac(key, *parts):
    return sha256(key + b"|" + b"".join(parts)).digest()


def test_lengths_and_headers():
    assert HELLO[:4] == b"\xec\x01\x01\x21" and len(HELLO) == 84
    assert ec1.parse_message(HELLO, ec1.C_HELLO, BOTH) == bytes(range(80))
    fin = ec1.build_message(ec1.S_FIN, ec1.ECDH, bytes(16))
    assert fin[:4] == b"\xec\x01\x04\x11" and len(fin) == 20
    assert ec1.parse_message(fin, ec1.S_FIN, (ec1.ECDH,)) == bytes(16)
    assert len(ec1.build_message(ec1.ABORT, ec1.ECDH, b"\1")) == 5


def test_espressifs_own_messages_are_not_ours():
    for data in (b"", b"\0\1\7", b"\1\0\x80", b"\4"):
        assert not ec1.is_ec1(data)
        assert abort(data) == (ec1.A_STATE, False)
    assert ec1.is_ec1(HELLO) and ec1.is_ec1(b"\xec")


def test_refusals():
    for data, code in (
        (b"\xec\x01\x01", ec1.A_STATE),
        (b"\xec\x02" + HELLO[2:], ec1.A_VERSION),
        (b"\xec\x00" + HELLO[2:], ec1.A_VERSION),
        (b"\xec\x01\x02" + HELLO[3:], ec1.A_STATE),
        (b"\xec\x01\x03" + HELLO[3:], ec1.A_STATE),
        (b"\xec\x01\x05" + HELLO[3:], ec1.A_STATE),
        (HELLO[:3] + b"\x01" + HELLO[4:], ec1.A_SUITE),
        (HELLO[:-1], ec1.A_STATE),
        (HELLO + b"\0", ec1.A_STATE),
        (HELLO[:20], ec1.A_STATE),
        (b"\xec\x01\x7f\x21", ec1.A_STATE),
        (b"\xec\x01\x7f\x21\1\2", ec1.A_STATE),
    ):
        assert abort(data) == (code, False), data
    assert abort(HELLO, suites=(ec1.ECDH,)) == (ec1.A_SUITE, False)
    assert abort(HELLO, suites=()) == (ec1.A_SUITE, False)
    assert abort(HELLO[:4] + bytes(16), ec1.C_FIN) == (ec1.A_STATE, False)


def test_the_peers_abort():
    for code in (1, 4, 5, 200):
        assert abort(ec1.build_message(ec1.ABORT, ec1.SPAKE2, bytes((code,)))) == (code, True)


def test_a_beacon_says_how_often_and_how_long():
    message = ec1.build_abort(Abort(ec1.A_CONFIRM, False, 3, 260), ec1.SPAKE2)
    assert message == b"\xec\x01\x7f\x21\x04\x03\x01\x04"
    try:
        ec1.parse_message(message, ec1.S_FIN, BOTH)
    except Abort as error:
        assert (error.code, error.by_peer, error.failures, error.wait) == (4, True, 3, 260)
    assert ec1.build_abort(Abort(ec1.A_POINT), ec1.ECDH) == b"\xec\x01\x7f\x11\x03"
    assert ec1.build_abort(Abort(5, False, 999, 1 << 20), ec1.ECDH)[-3:] == b"\xff\xff\xff"


# RFC 9382 §4 gives them compressed; y is even for M and odd for N.
def test_points_of_the_rfc():
    p = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
    for point, x, odd in (
        (spake2.M, 0x886E2F97ACE46E55BA9DD7242579F2993B64E16EF3DCAB95AFD497333D8FA12F, 0),
        (spake2.N, 0xD8BBD6C639C62937B04D997F38C3770719C629D7014D49A24B4F98BAA1292B49, 1),
    ):
        assert len(point) == 64
        y = int.from_bytes(point[32:], "big")
        assert int.from_bytes(point[:32], "big") == x
        assert (y * y - x * x * x + 3 * x - b) % p == 0 and y & 1 == odd


# Every input of a schedule changes everything that comes out. Three bytes of each output are kept,
# so that the device's heap holds them all.
def test_nothing_is_left_out():
    server = ec1.build_message(ec1.S_HELLO, ec1.SPAKE2, bytes(80))
    seen = [set(), set(), set()]
    count = 0

    def note(outputs):
        assert [len(part) for part in outputs] == [ec1.TAG, ec1.TAG, ec1.KEYS]
        for found, part in zip(seen, outputs):  # noqa: B905
            found.add(int.from_bytes(part[:3], "big"))
        return 1

    def spake(name=b"n", client=HELLO, server=server, k=bytes(64), w=bytes(32)):
        tt, root = ec1.derive_spake2(name, client, server, k, w)
        return note(ec1.derive_keys(hkdf, hmac, client, server, tt, root))

    def ecdh(client=HELLO, server=server, z=bytes(32), pop=bytes(16)):
        tt, root = ec1.derive_ecdh(hkdf, client, server, z, pop)
        return note(ec1.derive_keys(hkdf, hmac, client, server, tt, root))

    count += spake() + ecdh()
    for i in range(84):  # header, nonce and point alike
        bent = HELLO[:i] + bytes((HELLO[i] ^ 1,)) + HELLO[i + 1 :]
        count += spake(client=bent) + ecdh(client=bent)
        bent = server[:i] + bytes((server[i] ^ 1,)) + server[i + 1 :]
        count += spake(server=bent) + ecdh(server=bent)
    count += spake(name=b"m") + spake(name=b"")
    count += spake(k=b"\1" + bytes(63)) + spake(w=b"\1" + bytes(31))
    count += ecdh(z=b"\1" + bytes(31)) + ecdh(pop=bytes(17)) + ecdh(pop=b"\1" + bytes(15))
    assert count == 345
    assert [len(found) for found in seen] == [count] * 3


# A long name must not be able to pass for another field of the transcript.
def test_the_transcript_is_unambiguous():
    server = ec1.build_message(ec1.S_HELLO, ec1.SPAKE2, bytes(80))
    one = ec1.derive_spake2(b"ab", HELLO, server, bytes(64), bytes(32))[0]
    two = ec1.derive_spake2(b"a", HELLO, server, bytes(64), bytes(32))[0]
    assert one[:20] == b"\x0c\0\0\0\0\0\0\0blufi-client" and one[20:30] == b"\2\0\0\0\0\0\0\0ab"
    assert len(one) == 6 * 8 + 12 + 2 + 3 * 65 + 32 == len(two) + 1
