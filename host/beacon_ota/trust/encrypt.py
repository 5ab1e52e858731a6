"""Encrypted releases: AES-128-CTR under a key that belongs to one release of one fleet.

The key and the initial counter are HKDF-SHA256(fleet key, salt = SHA-256 of the plain image,
info ``beacon-ota release``). One plain image has one ciphertext per fleet, and no keystream is
ever used for two images. CTR alone protects nothing from change: the manifest does, because its
``checksum`` is that of the plain image.
"""

import secrets
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from beacon_ota import text_files
from beacon_ota.errors import InputError, UsageError
from beacon_ota.trust import files

FLEET_KEY_SIZE = 16
INFO = b"beacon-ota release"


def derive_key(fleet_key: bytes, checksum: str) -> tuple[bytes, bytes]:
    """Return the AES-128 key and the initial counter block of a release, 16 bytes each.

    Args:
        fleet_key: 16 bytes.
        checksum: SHA-256 of the plain image, hex.
    """
    if len(fleet_key) != FLEET_KEY_SIZE:
        raise UsageError(
            "fleet_key",
            "A fleet key has 16 bytes.",
            found=len(fleet_key),
            expected=FLEET_KEY_SIZE,
        )
    secret = HKDF(SHA256(), 32, salt=bytes.fromhex(checksum), info=INFO).derive(fleet_key)
    return secret[:16], secret[16:]


def crypt_image(data: bytes, fleet_key: bytes, checksum: str) -> bytes:
    """Encrypt a plain image, or decrypt a ciphertext: in CTR it is the same."""
    key, counter = derive_key(fleet_key, checksum)
    stream = Cipher(algorithms.AES128(key), modes.CTR(counter)).encryptor()
    return stream.update(data) + stream.finalize()


def new_fleet_key(file: Path) -> None:
    """Write a fresh fleet key, 32 hex, readable by its owner only.

    Raises:
        UsageError: ``file_exists``: a key that a fleet may be using is never overwritten.
    """
    text = secrets.token_hex(FLEET_KEY_SIZE) + "\n"
    files.write_file(file, text.encode(), mode=0o600, replace=False)


def read_fleet_key(file: Path) -> bytes:
    """Read a fleet key file: 32 hex digits, or the 16 bytes themselves.

    Raises:
        UsageError: ``file_missing``.
        InputError: ``fleet_key``, it holds something else.
    """
    data = files.read_file(file, 1024)
    if len(data) == FLEET_KEY_SIZE:
        return data
    try:
        key = bytes.fromhex(text_files.decode_text(data, file).strip())
    except (ValueError, InputError):
        key = b""
    if len(key) != FLEET_KEY_SIZE:
        raise InputError(
            "fleet_key", f"{file} holds no fleet key.", expected="32 hex digits or 16 bytes"
        )
    return key
