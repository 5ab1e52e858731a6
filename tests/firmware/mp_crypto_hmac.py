# RFC 4231 and RFC 5869 vectors, and the limits.
from binascii import unhexlify as unhex

from crypto.hkdf import expand, extract, hkdf
from crypto.hmac import equal, hmac_sha256


def test_rfc4231():
    for key, data, mac in (
        (
            b"\x0b" * 20,
            b"Hi There",
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
        ),
        (
            b"Jefe",
            b"what do ya want for nothing?",
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
        (
            b"\xaa" * 20,
            b"\xdd" * 50,
            "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
        ),
        (
            b"\xaa" * 131,
            b"Test Using Larger Than Block-Size Key - Hash Key First",
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
        ),
    ):
        assert hmac_sha256(key, data) == unhex(mac)
        assert hmac_sha256(key, memoryview(data)[:3], b"", bytearray(data[3:])) == unhex(mac)


def test_block_sized_key_is_not_hashed():
    key = bytes(range(64))
    assert hmac_sha256(key, b"x") != hmac_sha256(key + b"\0", b"x")


def test_equal():
    assert equal(b"", b"")
    assert equal(b"abc", bytearray(b"abc"))
    for other in (b"abd", b"bbc", b"ab", b"abcd", b""):
        assert not equal(b"abc", other)


def test_rfc5869():
    okm = hkdf(bytes(range(13)), b"\x0b" * 22, bytes(range(0xF0, 0xFA)), 42)
    assert okm == unhex(
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    long = hkdf(bytes(range(0x60, 0xB0)), bytes(range(80)), bytes(range(0xB0, 0x100)), 82)
    assert long == unhex(
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
        "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
        "cc30c58179ec3e87c14c01d5c1f3434f1d87"
    )
    assert hkdf(b"", b"\x0b" * 22, b"", 42) == unhex(
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


def test_lengths():
    prk = extract(b"", b"secret")
    assert expand(prk, b"a", 8160)[:5] == expand(prk, b"a", 5)
    for length in (0, -1, 8161):
        try:
            expand(prk, b"a", length)
        except ValueError:
            continue
        raise AssertionError(length)
