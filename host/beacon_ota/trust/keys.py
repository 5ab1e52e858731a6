"""Public keys and the set of them that a beacon trusts (``keys.json`` of an app)."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from beacon_ota.errors import InputError, UsageError

BITS = 3072
EXPONENT = 65537
SIGNATURE_SIZE = BITS // 8
SALT_SIZE = 32

MAX_KEYS = 8
MAX_FILE = 8192
"""Bytes of a keys.json: what the beacon is ready to read."""

PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=SALT_SIZE)


@dataclass(frozen=True)
class PublicKey:
    """An RSA-3072 key with the exponent 65537, known by its modulus.

    Raises:
        InputError: ``key_unsuitable``, the modulus is not one of 3072 bits.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n.bit_length() != BITS or not self.n & 1:
            raise InputError(
                "key_unsuitable",
                "Signing keys are RSA with 3072 bits.",
                found=f"{self.n.bit_length()} bits",
                expected=f"{BITS} bits",
            )

    @classmethod
    def of(cls, key: rsa.RSAPublicKey | rsa.RSAPrivateKey) -> "PublicKey":
        """Return the public half of a key of ``cryptography``."""
        public = key.public_key() if isinstance(key, rsa.RSAPrivateKey) else key
        numbers = public.public_numbers()
        if numbers.e != EXPONENT:
            raise InputError(
                "key_unsuitable",
                "Signing keys have the public exponent 65537.",
                found=numbers.e,
                expected=EXPONENT,
            )
        return cls(numbers.n)

    @classmethod
    def from_pem(cls, pem: bytes, *, name: str = "public key") -> "PublicKey":
        """Read a SubjectPublicKeyInfo in PEM.

        Raises:
            InputError: ``key_file`` (not such a file), ``key_unsuitable``.
        """
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InputError(
                "key_file", f"{name} holds no public key: {error}", expected="PEM, PUBLIC KEY"
            ) from error
        if not isinstance(key, rsa.RSAPublicKey):
            raise InputError("key_unsuitable", f"{name} is not RSA.", expected="RSA-3072")
        return cls.of(key)

    @cached_property
    def _key(self) -> rsa.RSAPublicKey:
        return rsa.RSAPublicNumbers(EXPONENT, self.n).public_key()

    @cached_property
    def keyid(self) -> str:
        """First 16 hex of the SHA-256 of the DER SubjectPublicKeyInfo."""
        der = self._key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return hashlib.sha256(der).hexdigest()[:16]

    @property
    def modulus(self) -> str:
        """The modulus as ``keys.json`` has it: 768 lower-case hex."""
        return f"{self.n:0{SIGNATURE_SIZE * 2}x}"

    def pem(self) -> bytes:
        """Return the SubjectPublicKeyInfo in PEM."""
        return self._key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def verifies(self, data: bytes, signature: bytes) -> bool:
        """Is ``signature`` this key's RSA-PSS signature (SHA-256, salt 32) of ``data``?"""
        if len(signature) != SIGNATURE_SIZE:
            return False
        try:
            self._key.verify(signature, data, PSS, hashes.SHA256())
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class KeySet:
    """The keys whose signatures count, and how many different ones a release needs.

    Raises:
        UsageError: ``keys_threshold`` or ``keys_count``: no release could ever satisfy it.
    """

    keys: Mapping[str, PublicKey]
    threshold: int = 1

    def __post_init__(self) -> None:
        if not 1 <= len(self.keys) <= MAX_KEYS:
            raise UsageError(
                "keys_count",
                f"A key set holds 1 to {MAX_KEYS} keys.",
                found=len(self.keys),
                expected=f"1–{MAX_KEYS}",
            )
        if not 1 <= self.threshold <= len(self.keys):
            raise UsageError(
                "keys_threshold",
                "The threshold is at least 1 and at most the number of keys.",
                found=self.threshold,
                expected=f"1–{len(self.keys)}",
            )

    @classmethod
    def of(cls, keys: Iterable[PublicKey], threshold: int = 1) -> "KeySet":
        """Collect keys under their keyids."""
        return cls({key.keyid: key for key in keys}, threshold)

    @classmethod
    def parse(cls, data: bytes | str, *, name: str = "keys.json") -> "KeySet":
        """Read a ``keys.json``.

        Raises:
            InputError: ``keys_file``, with what is wrong in it.
        """
        try:
            if len(data) > MAX_FILE:
                raise ValueError(f"more than {MAX_FILE} bytes")
            value = json.loads(data)
            if not isinstance(value, dict) or set(value) != {"keys", "threshold"}:
                raise ValueError("expected the fields keys and threshold")
            if not isinstance(value["keys"], dict) or type(value["threshold"]) is not int:
                raise ValueError("keys is an object, threshold a number")
            keys = {keyid: _parse_key(keyid, n) for keyid, n in value["keys"].items()}
            return cls(keys, value["threshold"])
        except (ValueError, RecursionError, InputError, UsageError) as error:
            raise InputError(
                "keys_file",
                f"{name} is no set of trusted keys: {error}",
                expected='{"keys":{keyid:modulus},"threshold":k}',
            ) from error

    def to_json(self) -> bytes:
        """Return the ``keys.json`` of an app: compact, sorted, the same bytes every time."""
        keys = {keyid: key.modulus for keyid, key in self.keys.items()}
        value = {"keys": keys, "threshold": self.threshold}
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _parse_key(keyid: str, modulus: object) -> PublicKey:
    """Read one entry; the keyid has to be the key's own, so that no key counts twice."""
    if not isinstance(modulus, str) or len(modulus) != SIGNATURE_SIZE * 2:
        raise ValueError(f"key {keyid[:16]}: the modulus is {SIGNATURE_SIZE * 2} hex digits")
    key = PublicKey(int.from_bytes(bytes.fromhex(modulus)))
    if key.modulus != modulus:
        raise ValueError(f"key {keyid[:16]}: the modulus is lower-case hex")
    if key.keyid != keyid:
        raise ValueError(f"key {keyid[:16]} is really {key.keyid}")
    return key
