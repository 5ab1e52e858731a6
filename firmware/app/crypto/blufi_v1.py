# Espressif's own first BluFi scheme, for their phone app and only while the policy `legacy` is
# on: Diffie-Hellman in one fixed 1024-bit group, MD5 of the secret as the key, AES-128-CFB with
# the frame's sequence number as IV. It authenticates nobody and its records can be bent; it is
# here because people have that app, and the beacon's owner has to ask for it.

from hashlib import md5
from os import urandom

from cryptolib import aes
from micropython import const
from wire.blufi import E_DH_PARAM, E_FORMAT, BlufiError

from . import xor

_ECB = const(1)
_SIZE = const(128)
_MAX_PARAMS = const(1024)

# Both apps bring this prime and the generator 2. A group of the peer's choice would be its choice
# of our computing time, too.
_PRIME = (
    b"\xcf\x5c\xf5\xc3\x84\x19\xa7\x24\x95\x7f\xf5\xdd\x32\x3b\x9c\x45"
    b"\xc3\xcd\xd2\x61\xeb\x74\x0f\x69\xaa\x94\xb8\xbb\x1a\x5c\x96\x40"
    b"\x91\x53\xbd\x76\xb2\x42\x22\xd0\x32\x74\xe4\x72\x5a\x54\x06\x09"
    b"\x2e\x9e\x82\xe9\x13\x5c\x64\x3c\xae\x98\x13\x2b\x0d\x95\xf7\xd6"
    b"\x53\x47\xc6\x8a\xfc\x1e\x67\x7d\xa9\x0e\x51\xbb\xab\x5f\x5c\xf4"
    b"\x29\xc2\x91\xb4\xba\x39\xc6\xb2\xdc\x5e\x8c\x72\x31\xe4\x6a\xa7"
    b"\x72\x8e\x87\x66\x45\x32\xcd\xf5\x47\xbe\x20\xc9\xa3\xfa\x83\x42"
    b"\xbe\x6e\x34\x37\x1a\x27\xc0\x6f\x7d\xc0\xed\xdd\xd2\xf8\x63\x73"
)


# The beacon's side. receive() takes each negotiation payload; once it returns our public value,
# `cipher` is the one for the link. One modular power (0.5 s on the C3, in one piece) when the size
# of the parameters is announced, one when they come.
class Negotiation:
    def __init__(self, random=urandom):
        self._random = random
        self._announced = 0
        self.cipher = None

    def receive(self, data):
        if not data:
            raise BlufiError(E_FORMAT)
        if data[0] == 0:
            return self._announce(data)
        if data[0] == 1:
            return self._agree(data)
        if data[0] <= 4:  # P, G and K one by one: defined, and done by nobody
            return None
        raise BlufiError(E_FORMAT)

    def _announce(self, data):
        if len(data) < 3:
            raise BlufiError(E_FORMAT)
        self.cipher = None
        self._announced = data[1] << 8 | data[2]
        if not 0 < self._announced <= _MAX_PARAMS:
            self._announced = 0
            raise BlufiError(E_DH_PARAM)
        self._secret = int.from_bytes(self._random(32), "big")
        self._public = pow(2, self._secret, int.from_bytes(_PRIME, "big"))

    def _agree(self, data):
        announced = self._announced
        self._announced = 0
        if not announced or len(data) - 1 < announced:
            raise BlufiError(E_DH_PARAM)
        p, at = _read_field(data, 1)
        g, at = _read_field(data, at)
        k, at = _read_field(data, at)
        prime = int.from_bytes(_PRIME, "big")
        peer = int.from_bytes(k, "big")
        if p != _PRIME or g != b"\2" or len(k) > _SIZE or not 2 <= peer <= prime - 2:
            raise BlufiError(E_DH_PARAM)
        shared = pow(peer, self._secret, prime)
        self._secret = 0
        # Leading zeros are left away, by the apps as by the original firmware.
        self.cipher = Cfb(md5(shared.to_bytes(_SIZE, "big").lstrip(b"\0")).digest())
        return self._public.to_bytes(_SIZE, "big")


def _read_field(data, at):
    if at + 2 > len(data):
        raise BlufiError(E_DH_PARAM)
    end = at + 2 + (data[at] << 8 | data[at + 1])
    if end > len(data):
        raise BlufiError(E_DH_PARAM)
    return bytes(data[at + 2 : end]), end


# AES-128-CFB128, begun anew for every frame; lengths stay. Nothing can fail to open: the checksum
# has to tell.
class Cfb:
    tag = 0

    def __init__(self, key):
        self._ecb = aes(key, _ECB)

    # The input of each block is the ciphertext before it, all of which is here.
    def open(self, header, data):
        before = _build_iv(header) + data
        stream = self._ecb.encrypt(before[: len(data) + 15 & ~15])
        return xor(data, stream[: len(data)])

    def seal(self, header, data):
        sealed = b""
        before = _build_iv(header)
        for at in range(0, len(data), 16):
            part = data[at : at + 16]
            before = xor(part, self._ecb.encrypt(before)[: len(part)])
            sealed += before
        return sealed


def _build_iv(header):
    return header[2:3] + bytes(15)
