"""Decides whether a release is trusted, from values alone: it reads no file and no clock.

Rules, in this order:

* The envelope is bounded and in its only form.
* At least ``threshold`` *different* trusted keys signed the payload; unknown keys do not count.
* The payload is the canonical form of exactly the manifest's fields.
* The manifest's claims are true: of the upload for an orchestrator; of the offer and its own type,
  version, floor, slot and clock for a beacon.

:meth:`Verifier.check_upload` is the orchestrator's question at upload, with the upload's codes;
:meth:`Verifier.judge_offer` is the beacon's, with the beacon's codes, and the same answer as the
firmware's own ``ota/verify.py``::

    verifier = Verifier(KeySet.parse(Path("keys.json").read_bytes()))
    manifest = verifier.check_upload(envelope, claims, now=time.time())
"""

from collections.abc import Mapping
from dataclasses import dataclass

from beacon_ota.errors import InputError
from beacon_ota.trust import dsse
from beacon_ota.trust.dsse import Envelope
from beacon_ota.trust.keys import KeySet
from beacon_ota.trust.manifest import Manifest
from beacon_ota.wire import manifest as wire
from beacon_ota.wire.manifest import Refused


@dataclass(frozen=True)
class ManifestClaims:
    """The claims that a manifest has to make about an upload: those of its form and its bytes."""

    device_type: str
    version: str
    size: int
    """Bytes uploaded."""
    sha256: str
    """Of the bytes uploaded, hex: of the ciphertext when the release is encrypted."""
    core: str | None = None
    """SHA-256 of the core, hex, where the image could be parsed."""
    required: bool | None = None
    """What the form said about ``required``, if it said anything."""


@dataclass(frozen=True)
class Situation:
    """The state of a beacon when it gets an offer."""

    device_type: str
    running: str
    """Running version."""
    floor: str | None
    """Highest version ever confirmed, None when there is none yet."""
    now: int | None
    """Authenticated time, UTC seconds; None when the clock is unset."""
    room: int
    """Bytes of the slot that would be written."""
    insecure: bool = False
    """Whether the running app accepts unsigned releases."""


class Verifier:
    """Verifies releases against a set of trusted keys.

    Args:
        trusted: the keys that count, or None for a fleet without any.
    """

    def __init__(self, trusted: KeySet | None):
        self.trusted = trusted

    def open_envelope(self, envelope: Envelope) -> Manifest:
        """Return the manifest of an envelope that enough trusted keys signed.

        Raises:
            Refused: ``signature``, with the reason as its detail.
        """
        payload, signatures = dsse.unpack_envelope(envelope)
        if self.trusted is None:
            raise Refused("signature", "no keys are trusted")
        missing = self.trusted.threshold - len(
            dsse.valid_signers(payload, signatures, self.trusted)
        )
        if missing > 0:
            raise Refused("signature", f"{missing} more good signatures needed")
        return Manifest.read(payload)

    def check_upload(
        self, envelope: Envelope | None, expected: ManifestClaims, *, now: float | None
    ) -> Manifest:
        """Return the manifest of an upload.

        Args:
            envelope: the form field ``manifest``; None when there was none.
            expected: the claims that the manifest has to make.
            now: UTC seconds, None to leave the dates unjudged.

        Raises:
            InputError: ``manifest_missing``, ``manifest_signature``, ``manifest_mismatch``
                (with the field, found and expected), ``manifest_expired``.
        """
        if not envelope:
            raise InputError("manifest_missing", "The release comes without a signed manifest.")
        try:
            manifest = self.open_envelope(envelope)
        except Refused as error:
            raise InputError(
                "manifest_signature", f"The manifest is not to be believed: {error.detail}."
            ) from error
        _compare_claims(manifest, expected)
        if now is not None and now >= manifest.expires_at:
            raise InputError(
                "manifest_expired",
                "The manifest has expired: no beacon would install the release.",
                found=manifest.expires_at,
                expected=f"later than {int(now)}",
            )
        return manifest

    def judge_offer(self, offer: Mapping[str, object], situation: Situation) -> Manifest:
        """Return the manifest that a beacon in this situation would act on.

        Raises:
            Refused: with the code that the beacon would report under ``verify``.
        """
        own = situation
        envelope = offer.get("manifest")
        if envelope is None:
            if not own.insecure:
                raise Refused("signature", "no manifest")
            manifest = Manifest.of(wire.unsigned_fields(offer, own.device_type))
        else:
            if not isinstance(envelope, dict):
                raise Refused("signature", "envelope: not an object")
            if self.trusted is None and own.insecure:
                manifest = Manifest.read(dsse.unpack_envelope(envelope)[0])
            else:
                manifest = self.open_envelope(envelope)
            wire.check_offer(manifest.fields(), offer)
        wire.check_rules(
            manifest.fields(), own.device_type, own.running, own.floor, own.now, own.room
        )
        return manifest


def _compare_claims(manifest: Manifest, facts: ManifestClaims) -> None:
    pairs = {
        "device_type": (facts.device_type, manifest.device_type),
        "version": (facts.version, manifest.version),
        "size": (facts.size, manifest.size),
        "sha256": (facts.sha256, manifest.served_sha256),
        "core": (facts.core, manifest.core),
        "required": (facts.required, manifest.required),
    }
    for name, (found, expected) in pairs.items():
        if found is not None and found != expected:
            raise InputError(
                "manifest_mismatch",
                f"The manifest was signed for something else: {name} differs.",
                found=found,
                expected=expected,
            )
