# AES-128-CCM with 13-byte nonces and 8-byte tags (RFC 3610; NIST SP 800-38C), from the ECB and CBC
# that the stock core has. For frames: everything is at most a few hundred bytes, in one piece.

from cryptolib import aes
from micropython import const

from . import xor
from .hmac import equal

_ECB = const(1)
_CBC = const(2)
_TAG = const(8)
_NONCE = const(13)
# Associated data present, 8-byte tag, two bytes of length.
_FLAGS = const(0x59)


class Ccm:
    def __init__(self, key):
        if len(key) != 16:
            raise ValueError("aes-ccm key")
        self._key = key
        self._ecb = aes(key, _ECB)

    # Returns ciphertext ‖ tag.
    def seal(self, nonce, aad, data):
        stream = self._stream(nonce, len(data))
        tag = self._tag(nonce, aad, data, stream)
        return xor(data, stream[16 : 16 + len(data)]) + tag

    # Returns the plaintext, or None when the tag does not fit.
    def open(self, nonce, aad, sealed):
        size = len(sealed) - _TAG
        if size < 0:
            return None
        stream = self._stream(nonce, size)
        data = xor(sealed[:size], stream[16 : 16 + size])
        return data if equal(self._tag(nonce, aad, data, stream), sealed[size:]) else None

    # Key stream: block 0 hides the tag, the data begins at block 1.
    def _stream(self, nonce, size):
        if len(nonce) != _NONCE:
            raise ValueError("aes-ccm nonce")
        blocks = bytearray(((size + 15) >> 4) + 1 << 4)
        for i in range(0, len(blocks), 16):
            blocks[i] = 1
            blocks[i + 1 : i + 14] = nonce
            blocks[i + 14] = i >> 12
            blocks[i + 15] = i >> 4 & 0xFF
        return self._ecb.encrypt(blocks)

    # CBC-MAC over the header block, the associated data and the data, each padded with zeros.
    def _tag(self, nonce, aad, data, stream):
        head = bytes((_FLAGS,)) + nonce + len(data).to_bytes(2, "big") + len(aad).to_bytes(2, "big")
        text = head + aad
        text += bytes(-len(text) & 15) + data
        text += bytes(-len(text) & 15)
        mac = aes(self._key, _CBC, bytes(16)).encrypt(text)
        return xor(mac[-16 : _TAG - 16], stream[:_TAG])
