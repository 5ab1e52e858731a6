"""Encrypted releases: the host encrypts, the beacon's own code decrypts into flash."""

import hashlib
import os
import random
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.errors import InputError, UsageError
from beacon_ota.trust import encrypt
from tests.firmware.interpreter import Interpreter

FLEET = bytes(range(16))
IMAGE = b"\xe9" + random.Random(1).randbytes(20_000)
CHECKSUM = hashlib.sha256(IMAGE).hexdigest()

SETUP = """
from ota import decrypt
from wire import manifest

def opened(checksum, key, parts):
    try:
        run = decrypt.make_decrypter({"checksum": checksum}, key)
        out = b""
        for offset, data in parts:
            buf = bytearray(data)
            run(buf, offset)
            out += bytes(buf)
        return out
    except manifest.Refused as error:
        return error.code
"""


@pytest.fixture(scope="module")
def device():
    with Interpreter(SETUP, heap="400K") as interpreter:
        yield interpreter


def test_known_answer():
    """HKDF-SHA256 and AES-128-CTR worked out with the hashes and block cipher alone."""
    import hmac

    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    prk = hmac.digest(bytes.fromhex(CHECKSUM), FLEET, "sha256")
    okm = hmac.digest(prk, b"beacon-ota release\x01", "sha256")
    assert encrypt.derive_key(FLEET, CHECKSUM) == (okm[:16], okm[16:])
    ecb = Cipher(algorithms.AES128(okm[:16]), modes.ECB()).encryptor()
    counter = int.from_bytes(okm[16:])
    blocks = [(counter + i) % (1 << 128) for i in range(3)]
    stream = b"".join(ecb.update(block.to_bytes(16)) for block in blocks)
    plain = IMAGE[:48]
    assert encrypt.crypt_image(plain, FLEET, CHECKSUM) == bytes(
        a ^ b for a, b in zip(plain, stream, strict=True)
    )


def test_there_and_back():
    sealed = encrypt.crypt_image(IMAGE, FLEET, CHECKSUM)
    assert len(sealed) == len(IMAGE)
    assert sealed != IMAGE
    assert encrypt.crypt_image(sealed, FLEET, CHECKSUM) == IMAGE
    assert encrypt.crypt_image(IMAGE, FLEET, CHECKSUM) == sealed
    # Another fleet, another image: another keystream.
    assert encrypt.crypt_image(IMAGE, bytes(16), CHECKSUM) != sealed
    assert encrypt.derive_key(FLEET, "00" * 32) != encrypt.derive_key(FLEET, CHECKSUM)


def test_the_beacon_decrypts_sector_by_sector(device):
    sealed = encrypt.crypt_image(IMAGE, FLEET, CHECKSUM)
    parts = [(at, sealed[at : at + 4096]) for at in range(0, len(sealed), 4096)]
    assert device.ask("opened({}, {}, {})", CHECKSUM, FLEET, parts) == IMAGE


def test_the_beacon_goes_on_anywhere(device):
    """A resumed download enters the stream in the middle."""
    sealed = encrypt.crypt_image(IMAGE, FLEET, CHECKSUM)
    rng = random.Random(2)
    for _ in range(20):
        at = rng.randrange(len(sealed))
        size = rng.randrange(1, 5000)
        found = device.ask("opened({}, {}, {})", CHECKSUM, FLEET, [(at, sealed[at : at + size])])
        assert found == IMAGE[at : at + size]


def test_the_beacon_knows_a_wrong_key_by_the_first_byte(device):
    sealed = encrypt.crypt_image(IMAGE, FLEET, CHECKSUM)
    refused = 0
    for i in range(32):
        key = bytes([i]) * 16
        found = device.ask("opened({}, {}, {})", CHECKSUM, key, [(0, sealed[:4096])])
        assert found == "decrypt" or found[0] == 0xE9
        refused += found == "decrypt"
    assert refused >= 28
    for key in (None, b"", bytes(15), bytes(17)):
        assert device.ask("opened({}, {}, {})", CHECKSUM, key, [(0, b"x")]) == "decrypt"


@given(st.binary(max_size=200), st.binary(min_size=16, max_size=16))
def test_any_data_comes_back(data, key):
    assert encrypt.crypt_image(encrypt.crypt_image(data, key, CHECKSUM), key, CHECKSUM) == data


def test_key_files(tmp_path):
    file = tmp_path / "fleet.key"
    encrypt.new_fleet_key(file)
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    key = encrypt.read_fleet_key(file)
    assert len(key) == 16
    assert file.read_text() == key.hex() + "\n"
    with pytest.raises(UsageError) as caught:
        encrypt.new_fleet_key(file)
    assert caught.value.code == "file_exists"
    assert encrypt.read_fleet_key(file) == key
    file.write_bytes(FLEET)
    assert encrypt.read_fleet_key(file) == FLEET
    for bad in (b"", b"00" * 15, b"00" * 17, b"zz" * 16, b"\xff" * 33):
        file.write_bytes(bad)
        with pytest.raises(InputError) as caught:
            encrypt.read_fleet_key(file)
        assert caught.value.code == "fleet_key"
    file.write_bytes(bytes(5000))
    with pytest.raises(InputError) as caught:
        encrypt.read_fleet_key(file)
    assert caught.value.code == "file_too_large"
    with pytest.raises(UsageError) as caught:
        encrypt.read_fleet_key(tmp_path / "none")
    assert caught.value.code == "file_missing"
    with pytest.raises(UsageError) as caught:
        encrypt.derive_key(bytes(8), CHECKSUM)
    assert caught.value.code == "fleet_key"
