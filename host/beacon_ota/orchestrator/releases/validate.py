"""Validates an upload before it becomes a release: the fields of the form, then the image."""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from beacon_ota.errors import InputError
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.releases.multipart import MultipartForm
from beacon_ota.wire import versions

if TYPE_CHECKING:  # imported with the first upload, to save memory until then
    from beacon_ota.trust import KeySet, Manifest

_FIELDS = ("device_type", "version", "description", "channel", "required", "manifest", "blocks")
_BOOLS = {"": False, "false": False, "0": False, "true": True, "1": True}
_DESCRIPTION_MAX = 500  # bytes; every offer contains it
_BRACKETS_MAX = 8


@dataclass(frozen=True, slots=True)
class UploadClaim:
    """The fields of the form, and the size and SHA-256 of the received file."""

    device_type: str
    version: str
    description: str
    channel: str
    required: bool | None
    manifest: str | None
    size: int
    sha256: str
    blocks: str | None = None  # base64


@dataclass(frozen=True, slots=True)
class ExaminedImage:
    """The result of the validation.

    ``checksum`` is the SHA-256 of the plain image, ``blob`` of the uploaded bytes; they differ for
    an encrypted release. ``blocks`` is the block index that came with one, base64.
    """

    checksum: str
    blob: str
    size: int
    required: bool
    manifest: str | None
    expires_at: float | None
    info: Fields = field(default_factory=dict)
    blocks: str | None = None


def read_claim(form: MultipartForm) -> UploadClaim:
    """Read the fields of the form.

    Raises:
        InputError: ``form_field`` for a missing, unknown or malformed field; ``version_syntax``.
    """
    fields = form.fields
    for name in fields:
        if name not in _FIELDS:
            raise InputError("form_field", "unknown field", found=name, expected=list(_FIELDS))
    for name in ("device_type", "version"):
        if not fields.get(name):
            raise InputError("form_field", f"the field {name} is missing", expected=name)
    if form.sha256 is None:
        raise InputError("form_field", "the field binary is missing", expected="binary")
    try:
        versions.parse(fields["version"])
    except ValueError:
        raise InputError(
            "version_syntax",
            "the version is not semver",
            found=fields["version"][:80],
            expected="1.2.3 or 1.2.3-label",
        ) from None
    channel = fields.get("channel") or "beta"
    if channel not in ("beta", "stable"):
        raise InputError(
            "form_field", "unknown channel", found=channel[:80], expected=["beta", "stable"]
        )
    required = fields.get("required")
    if required is not None and required.lower() not in _BOOLS:
        raise InputError(
            "form_field", "required is true or false", found=required[:80], expected="true"
        )
    description = fields.get("description", "")
    size = len(description.encode())
    if size > _DESCRIPTION_MAX or not description.isprintable():
        raise InputError(
            "form_field",
            f"the description is one line of at most {_DESCRIPTION_MAX} bytes",
            found=size,
            expected=_DESCRIPTION_MAX,
        )
    # A beacon counts the brackets of an offer before it parses it, against deep nesting.
    if description.count("[") + description.count("{") > _BRACKETS_MAX:
        raise InputError(
            "form_field",
            f"the description opens more than {_BRACKETS_MAX} brackets",
            expected=_BRACKETS_MAX,
        )
    return UploadClaim(
        device_type=fields["device_type"],
        version=fields["version"],
        description=description,
        channel=channel,
        required=None if required is None else _BOOLS[required.lower()],
        manifest=fields.get("manifest") or None,
        size=form.size,
        sha256=form.sha256,
        blocks=fields.get("blocks") or None,
    )


def detect_flash_image(head: bytes) -> InputError | None:
    """Return the refusal of a whole flash image, from its first 36 KiB; None for another file."""
    from beacon_ota.images import esp

    if not esp.is_flash_image(head):
        return None
    return InputError(
        "flash_image",
        "this is the image of a whole flash; upload the release image that went into it",
        expected="beacon-ota image build",
    )


def examine_image(
    file: BinaryIO, claim: UploadClaim, trusted: "KeySet | None", insecure: bool, now: float
) -> ExaminedImage:
    """Validate the image against its claim; blocks for a fraction of a second.

    Args:
        trusted: the trusted keys; None for a fleet without signatures.
        insecure: accept a release without manifest; a manifest is verified if keys are there.
        now: UTC seconds.

    Raises:
        InputError: with a code of contracts.md §3.
    """
    from beacon_ota.images import boards

    board = boards.board_for_device_type(claim.device_type)
    file.seek(0)
    data = file.read()
    if hashlib.sha256(data).hexdigest() != claim.sha256:
        raise InputError("image_truncated", "the bytes on the disk are not those that arrived")
    info: Fields = {}
    encrypted = _claims_encryption(claim.manifest)
    if not encrypted:
        info = _examine_plain_image(data, claim, board)
    else:
        board.check_fit(claim.size)
    if claim.blocks is not None:
        check_blocks(claim.blocks, claim.size, None if encrypted else data)
    manifest = None
    if claim.manifest is not None and trusted is None and insecure and not encrypted:
        _open_envelope(claim.manifest)  # unverified, but it must be a manifest
    elif claim.manifest is not None:
        from beacon_ota.trust import ManifestClaims, Verifier

        facts = ManifestClaims(
            claim.device_type,
            claim.version,
            claim.size,
            claim.sha256,
            core=info.get("core_sha256"),
            required=claim.required,
        )
        manifest = Verifier(trusted).check_upload(claim.manifest, facts, now=now)
    elif not insecure:
        raise InputError(
            "manifest_missing",
            "the release comes without a signed manifest",
            expected="beacon-ota release sign",
        )
    return ExaminedImage(
        checksum=manifest.checksum if manifest else claim.sha256,
        blob=claim.sha256,
        size=claim.size,
        required=manifest.required if manifest else bool(claim.required),
        manifest=claim.manifest,
        expires_at=manifest.expires_at if manifest else None,
        info={**info, "encrypted": encrypted, "signed": manifest is not None},
        blocks=claim.blocks if encrypted else None,
    )


def check_blocks(text: str, size: int, plain: bytes | None = None) -> None:
    """Refuse a block index that is not one for an image of that size.

    Args:
        text: base64.
        size: bytes of the image.
        plain: the image, if it is not encrypted: the index has to be its own.

    Raises:
        InputError: ``blocks_syntax``, ``blocks_size``, ``blocks_mismatch``.
    """
    from beacon_ota.images import blocks

    try:
        index = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise InputError("blocks_syntax", "the block index is not base64") from None
    blocks.check_index(index, size)
    if plain is not None and index != blocks.hash_sectors(plain):
        raise InputError("blocks_mismatch", "the block index is that of another image")


def _examine_plain_image(data: bytes, claim: UploadClaim, board: Any) -> Fields:
    """Examine a plain image: the core, the app behind it, and that both match the claim."""
    from beacon_ota.images import release

    found = release.parse_release(data)
    board.check_fit(len(data))
    info = found.info
    for name, code in (("version", "app_version"), ("device_type", "app_device_type")):
        stated = getattr(info, name)
        if stated != getattr(claim, name):
            raise InputError(
                code,
                f"the app in the image says another {name.replace('_', ' ')}",
                found=stated,
                expected=getattr(claim, name),
            )
    return {
        "core_sha256": found.checksum if found.frozen else found.core_sha256,
        # The descriptor of a stock core has the name of ESP-IDF; its banner has the version.
        "core_version": found.core.interpreter or found.core.descriptor.version,
        "built_at": info.built_at,
        "insecure": info.insecure,
        "app_size": found.app_size,
        "payload": found.payload,
    }


def _claims_encryption(envelope: str | None) -> bool:
    """Tell whether a manifest, verified or not, says that the image is encrypted."""
    if envelope is None:
        return False
    try:
        return _open_envelope(envelope).encrypted
    except InputError:
        return False  # the verification refuses it later


def _open_envelope(envelope: str) -> "Manifest":
    """Return an envelope's manifest without verifying its signatures."""
    from beacon_ota.trust import releases

    return releases.claimed_manifest(envelope)
