"""``beacon-ota release sign``: makes and signs the manifest of an image, without a server."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beacon_ota import text_files
from beacon_ota.cli._support.options import JsonOption, OptionGroup, expand_groups
from beacon_ota.cli.keys import KeyringOption, PasswordOption, open_keyring, read_password
from beacon_ota.cli.release.manifest import (
    MAX_IMAGE,
    SUFFIX,
    FleetKeyOption,
    ImageArgument,
    blocks_beside,
    manifest_beside,
    parse_utc,
    print_manifest,
    read_fleet_key,
)
from beacon_ota.console import output
from beacon_ota.errors import UsageError

if TYPE_CHECKING:
    from beacon_ota.trust.dsse import Signer
    from beacon_ota.trust.keyring import Keyring


@dataclass(frozen=True)
class SigningOptions(OptionGroup):
    """Who signs a release, and what the signers decide about it."""

    key: Annotated[
        list[str] | None,
        typer.Option(help="Key to sign with, repeatable [default: the only active one]."),
    ] = None
    keyring: KeyringOption = None
    password_file: PasswordOption = None
    required: Annotated[
        bool, typer.Option("--required", help="Beacons do not wait for their window.")
    ] = False
    expires: Annotated[
        str, typer.Option(help="When it expires: days, or a UTC date (2027-01-31).")
    ] = "365d"

    def key_names(self, ring: "Keyring") -> list[str]:
        """Return the names of the keys that sign (UsageError ``key_choose``)."""
        return self.key or [only_key(ring)]


@expand_groups
def sign_release(
    image: ImageArgument,
    *,
    signing: SigningOptions,
    manifest: Annotated[
        Path | None,
        typer.Option(help=f"Where the manifest goes [default: beside the image, {SUFFIX}]."),
    ] = None,
    min_version: Annotated[
        str, typer.Option(help="Lowest running version that may take it.")
    ] = "0.0.0-0",
    issued_at: Annotated[
        int | None, typer.Option(help="UTC seconds [default: now]; for repeatable builds.")
    ] = None,
    encrypt: Annotated[
        bool, typer.Option("--encrypt", help="Encrypt the image; needs --fleet-key and --out.")
    ] = False,
    fleet_key: FleetKeyOption = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where the encrypted image goes.")
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add a signature to the manifest that is there.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check a release image and sign its manifest, away from any server."""
    if encrypt != bool(fleet_key) or encrypt != bool(out):
        raise UsageError(
            "options", "--encrypt, --fleet-key and --out belong together.", expected="all or none"
        )
    if append and encrypt:
        raise UsageError("options", "--append signs what is there; it encrypts nothing.")
    if append:
        row = add_signature(image, signing, manifest)
    else:
        row = write_signed_manifest(
            image,
            signing,
            manifest=manifest,
            min_version=min_version,
            issued_at=issued_at,
            fleet_key=fleet_key,
            out=out,
        )
    if json:
        output.print_json(row)
        return
    print_manifest(row)


def write_signed_manifest(
    image: Path,
    signing: SigningOptions,
    *,
    manifest: Path | None = None,
    min_version: str = "0.0.0-0",
    issued_at: int | None = None,
    fleet_key: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Check a plain image, sign its manifest, and write the files.

    Args:
        image: the plain image.
        signing: the keys, and what they sign.
        manifest: file of the manifest; None is beside the image that is served.
        min_version: lowest running version that may install the release.
        issued_at: UTC seconds, None for now.
        fleet_key: file of the fleet key, to encrypt the image.
        out: file of the encrypted image; together with ``fleet_key``. Beside it goes the block
            index of the plain image, which nobody without the fleet key can make.

    Returns:
        The manifest's fields, the files, and the keyids of the signatures.
    """
    from beacon_ota.images import blocks
    from beacon_ota.trust import dsse, files, releases

    data = files.read_file(image, MAX_IMAGE)
    ring = open_keyring(signing.keyring)
    names = signing.key_names(ring)
    now = int(datetime.now(UTC).timestamp()) if issued_at is None else issued_at
    expires_at = parse_expiry(signing.expires, now)
    terms = releases.Terms(now, expires_at, min_version, signing.required)
    signed, encrypted = releases.describe_release(data, terms, fleet_key=read_fleet_key(fleet_key))
    text = dsse.sign_payload(signed.payload(), _open_signers(ring, names, signing))
    if encrypted is not None and out is not None:
        files.write_file(out, encrypted)
        files.write_file(blocks_beside(out), blocks.hash_sectors(data))
    return _write_manifest(signed.fields(), text, out or image, manifest)


def add_signature(image: Path, signing: SigningOptions, manifest: Path | None) -> dict[str, Any]:
    """Add signatures to a manifest that is there; returns as :func:`write_signed_manifest`."""
    from beacon_ota.trust import dsse, files, releases

    data = files.read_file(image, MAX_IMAGE)
    ring = open_keyring(signing.keyring)
    names = signing.key_names(ring)
    text = text_files.read_text_file(manifest or manifest_beside(image), dsse.MAX_TEXT)
    signed = releases.manifest_for_image(text, data)
    text = dsse.add_signatures(text, _open_signers(ring, names, signing))
    return _write_manifest(signed.fields(), text, image, manifest)


def only_key(ring: "Keyring") -> str:
    """Return the name of the only active key (UsageError ``key_choose``)."""
    names = [entry.name for entry in ring.entries() if not entry.retired]
    if len(names) != 1:
        raise UsageError(
            "key_choose",
            "Which key signs?" if names else f"There is no key in {ring.folder}.",
            found=", ".join(names) or None,
            expected="--key NAME" if names else "beacon-ota keys new NAME",
        )
    return names[0]


def parse_expiry(text: str, issued_at: int) -> int:
    """Return the UTC seconds of ``90d`` after the issue, or of a date."""
    days = text.removesuffix("d")
    if days.isascii() and days.isdigit() and len(days) <= 7:
        return issued_at + int(days) * int(timedelta(days=1).total_seconds())
    return parse_utc(text, "--expires")


def _open_signers(ring: "Keyring", names: list[str], signing: SigningOptions) -> "list[Signer]":
    def password_of(name: str) -> str | None:
        return None if ring.get(name).program else read_password(name, signing.password_file)

    return [ring.signer(name, password_of(name)) for name in names]


def _write_manifest(
    fields: dict[str, object], text: str, image: Path, manifest: Path | None
) -> dict[str, Any]:
    from beacon_ota.trust import dsse, files

    file = manifest or manifest_beside(image)
    files.write_file(file, text.encode())
    return {
        **fields,
        "image": str(image),
        "manifest": str(file),
        "signed_by": [keyid for keyid, _ in dsse.unpack_envelope(text)[1]],
    }
