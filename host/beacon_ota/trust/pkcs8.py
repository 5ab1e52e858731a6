"""Encrypted PKCS#8 with scrypt (RFC 5958, RFC 7914 §7): what a private key is on disk.

``cryptography`` reads this form but writes PBKDF2 only, so the few DER structures around the
ciphertext are written here. ``openssl pkey -in FILE`` opens the result.
"""

import base64
import os
import textwrap

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.padding import PKCS7

from beacon_ota.errors import DeniedError, InputError

# 16 MiB and about a quarter of a second: OWASP's row for the memory that OpenSSL allows itself
# when it opens such a file.
COST_N = 1 << 14
BLOCK_R = 8
PARALLEL_P = 5

_PBES2 = bytes.fromhex("06092a864886f70d01050d")
_SCRYPT = bytes.fromhex("06092b06010401da47040b")
_AES_256_CBC = bytes.fromhex("060960864801650304012a")
_LABEL = "ENCRYPTED PRIVATE KEY"


def encrypt_key(key: rsa.RSAPrivateKey, password: str) -> bytes:
    """Return the PEM of ``key``, encrypted under ``password`` with AES-256-CBC and scrypt."""
    salt, iv = os.urandom(16), os.urandom(16)
    secret = Scrypt(salt, 32, COST_N, BLOCK_R, PARALLEL_P).derive(password.encode())
    padder = PKCS7(128).padder()
    plain = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    aes = Cipher(algorithms.AES256(secret), modes.CBC(iv)).encryptor()
    sealed = aes.update(padder.update(plain) + padder.finalize()) + aes.finalize()
    costs = b"".join(map(_integer, (COST_N, BLOCK_R, PARALLEL_P)))
    kdf = _sequence(_SCRYPT, _sequence(_octets(salt), costs))
    scheme = _sequence(_AES_256_CBC, _octets(iv))
    der = _sequence(_sequence(_PBES2, _sequence(kdf, scheme)), _octets(sealed))
    body = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
    return f"-----BEGIN {_LABEL}-----\n{body}\n-----END {_LABEL}-----\n".encode()


def decrypt_key(pem: bytes, password: str, *, name: str) -> rsa.RSAPrivateKey:
    """Return the private key of a PEM that :func:`encrypt_key` or OpenSSL wrote.

    Raises:
        DeniedError: ``key_password``, the password is wrong.
        InputError: ``key_file``, this is no encrypted RSA key in PKCS#8.
    """
    if f"BEGIN {_LABEL}".encode() not in pem:
        raise InputError(
            "key_file", f"The private key {name} is not an encrypted PKCS#8 file.", expected=_LABEL
        )
    try:
        key = serialization.load_pem_private_key(pem, password.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if _readable(pem):
            raise DeniedError("key_password", f"The password of key {name} is wrong.") from error
        raise InputError("key_file", f"The private key {name} is damaged: {error}") from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise InputError("key_file", f"The private key {name} is not RSA.", expected="RSA-3072")
    return key


def _readable(pem: bytes) -> bool:
    """Tell a wrong password from a damaged file: is the outer structure whole?"""
    try:
        lines = pem.decode("ascii").strip().splitlines()
        der = base64.b64decode("".join(lines[1:-1]), validate=True)
    except ValueError:
        return False
    return len(der) > 4 and der[:2] == b"\x30\x82" and int.from_bytes(der[2:4]) == len(der) - 4


def _tlv(tag: int, body: bytes) -> bytes:
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(size))) + size + body


def _sequence(*parts: bytes) -> bytes:
    return _tlv(0x30, b"".join(parts))


def _octets(data: bytes) -> bytes:
    return _tlv(0x04, data)


def _integer(value: int) -> bytes:
    return _tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1))
