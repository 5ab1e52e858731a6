"""``beacon-ota release republish``: brings an earlier release back under a higher version.

Beacons refuse every downgrade, so an earlier release gets a higher version and is signed anew.
Core and code stay byte for byte the same; new are the version and, where keys were rotated since,
the trusted keys.
"""

import hashlib
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota import text_files
from beacon_ota.cli._support.completion import complete_names
from beacon_ota.cli._support.options import JsonOption, Server, expand_groups
from beacon_ota.cli.keys import open_keyring
from beacon_ota.cli.release import transfer
from beacon_ota.cli.release.sign import SigningOptions, write_signed_manifest
from beacon_ota.console import output
from beacon_ota.errors import InputError, UsageError

if TYPE_CHECKING:
    from beacon_ota.client import Client, Json

PREVIOUS = "previous"


@expand_groups
def republish_release(
    name: Annotated[
        str,
        typer.Argument(
            help="Id, version, or device_type/version of a release on the server; "
            f"{PREVIOUS}, the stable one before the current one; or the file of a plain image.",
            autocompletion=complete_names("release"),
        ),
    ],
    version: Annotated[
        str, typer.Option("--as", help="The new version, above every one that beacons run.")
    ],
    *,
    signing: SigningOptions,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="keys.json that beacons are to trust from then on [default: those in the image]."
        ),
    ] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Without a signature, for an insecure fleet.")
    ] = False,
    fleet_key: Annotated[
        Path | None,
        typer.Option(help="File of the fleet key: to read an encrypted release, and encrypt anew."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Keep image and manifest here; uploads with --upload."),
    ] = None,
    upload: Annotated[
        bool | None,
        typer.Option("--upload/--no-upload", help="Send it to the server [default: unless --out]."),
    ] = None,
    stable: Annotated[bool, typer.Option("--stable", help="For all beacons at once.")] = False,
    description: Annotated[str, typer.Option("--description", "-m", help="One line.")] = "",
    server: Server,
    json: JsonOption = False,
) -> None:
    """Make an earlier release a new, higher, signed one: the way back.

    The private key stays here. The server gives the earlier image and takes the new one.
    """
    from beacon_ota.images import release

    with tempfile.TemporaryDirectory() as folder:
        if Path(name).is_file():
            plain, earlier = Path(name).read_bytes(), name
        else:
            stored = Path(folder) / "stored.bin"
            plain, earlier = _download_plain(server.client, name, stored, fleet_key)
        now = int(datetime.now(UTC).timestamp())
        made = release.renumber_release(plain, version, built_at=now, keys=_read_keys(keys))
        if not unsigned:
            _check_signers(made, signing)
        image = out or Path(folder) / f"{version}.bin"
        row = _write_release(made, image, None if unsigned else signing, fleet_key)
        if upload if upload is not None else out is None:
            fields = transfer.upload_fields(image, None, None, None)
            if signing.required:
                fields["required"] = "true"
            text = description or f"{earlier} again"
            row = transfer.upload_image(server.client, image, fields, text, stable)
    if json:
        output.print_json(row)
    elif "firmware_id" in row:
        transfer.print_uploaded(row)
    else:
        output.console.print(f"{image}: {version}", highlight=False, markup=False)


def _download_plain(
    client: "Client", name: str, file: Path, fleet_key: Path | None
) -> tuple[bytes, str]:
    """Return the plain image of a release on the server, and its version."""
    from beacon_ota.trust import encrypt

    try:
        found = client.find_firmware(_find_previous(client) if name == PREVIOUS else name)
    except InputError as error:
        if error.code != "firmware_unknown":
            raise
        raise InputError(
            "firmware_unknown",
            f"The server has no release {name}: it was never uploaded. Name the file of its image "
            "in place of the version",
            expected="beacon-ota release republish FILE --as VERSION",
        ) from None
    transfer.download_files(client, found, file)
    data = file.read_bytes()
    if found["blob"] != found["checksum"]:
        if fleet_key is None:
            raise UsageError("fleet_key", "This release is encrypted.", expected="--fleet-key FILE")
        data = encrypt.crypt_image(data, encrypt.read_fleet_key(fleet_key), found["checksum"])
        _check_plain(data, found["checksum"])
    return data, found["version"]


def _check_plain(data: bytes, checksum: str) -> None:
    if hashlib.sha256(data).hexdigest() != checksum:
        raise InputError(
            "decrypt", "The image does not decrypt to what was signed: another fleet's key?"
        )


def _find_previous(client: "Client") -> str:
    """Return the id of the only release that is the previous one of its device type."""
    found = [row for row in client.list_firmwares() if row.get("role") == PREVIOUS]
    if len(found) != 1:
        raise UsageError(
            "firmware_ambiguous" if found else "firmware_unknown",
            "several device types have an earlier stable release; name one of them"
            if found
            else "No stable release came before the current one: name a version, or the file of an "
            "image that was never uploaded",
            found=[f"{row['device_type']}/{row['version']}" for row in found] or None,
            expected="device_type/version",
        )
    return found[0]["firmware_id"]


def _read_keys(file: Path | None) -> bytes | None:
    from beacon_ota.trust import KeySet
    from beacon_ota.trust import keys as keys_

    if file is None:
        return None
    return KeySet.parse(text_files.read_text_file(file, keys_.MAX_FILE), name=str(file)).to_json()


def _check_signers(made: bytes, signing: SigningOptions) -> None:
    """Refuse a release that its own signers could never replace.

    Last year's image trusts last year's keys: after a rotation those are the wrong ones.
    """
    from beacon_ota.images import appfs, release
    from beacon_ota.trust import KeySet

    inside = release.parse_release(made).files.get(appfs.KEYS)
    if inside is None:
        return  # signing refuses such an image, with a message of its own
    trusted = KeySet.parse(inside, name="keys.json of the image")
    ring = open_keyring(signing.keyring)
    signers = {ring.get(name).keyid for name in signing.key_names(ring)}
    if not signers & trusted.keys.keys():
        raise UsageError(
            "keys_old",
            "Beacons that run this release would trust none of its signers.",
            found=", ".join(sorted(trusted.keys)),
            expected="--keys keys.json, as keys export writes it",
        )


def _write_release(
    made: bytes, image: Path, signing: SigningOptions | None, fleet_key: Path | None
) -> "Json":
    """Write an image and, when it is signed, its manifest; return the fields to print."""
    from beacon_ota.trust import files

    if signing is None:
        files.write_file(image, made)
        return {"image": str(image), "manifest": None}
    if fleet_key is None:
        files.write_file(image, made)
        return write_signed_manifest(image, signing)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.bin"
        plain.write_bytes(made)
        return write_signed_manifest(plain, signing, fleet_key=fleet_key, out=image)
