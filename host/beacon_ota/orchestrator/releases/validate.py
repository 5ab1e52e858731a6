"""What an upload must be before it becomes a release. Fed with values and an open file."""

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from beacon_ota.errors import InputError
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.releases.multipart import MultipartForm
from beacon_ota.wire import versions

if TYPE_CHECKING:  # what follows is imported with the first upload: it takes memory
    from beacon_ota.trust import KeySet, Manifest

_FIELDS = ("device_type", "version", "description", "channel", "required", "manifest")
_BOOLS = {"": False, "false": False, "0": False, "true": True, "1": True}
_DESCRIPTION_MAX = 500  # bytes: it travels in every offer
_BRACKETS_MAX = 8


@dataclass(frozen=True, slots=True)
class UploadClaim:
    """What the form says about the image."""

    device_type: str
    version: str
    description: str
    channel: str
    required: bool | None
    manifest: str | None
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ExaminedImage:
    """What the image is.

    ``checksum`` is the SHA-256 of the plain image, ``blob`` of the bytes uploaded; they differ
    for an encrypted release.
    """

    checksum: str
    blob: str
    size: int
    required: bool
    manifest: str | None
    expires_at: float | None
    info: Fields = field(default_factory=dict)


def read_claim(form: MultipartForm) -> UploadClaim:
    """Read the form.

    Raises:
        InputError: ``form_field`` for a field that is missing, unknown or malformed,
            ``version_syntax``.
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
    # A beacon counts these before it parses an offer, so that nobody can have it nest too deep.
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
    )


def detect_flash_image(head: bytes) -> InputError | None:
    """Return the refusal of a flash image, told by its first 36 KiB; None when it is none."""
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
    """Examine the image that a claim is about; takes a fraction of a second, blocks.

    Args:
        trusted: the keys whose signatures count (``trust.KeySet``), None for a fleet without.
        insecure: a release without manifest is accepted, one with is still verified if it can be.

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
    manifest = None
    if claim.manifest is not None and trusted is None and insecure and not encrypted:
        _open_envelope(claim.manifest)  # nobody vouches for it, but it must be one
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
    )


def _examine_plain_image(data: bytes, claim: UploadClaim, board: Any) -> Fields:
    """Examine a plain image: the core, then the app behind it, then that they are what is said."""
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
        # A stock core describes itself as what ESP-IDF calls it; its banner says what it is.
        "core_version": found.core.interpreter or found.core.descriptor.version,
        "built_at": info.built_at,
        "insecure": info.insecure,
        "app_size": found.app_size,
        "payload": found.payload,
    }


def _claims_encryption(envelope: str | None) -> bool:
    """Does a manifest, whoever signed it, say that the image is encrypted?"""
    if envelope is None:
        return False
    try:
        return _open_envelope(envelope).encrypted
    except InputError:
        return False  # which is refused as soon as it is verified


def _open_envelope(envelope: str) -> "Manifest":
    from beacon_ota.trust import releases

    return releases.claimed_manifest(envelope)
