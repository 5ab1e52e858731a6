# HMAC-SHA256 and the comparison that goes with it: the root of every proof the beacon makes or
# checks (requests, answers, access credentials, session confirmations).

from hashlib import sha256

from micropython import const

_BLOCK = const(64)

_INNER = bytes([0x36]) * 64
_OUTER = bytes([0x5C]) * 64


# Two integers of a block's size XOR in C; sixty-four single bytes would be a loop in bytecode.
def _pad(key, pad):
    key = key + bytes(_BLOCK - len(key))
    return (int.from_bytes(key, "big") ^ int.from_bytes(pad, "big")).to_bytes(_BLOCK, "big")


# The message comes in parts so that nobody joins buffers only to authenticate them.
# MicroPython's hashes cannot be copied: a prepared key would save nothing but the two XORs.
def hmac_sha256(key, *parts):
    if len(key) > _BLOCK:
        key = sha256(key).digest()
    inner = sha256(_pad(key, _INNER))
    for part in parts:
        inner.update(part)
    outer = sha256(_pad(key, _OUTER))
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
