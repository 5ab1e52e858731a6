"""DSSE envelopes: packed, signed, and searched for valid signatures.

The rules for the content of an envelope and for the signed bytes are shared with the beacon
(:mod:`beacon_ota.wire.manifest`). Its form as text is defined here, because a beacon meets
envelopes only inside offers. Signatures are made by ``cryptography``, and are those of
``openssl dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32`` over the PAE.
"""

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from beacon_ota.errors import InputError, UsageError
from beacon_ota.trust.keys import KeySet, PublicKey
from beacon_ota.wire import manifest as wire

Envelope = str | bytes | Mapping[str, object]
"""The text of a file or form field, or the object that an offer holds."""

MAX_TEXT = 7680
"""Characters of an envelope: payload and signatures of full size in base64, and the frame."""

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


def sign_payload(payload: bytes, signers: Iterable[Signer]) -> str:
    """Return the envelope of ``payload``, signed by each of ``signers``, as text.

    Raises:
        InputError: ``signer_wrong``, what a signer returned is not its key's signature.
        UsageError: ``signatures_count``, none, or more than an envelope may carry.
    """
    return _sign_with(payload, {}, signers)


def add_signatures(envelope: Envelope, signers: Iterable[Signer]) -> str:
    """Return ``envelope`` with more signatures; a key that signed before signs anew.

    Raises:
        beacon_ota.wire.manifest.Refused: it is no envelope.
        InputError, UsageError: as :func:`sign_payload`.
    """
    payload, signatures = unpack_envelope(envelope)
    return _sign_with(payload, dict(signatures), signers)


def pack_envelope(payload: bytes, signatures: Signatures) -> str:
    """Return the text of an envelope: compact JSON, names sorted, ASCII."""
    entries = [
        {"keyid": keyid, "sig": _encode_base64(signature)} for keyid, signature in signatures
    ]
    value = {"payload": _encode_base64(payload), "payloadType": wire.TYPE, "signatures": entries}
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def unpack_envelope(envelope: Envelope) -> tuple[bytes, Signatures]:
    """Return the payload and the signatures of an envelope, none of them believed yet.

    Text has to be exactly what :func:`pack_envelope` writes: there is one way to read it.

    Raises:
        beacon_ota.wire.manifest.Refused: ``signature``, it is no envelope of a release.
    """
    if not isinstance(envelope, str | bytes):
        return wire.unpack_envelope(envelope)
    if len(envelope) > MAX_TEXT:
        raise wire.Refused("signature", "envelope: too long")
    try:
        text = envelope if isinstance(envelope, str) else envelope.decode("ascii")
        found = wire.unpack_envelope(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise wire.Refused("signature", "envelope: not JSON") from error
    if pack_envelope(*found) != text:
        raise wire.Refused("signature", "envelope: not canonical")
    return found


def valid_signers(payload: bytes, signatures: Signatures, trusted: KeySet) -> list[str]:
    """Return the keyids of the trusted keys that really signed ``payload``, each once."""
    data = wire.pae(payload)
    found = dict.fromkeys(
        keyid
        for keyid, signature in signatures
        if keyid in trusted.keys and trusted.keys[keyid].verifies(data, signature)
    )
    return list(found)


def _sign_with(payload: bytes, found: dict[str, bytes], signers: Iterable[Signer]) -> str:
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
    return pack_envelope(payload, list(found.items()))


def _encode_base64(data: bytes) -> str:
    return b64encode(data).decode()
