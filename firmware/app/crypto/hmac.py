# HMAC-SHA256 and the comparison that goes with it: the root of every proof the beacon makes or
# checks (requests, answers, access credentials, session confirmations).

from hashlib import sha256

from micropython import const

from . import xor

_BLOCK = const(64)

_INNER = b"\x36" * _BLOCK
_OUTER = b"\x5c" * _BLOCK


# The message comes in parts so that nobody joins buffers only to authenticate them.
# MicroPython's hashes cannot be copied: a prepared key would save nothing but the two XORs.
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


# Looks at every byte whatever the first ones say: how long a refusal takes tells a guesser
# nothing about how much was right. Lengths are public.
def equal(a, b):
    if len(a) != len(b):
        return False
    different = 0
    for i in range(len(a)):
        different |= a[i] ^ b[i]
    return different == 0
