"""What the device reads out of certificates, held against the library that made them."""

import datetime
import json
import subprocess

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests import micropython

PROGRAM = """
import json, sys
sys.path[:] = %r + sys.path
from net import https
with open(%r) as f:
    for text in json.load(f):
        try:
            print(https.read_not_before(memoryview(bytes.fromhex(text))))
        except (ValueError, IndexError):
            print("refused")
"""
DATES = (
    "1970-01-01T00:00:00",
    "1999-12-31T23:59:59",
    "2000-02-29T00:00:00",
    "2000-03-01T00:00:01",
    "2024-02-29T12:34:56",
    "2025-06-30T23:59:59",
    "2049-12-31T23:59:59",
    "2050-01-01T00:00:00",
    "2100-02-28T00:00:00",
    "2100-03-01T00:00:00",
)


def made(begins: datetime.datetime, key, name: str = "x") -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + datetime.timedelta(days=400))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def read(files: list[bytes], folder) -> list[str]:
    """Have the device read the beginnings."""
    (folder / "files.json").write_text(json.dumps([data.hex() for data in files]))
    stubs = folder / "machine.py"
    stubs.write_text("class RTC:\n    pass\n")
    program = PROGRAM % ([str(folder), str(micropython.APP)], str(folder / "files.json"))
    done = subprocess.run(
        [str(micropython.COMMAND), "-X", "heapsize=8M", "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.split()


def test_when_a_certificate_begins(tmp_path):
    keys = [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)]
    begins = [datetime.datetime.fromisoformat(f"{date}+00:00") for date in DATES]
    files = [made(at, keys[n % 2], "x" * (6 * n + 1)) for n, at in enumerate(begins)]
    assert read(files, tmp_path) == [str(int(at.timestamp())) for at in begins]


def test_what_is_no_certificate(tmp_path):
    """Cut anywhere, or with any byte changed: a number or a refusal, and nothing else."""
    whole = made(datetime.datetime(2025, 1, 1), ec.generate_private_key(ec.SECP256R1()))
    cuts = [whole[:length] for length in range(len(whole))]
    bent = [
        whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :]
        for at in range(120)
        for bits in (0x01, 0x80, 0xFF)
    ]
    found = read([*cuts, *bent, b"", b"\x30\x80" * 50, b"\xff" * 300], tmp_path)
    assert len(found) == len(cuts) + len(bent) + 3
    assert set(found[: len(cuts)]) == {"refused"} and set(found[-3:]) == {"refused"}
    assert all(word == "refused" or word.lstrip("-").isdigit() for word in found)
