# RSA-3072 PSS verification, SHA-256, salt 32 (RFC 8017 §8.1.2 and §9.1.2; the scheme of ESP32
# Secure Boot v2). The exponent is 65537 and not a parameter, so it cannot be weakened.

from hashlib import sha256

from micropython import const

from . import xor
from .hmac import equal

_SIZE = const(384)
_HASH = const(32)
_SALT = const(32)
_DB = const(351)  # _SIZE - _HASH - 1
_ZEROS = const(318)  # _DB - 1 - _SALT
_ABOVE = const(3103)  # bits: two digits of mpz above the modulus


# True when `signature` (bytes) was made over the 32-byte `digest` by the holder of modulus `n` (384
# bytes or an integer). Malformed input is False.
def verify(n, digest, signature):
    return list(steps(n, digest, signature))[-1]


# The same in steps of about 11 ms on the C3, between which other tasks can run; the last value
# yielded is the answer. These are the sixteen squarings and one product that pow(s, 65537, n) makes
# at once. Each squaring is a pow(), too: that frees its scratch memory, where power * power % n
# would leave 19 KB more garbage by the end.
#
# They are reduced by the first multiple of n above 2^3103. mpz guesses each digit of a quotient
# from the modulus's first 16 bits and adds the modulus back while the guess was too high; behind
# this one's first bit come 31 zeros, and the guess is right. It saves a tenth, and what a check
# takes no longer depends on the key.
def steps(n, digest, signature):
    yield False
    if not isinstance(n, int):
        n = int.from_bytes(n, "big")
    if len(signature) != _SIZE or len(digest) != _HASH or n >> 3071 != 1 or not n & 1:
        return
    s = int.from_bytes(signature, "big")
    if s >= n:
        return
    multiple = ((1 << _ABOVE) // n + 1) * n
    power = s
    for _ in range(16):
        power = pow(power, 2, multiple)
        yield False
    yield _check_encoding((power * s % n).to_bytes(_SIZE, "big"), digest)


# EMSA-PSS-VERIFY with emBits = 3071: the leading bit is zero, the trailer is BC, and the data
# block unmasks to zeros, 01 and a salt of exactly 32 bytes.
def _check_encoding(encoded, digest):
    if encoded[_SIZE - 1] != 0xBC or encoded[0] & 0x80:
        return False
    seed = encoded[_DB : _DB + _HASH]
    block = xor(encoded[:_DB], _mgf1(seed, _DB))
    if block[0] & 0x7F or block[_ZEROS] != 1:
        return False
    if int.from_bytes(block[1:_ZEROS], "big"):
        return False
    expected = sha256(bytes(8))
    expected.update(digest)
    expected.update(block[_ZEROS + 1 :])
    return equal(expected.digest(), seed)


# MGF1 with SHA-256 (RFC 8017 B.2.1).
def _mgf1(seed, length):
    out = bytearray((length + _HASH - 1) // _HASH * _HASH)
    for i in range(len(out) // _HASH):
        block = sha256(seed)
        block.update(i.to_bytes(4, "big"))
        out[i * _HASH : (i + 1) * _HASH] = block.digest()
    return out[:length]
