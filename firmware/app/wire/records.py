# EC1's record layer: the cipher of a blufi.Link once both sides have confirmed. A frame's four
# header bytes are authenticated with it, and the nonce counts the frames of one direction, so
# that a frame can be neither bent, moved, repeated nor turned around. A frame that does not open
# ends the session: nothing opens after it.

from . import const

_PREFIX = const(9)


# `ccm(key)` has seal(nonce, aad, data) -> bytes and open(nonce, aad, data) -> bytes or None,
# AES-128-CCM with 8-byte tags. `keys` are the 50 bytes of the exchange: the client's key and the
# beacon's, the client's nonce prefix and the beacon's.
class Records:
    tag = 8

    def __init__(self, ccm, keys, device):
        client = ccm(keys[:16]), keys[32 : 32 + _PREFIX]
        beacon = ccm(keys[16:32]), keys[32 + _PREFIX :]
        (self._tx, self._tx_prefix), (self._rx, self._rx_prefix) = (
            (beacon, client) if device else (client, beacon)
        )
        self._sent = self._received = 0

    def seal(self, header, data):
        if self._sent >> 32:
            raise ValueError("record counter")  # it never comes round
        nonce = self._tx_prefix + self._sent.to_bytes(4, "big")
        self._sent += 1
        return self._tx.seal(nonce, header, data)

    def open(self, header, data):
        if self._rx is None or self._received >> 32:
            return None
        nonce = self._rx_prefix + self._received.to_bytes(4, "big")
        self._received += 1
        data = self._rx.open(nonce, header, data)
        if data is None:
            self._rx = None
        return data
