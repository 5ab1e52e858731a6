"""Makes the manifest of a release image, and reads an image's claims for its verification.

Signing checks the plain image once, as an upload would. Of an encrypted release nobody without the
fleet key can repeat these checks.
"""

import hashlib
from dataclasses import dataclass

from beacon_ota.errors import InputError
from beacon_ota.images import appfs, boards, release
from beacon_ota.trust import dsse, encrypt
from beacon_ota.trust.dsse import Envelope
from beacon_ota.trust.keys import KeySet
from beacon_ota.trust.manifest import Manifest
from beacon_ota.trust.verifier import ManifestClaims
from beacon_ota.wire import versions
from beacon_ota.wire.manifest import Refused


@dataclass(frozen=True)
class Terms:
    """The terms that signers set for a release; the image itself gives the rest."""

    issued_at: int
    """UTC seconds."""
    expires_at: int
    """UTC seconds."""
    min_version: str = versions.LOWEST
    required: bool = False


def describe_release(
    data: bytes, terms: Terms, *, fleet_key: bytes | None = None
) -> tuple[Manifest, bytes | None]:
    """Check a plain release image and make the manifest that is signed for it.

    Args:
        data: the image.
        terms: what it cannot say itself.
        fleet_key: 16 bytes to encrypt it for a fleet.

    Returns:
        The manifest, and the ciphertext if there is a fleet key.

    Raises:
        InputError: the image's own codes, ``slot_too_small``, ``device_type_unknown``,
            ``keys_file`` or ``keys_missing`` (beacons could never leave it again),
            ``manifest_field``.
    """
    parsed = release.parse_release(data)
    info = parsed.info
    boards.board_for_device_type(info.device_type).check_fit(parsed.size)
    _check_keys(parsed.files.get(appfs.KEYS), info.insecure)
    sealed = None if fleet_key is None else encrypt.crypt_image(data, fleet_key, parsed.checksum)
    manifest = Manifest(
        device_type=info.device_type,
        version=info.version,
        size=parsed.size,
        checksum=parsed.checksum,
        core=parsed.core_sha256,
        min_version=terms.min_version,
        required=terms.required,
        issued_at=terms.issued_at,
        expires_at=terms.expires_at,
        ciphertext_sha256=None if sealed is None else hashlib.sha256(sealed).hexdigest(),
    )
    manifest.payload()  # names an impossible term before a password is asked for
    return manifest, sealed


def manifest_for_image(envelope: Envelope, data: bytes) -> Manifest:
    """Return the manifest of an envelope that was signed for this image before.

    Signatures are not checked: a further signer vouches for the image, not for other signers.

    Raises:
        InputError: ``manifest_signature`` (not a manifest), ``manifest_mismatch``.
    """
    manifest = claimed_manifest(envelope)
    found = hashlib.sha256(data).hexdigest()
    if found != manifest.served_sha256:
        raise InputError(
            "manifest_mismatch",
            "The manifest was signed for another image.",
            found=found,
            expected=manifest.served_sha256,
        )
    return manifest


def claimed_manifest(envelope: Envelope) -> Manifest:
    """Return the manifest of an envelope without any check of its signatures.

    Raises:
        InputError: ``manifest_signature``: it is no envelope of a manifest.
    """
    try:
        return Manifest.read(dsse.unpack_envelope(envelope)[0])
    except Refused as error:
        raise InputError(
            "manifest_signature", f"This is no release manifest: {error.detail}."
        ) from error


def claims_for_image(
    data: bytes, manifest: Manifest, *, fleet_key: bytes | None = None
) -> ManifestClaims:
    """Return the claims of an image, for :meth:`Verifier.check_upload`.

    An encrypted image is looked into with the fleet key; without
    it, only size and hash are known.

    Raises:
        InputError: the image's own codes; ``decrypt``, the fleet key is another one.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    plain = data
    if manifest.encrypted:
        if fleet_key is None:
            return ManifestClaims(manifest.device_type, manifest.version, len(data), sha256)
        plain = encrypt.crypt_image(data, fleet_key, manifest.checksum)
        if hashlib.sha256(plain).hexdigest() != manifest.checksum:
            raise InputError(
                "decrypt", "The image does not decrypt to what was signed: another fleet's key?"
            )
    parsed = release.parse_release(plain)
    info = parsed.info
    return ManifestClaims(info.device_type, info.version, len(data), sha256, parsed.core_sha256)


def _check_keys(keys: bytes | None, insecure: bool) -> None:
    if keys is not None:
        KeySet.parse(keys, name="keys.json of the image")
    elif not insecure:
        raise InputError(
            "keys_missing",
            "The app in this image trusts nobody: a beacon that runs it could never be updated.",
            expected="beacon-ota image build --keys keys.json",
        )
