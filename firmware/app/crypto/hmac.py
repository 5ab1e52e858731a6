# HMAC-SHA256 and the comparison that goes with it: the root of every proof the beacon makes or
# checks (requests, answers, access credentials, session confirmations).

from hashlib import sha256

from micropython import const

from . import xor

_BLOCK = const(64)

_INNER = b"\x36" * _BLOCK
_OUTER = b"\x5c" * _BLOCK


# The message comes in parts, so that callers need not join buffers. MicroPython's hashes cannot be
# copied, so a prepared key would save no more than the two XORs.
def hmac_sha256(key, *parts):
    if len(key) > _BLOCK:
        key = sha256(key).digest()
    key += bytes(_BLOCK - len(key))
    inner = sha256(xor(key, _INNER))
    for part in parts:
        inner.update(part)
    outer = sha256(xor(key, _OUTER))
    outer.update(inner.digest())
    return outer.digest()


# Compares in constant time: the duration of a refusal must not tell how many bytes were right.
# Lengths are public.
def equal(a, b):
    if len(a) != len(b):
        return False
    different = 0
    for i in range(len(a)):
        different |= a[i] ^ b[i]
    return different == 0
