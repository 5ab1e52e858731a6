"""DSSE envelopes: who signs, and whose signatures under one are good.

What an envelope looks like and what exactly is signed are the shared rules of
:mod:`beacon_ota.wire.manifest`; the arithmetic is ``cryptography``'s. Interoperates with
``openssl dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32`` over the PAE.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from beacon_ota.errors import InputError, UsageError
from beacon_ota.trust.keys import KeySet, PublicKey
from beacon_ota.wire import manifest as wire

Envelope = str | bytes | Mapping[str, object]
"""The text of a file or form field, or the object that an offer holds."""

Signatures = Sequence[tuple[str, bytes]]
"""Pairs of keyid and signature, in the envelope's order."""


class Signer(Protocol):
    """Something that holds a private key: a file with its password, or a program."""

    @property
    def name(self) -> str: ...

    @property
    def public(self) -> PublicKey: ...

    def sign(self, data: bytes) -> bytes:
        """Return the RSA-PSS signature (SHA-256, salt 32; 384 bytes) of ``data``."""
        ...


def sign(payload: bytes, signers: Iterable[Signer]) -> str:
    """Return the envelope of ``payload``, signed by each of ``signers``, as text.

    Raises:
        InputError: ``signer_wrong``, what a signer returned is not its key's signature.
        UsageError: ``signatures_count``, none, or more than an envelope may carry.
    """
    return _pack(payload, {}, signers)


def extend(envelope: Envelope, signers: Iterable[Signer]) -> str:
    """Return ``envelope`` with more signatures; a key that signed before signs anew.

    Raises:
        beacon_ota.wire.manifest.Refused: it is no envelope.
        InputError, UsageError: as :func:`sign`.
    """
    payload, signatures = wire.unpack(envelope)
    return _pack(payload, dict(signatures), signers)


def good(payload: bytes, signatures: Signatures, trusted: KeySet) -> list[str]:
    """Return the keyids of the trusted keys that really signed ``payload``, each once."""
    data = wire.pae(payload)
    found = dict.fromkeys(
        keyid
        for keyid, signature in signatures
        if keyid in trusted.keys and trusted.keys[keyid].verifies(data, signature)
    )
    return list(found)


def _pack(payload: bytes, found: dict[str, bytes], signers: Iterable[Signer]) -> str:
    data = wire.pae(payload)
    for signer in signers:
        signature = signer.sign(data)
        if not signer.public.verifies(data, signature):
            raise InputError(
                "signer_wrong",
                f"What {signer.name} returned is not a signature of its key.",
                found=f"{len(signature)} bytes",
                expected=f"RSA-PSS, SHA-256, salt 32, by key {signer.public.keyid}",
            )
        found[signer.public.keyid] = signature
    if not 1 <= len(found) <= wire.MAX_SIGNATURES:
        raise UsageError(
            "signatures_count",
            "An envelope carries a few signatures: a beacon may have to check them all.",
            found=len(found),
            expected=f"1–{wire.MAX_SIGNATURES}",
        )
    return wire.pack(payload, list(found.items()))
