"""``beacon-ota release republish``: the way back to a release that was better.

Beacons refuse downgrades, whoever asks: so what went before comes again, under a higher version,
signed anew. Core and code stay byte for byte; what is new is the version, and, where keys were
rotated meanwhile, the trusted keys.
"""

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beacon_ota import text_files
from beacon_ota.cli import signing
from beacon_ota.cli._support import remote
from beacon_ota.cli._support.remote import TokenOption, UrlOption
from beacon_ota.cli.keys import JsonOption, KeyringOption, PasswordOption, open_ring
from beacon_ota.console import output
from beacon_ota.errors import InputError, UsageError

if TYPE_CHECKING:
    from beacon_ota.client import Client

PREVIOUS = "previous"


def add_to(app: typer.Typer) -> None:
    """Mount the command into the group ``release``."""
    app.command("republish")(republish)


def republish(
    name: Annotated[
        str,
        typer.Argument(
            help="Id, version, or device_type/version of a release on the server; "
            f"{PREVIOUS}, the stable one before the current one; or the file of a plain image.",
            autocompletion=remote.known("release"),
        ),
    ],
    version: Annotated[
        str, typer.Option("--as", help="The new version, above every one that beacons run.")
    ],
    key: Annotated[
        list[str] | None,
        typer.Option(help="Key to sign with, repeatable [default: the only active one]."),
    ] = None,
    keyring: KeyringOption = None,
    password_file: PasswordOption = None,
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
    expires: Annotated[
        str, typer.Option(help="When it expires: days, or a UTC date (2027-01-31).")
    ] = "365d",
    required: Annotated[
        bool, typer.Option("--required", help="Beacons do not wait for their window.")
    ] = False,
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
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Make an earlier release a new, higher, signed one: the way back.

    The private key stays here. The server gives the earlier image and takes the new one.
    """
    from beacon_ota.images import release

    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old.bin"
        server = None
        if Path(name).is_file():
            old = Path(name)
            plain, said = old.read_bytes(), name
        else:
            server = remote.client(url, token)
            plain, said = _stored(server, name, old, fleet_key)
        now = int(datetime.now(UTC).timestamp())
        made = release.renumber_release(plain, version, built_at=now, keys=_keys(keys))
        if not unsigned:
            _check_signers(made, key, keyring)
        image = out or Path(folder) / f"{version}.bin"
        row = _make(
            made,
            image,
            unsigned=unsigned,
            fleet_key=fleet_key,
            names=key,
            keyring=keyring,
            password_file=password_file,
            expires=expires,
            required=required,
        )
        if upload if upload is not None else out is None:
            fields = claims(image, None, None, None)
            if required:
                fields["required"] = "true"
            again = description or f"{said} again"
            row = send(server or remote.client(url, token), image, fields, again, stable)
    if json:
        output.print_json(row)
    elif "firmware_id" in row:
        tell(row)
    else:
        output.console.print(f"{image}: {version}", highlight=False, markup=False)


def _stored(client: "Client", name: str, file: Path, fleet_key: Path | None) -> tuple[bytes, str]:
    """Return the plain image of a release on the server, and what it is called."""
    from beacon_ota.trust import encrypt

    found = client.find_firmware(_previous(client) if name == PREVIOUS else name)
    fetch(client, found, file)
    data = file.read_bytes()
    if found["blob"] != found["checksum"]:
        if fleet_key is None:
            raise UsageError("fleet_key", "This release is encrypted.", expected="--fleet-key FILE")
        data = encrypt.crypt_image(data, encrypt.read_fleet_key(fleet_key), found["checksum"])
        _check_plain(data, found["checksum"])
    return data, found["version"]


def _check_plain(data: bytes, checksum: str) -> None:
    import hashlib

    if hashlib.sha256(data).hexdigest() != checksum:
        raise InputError(
            "decrypt", "The image does not decrypt to what was signed: another fleet's key?"
        )


def _previous(client: "Client") -> str:
    """Return the id of the only release that is the previous one of its device type."""
    found = [row for row in client.list_firmwares() if row.get("role") == PREVIOUS]
    if len(found) != 1:
        raise UsageError(
            "firmware_ambiguous" if found else "firmware_unknown",
            "several device types have an earlier stable release; name one of them"
            if found
            else "no earlier stable release is known",
            found=[f"{row['device_type']}/{row['version']}" for row in found] or None,
            expected="device_type/version",
        )
    return found[0]["firmware_id"]


def _keys(file: Path | None) -> bytes | None:
    from beacon_ota.trust import KeySet
    from beacon_ota.trust import keys as keys_

    if file is None:
        return None
    return KeySet.parse(text_files.read_text(file, keys_.MAX_FILE), name=str(file)).to_json()


def _check_signers(made: bytes, names: list[str] | None, keyring: Path | None) -> None:
    """Refuse a release that its own signers could never replace.

    Code of last year trusts the keys of last year: after a rotation those are the wrong ones.
    """
    from beacon_ota.images import appfs, release
    from beacon_ota.trust import KeySet

    inside = release.parse_release(made).files.get(appfs.KEYS)
    if inside is None:
        return  # which signing refuses, with its own words
    trusted = KeySet.parse(inside, name="keys.json of the image")
    ring = open_ring(keyring)
    own = {ring.get(name).keyid for name in names or [signing.only(ring)]}
    if not own & trusted.keys.keys():
        raise UsageError(
            "keys_old",
            "Beacons that run this release would trust none of its signers.",
            found=", ".join(sorted(trusted.keys)),
            expected="--keys keys.json, as keys export writes it",
        )


def _make(
    made: bytes, image: Path, *, unsigned: bool, fleet_key: Path | None, **terms: Any
) -> dict[str, Any]:
    """Write image and manifest; return what there is to tell."""
    from beacon_ota.trust import files

    if unsigned:
        files.write_file(image, made)
        return {"image": str(image), "manifest": None}
    if fleet_key is None:
        files.write_file(image, made)
        return signing.signed(image, **terms)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.bin"
        plain.write_bytes(made)
        return signing.signed(plain, encrypt=True, fleet_key=fleet_key, out=image, **terms)


def fetch(client: "Client", found: dict[str, Any], file: Path) -> Path | None:
    """Write a stored release into a file; its manifest goes beside it, and that is returned."""
    import json

    try:
        with file.open("wb") as target:
            client.download_firmware(found, target)
        envelope = found.get("manifest")
        if not envelope:
            return None
        beside = file.with_name(file.name + signing.SUFFIX)
        beside.write_text(json.dumps(envelope, separators=(",", ":")))
    except OSError as error:
        raise UsageError("file_unwritable", f"cannot write {file}: {error.strerror}") from None
    return beside


def claims(
    image: Path, version: str | None, device_type: str | None, manifest: Path | None
) -> dict[str, str]:
    """Return the form's fields: what was said, else what the manifest or the image says."""
    from beacon_ota.images import release
    from beacon_ota.trust import releases

    fields: dict[str, str] = {}
    beside = manifest or image.with_name(image.name + signing.SUFFIX)
    said: tuple[str, str] | None = None
    if manifest is not None or beside.is_file():
        fields["manifest"] = text_files.read_text(beside).strip()
        claimed = releases.claimed_manifest(fields["manifest"])
        said = claimed.version, claimed.device_type
    elif version is None or device_type is None:
        info = release.parse_release(image.read_bytes()).info
        said = info.version, info.device_type
    fields["version"] = version or (said[0] if said else "")
    fields["device_type"] = device_type or (said[1] if said else "")
    return fields


def send(
    client: "Client", image: Path, fields: dict[str, str], description: str, stable: bool
) -> dict[str, Any]:
    """Upload an image with its form, showing how far it is."""
    more = {"description": description} if description else {}
    if stable:
        more["channel"] = "stable"
    with _progress(image) as file:
        return client.upload_firmware(file, **fields, **more)


def tell(done: dict[str, Any]) -> None:
    """Say what was uploaded."""
    output.print_markup(
        "[green]uploaded[/] {} {} as {}, {}, {}",
        done["device_type"],
        done["version"],
        done["firmware_id"],
        done["state"],
        "signed" if done["signed"] else output.alert_cell("not signed"),
    )


def _progress(image: Path):
    from rich.progress import open as watch

    return watch(image, "rb", description="upload", console=output.error_console, transient=True)
