# HKDF-SHA256 (RFC 5869): session keys, the keys of encrypted releases.

from .hmac import hmac_sha256

_NO_SALT = bytes(32)


# Concentrates the entropy of `ikm` in 32 bytes.
def extract(salt, ikm):
    return hmac_sha256(salt or _NO_SALT, ikm)


# Stretches a 32-byte key into `length` bytes bound to `info`. More than 255 blocks is not defined.
def expand(prk, info, length):
    if not 0 < length <= 255 * 32:
        raise ValueError("hkdf length")
    block = b""
    out = b""
    for i in range(1, (length + 31) // 32 + 1):
        block = hmac_sha256(prk, block, info, bytes((i,)))
        out += block
    return out[:length]


def hkdf(salt, ikm, info, length):
    return expand(extract(salt, ikm), info, length)
