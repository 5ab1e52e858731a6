"""The release manifest as the host handles it; its form and rules are the shared ones."""

from dataclasses import dataclass

from beacon_ota.errors import InputError
from beacon_ota.wire import manifest as wire


@dataclass(frozen=True)
class Manifest:
    """The claims about a release that its signers vouch for.

    Sizes are bytes, hashes 64 lower-case hex, times UTC seconds.
    """

    device_type: str
    version: str
    size: int
    checksum: str
    """SHA-256 of the plain release image."""
    core: str
    """SHA-256 of the MicroPython core in it, as in its ``app.json``."""
    min_version: str
    """The lowest running version that may go straight to this one."""
    required: bool
    issued_at: int
    expires_at: int
    ciphertext_sha256: str | None = None
    """SHA-256 of the encrypted image, when what is served is encrypted."""

    @property
    def encrypted(self) -> bool:
        """Is the image served as ciphertext?"""
        return self.ciphertext_sha256 is not None

    @property
    def served_sha256(self) -> str:
        """SHA-256 of the bytes that are stored and served."""
        return self.ciphertext_sha256 or self.checksum

    def fields(self) -> dict[str, object]:
        """Return the fields as the payload has them."""
        fields = dict(self.__dict__)
        sealed = fields.pop("ciphertext_sha256")
        if sealed is not None:
            fields["encryption"] = {"scheme": wire.SCHEME, "ciphertext_sha256": sealed}
        return fields

    def payload(self) -> bytes:
        """Return the canonical payload; the signatures are over its PAE.

        Raises:
            InputError: ``manifest_field``, naming the field that cannot be.
        """
        try:
            return wire.encode(self.fields())
        except wire.Refused as error:
            raise InputError(
                "manifest_field", f"No manifest can say this: {error.detail}."
            ) from error

    @classmethod
    def of(cls, fields: dict) -> "Manifest":
        """Return the manifest of the fields that ``wire.manifest.decode`` returned."""
        fields = dict(fields)
        encryption = fields.pop("encryption", None)
        sealed = encryption["ciphertext_sha256"] if encryption else None
        return cls(**fields, ciphertext_sha256=sealed)

    @classmethod
    def read(cls, payload: bytes) -> "Manifest":
        """Decode a payload.

        Raises:
            beacon_ota.wire.manifest.Refused: ``signature``, it is not canonical.
        """
        return cls.of(wire.decode(payload))
