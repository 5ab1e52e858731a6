"""The vectors of EC1, suite 0x21, that both sides have to meet byte for byte."""

from hashlib import sha256

from beacon_ota.provision import p256
from beacon_ota.wire import blufi

PIN = "73914826"
NAME = b"BLUFI_C3-0001"
POP = bytes(range(16))

W = "ff7a8b68b4233605952a6b895062191e5306b7567bcc6e01f7c1c069edaf97b6"
C_HELLO = (
    "ec010121e7e86573e24a4c8990daf4c4a967681eec2f7aeea9958b400ad438e1f6f21c1e162c84574584966fa08e"
    "f1522991e9150646e63f1436947ec8b85a4c2ba5150f6b2f9587d1657891234b3fd2c826ebd3"
)
S_HELLO = (
    "ec0102214c459f361d2c8b4da3b887db38c3251e1eba49c59e0b4286e6f5e552a77c9f666377e18ff30301b302c0"
    "022f00ee72813d40747627b6123e9c4ebcb1104603a6a95dc448e636e5dba23500446e612de9"
)
C_FIN = "ec0103214fcb8de5bd7cb5c80e3e29fece94f7d3"
S_FIN = "ec010421327e13912b52e6909b3afb4e87d763ab"
KEYS = (
    "8a5262723b648ed722de41bfa89f5dc0"
    "6b480d029e17744709beaa1bface10ab"
    "14ebec530c03f16bbf"
    "57373e537ccbf795a2"
)
FRAMES = (
    (blufi.SET_OPMODE, b"\1", "08010409365a2aa1c38122adf5"),
    (blufi.STA_SSID, b"TestNet", "0901050f9253431985d0c19fd1536b06b90c69"),
    (blufi.STA_PASSWORD, b"correct horse", "0d0106154c2ab5bbb43f482f7eeb0f49f485261e4a740754f3"),
    (blufi.CONNECT, b"", "0c01070864483512da9851a3"),
)


def chunks(scalar: bytes, nonce: bytes) -> list[bytes]:
    number = int.from_bytes(sha256(scalar).digest(), "big") % p256.ORDER
    return [number.to_bytes(32, "big"), sha256(nonce).digest()[:16]]


CLIENT = chunks(b"ec1 vector client", b"ec1 nonce c")
DEVICE = chunks(b"ec1 vector device", b"ec1 nonce s")
