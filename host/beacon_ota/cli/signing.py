"""``beacon-ota release sign`` and ``release verify``: the offline half of releasing."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota import text_files
from beacon_ota.cli.keys import JsonOption, KeyringOption, PasswordOption, open_ring, password
from beacon_ota.console import output
from beacon_ota.errors import InputError, UsageError

if TYPE_CHECKING:
    from beacon_ota.trust import KeySet, Manifest, Verifier
    from beacon_ota.trust.keyring import Keyring

MAX_IMAGE = 1 << 24
SUFFIX = ".manifest.json"

ImageArgument = Annotated[Path, typer.Argument(help="The release image.")]
FleetKeyOption = Annotated[Path | None, typer.Option(help="File of the fleet key.")]


def add_to(app: typer.Typer) -> None:
    """Mount the commands into the group ``release``."""
    app.command("sign")(sign)
    app.command("verify")(verify)


def sign(
    image: ImageArgument,
    key: Annotated[
        list[str] | None,
        typer.Option(help="Key to sign with, repeatable [default: the only active one]."),
    ] = None,
    keyring: KeyringOption = None,
    password_file: PasswordOption = None,
    manifest: Annotated[
        Path | None,
        typer.Option(help=f"Where the manifest goes [default: beside the image, {SUFFIX}]."),
    ] = None,
    min_version: Annotated[
        str, typer.Option(help="Lowest running version that may take it.")
    ] = "0.0.0-0",
    required: Annotated[
        bool, typer.Option("--required", help="Beacons do not wait for their window.")
    ] = False,
    expires: Annotated[
        str, typer.Option(help="When it expires: days, or a UTC date (2027-01-31).")
    ] = "365d",
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
    row = signed(
        image,
        names=key,
        keyring=keyring,
        password_file=password_file,
        manifest=manifest,
        min_version=min_version,
        required=required,
        expires=expires,
        issued_at=issued_at,
        encrypt=encrypt,
        fleet_key=fleet_key,
        out=out,
        append=append,
    )
    if json:
        output.print_json(row)
        return
    _show(row)


def signed(
    image: Path,
    *,
    names: list[str] | None = None,
    keyring: Path | None = None,
    password_file: Path | None = None,
    manifest: Path | None = None,
    min_version: str = "0.0.0-0",
    required: bool = False,
    expires: str = "365d",
    issued_at: int | None = None,
    encrypt: bool = False,
    fleet_key: Path | None = None,
    out: Path | None = None,
    append: bool = False,
) -> dict[str, object]:
    """Sign as :func:`sign` does; returns what it has to tell."""
    from beacon_ota.trust import dsse, files, releases

    if encrypt != bool(fleet_key) or encrypt != bool(out):
        raise UsageError(
            "options", "--encrypt, --fleet-key and --out belong together.", expected="all or none"
        )
    if append and encrypt:
        raise UsageError("options", "--append signs what is there; it encrypts nothing.")
    data = files.read_file(image, MAX_IMAGE)
    ring = open_ring(keyring)
    names = names or [only(ring)]
    file = manifest or _beside(out or image)
    sealed = text = None
    if append:
        text = text_files.read_text(file, dsse.MAX_TEXT)
        found = releases.manifest_for_image(text, data)
    else:
        now = int(datetime.now(UTC).timestamp()) if issued_at is None else issued_at
        terms = releases.Terms(now, _expiry(expires, now), min_version, required)
        found, sealed = releases.describe_release(data, terms, fleet_key=fleet_key_of(fleet_key))
    signers = [ring.signer(name, _password(ring, name, password_file)) for name in names]
    text = (
        dsse.add_signatures(text, signers) if text else dsse.sign_payload(found.payload(), signers)
    )
    if sealed is not None and out is not None:
        files.write_file(out, sealed)
    files.write_file(file, text.encode())
    return {
        **found.fields(),
        "image": str(out or image),
        "manifest": str(file),
        "signed_by": [keyid for keyid, _ in dsse.unpack_envelope(text)[1]],
    }


def verify(
    image: ImageArgument,
    manifest: Annotated[
        Path | None, typer.Option(help=f"The manifest [default: beside the image, {SUFFIX}].")
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(help="keys.json to trust [default: the keyring's active keys]."),
    ] = None,
    keyring: KeyringOption = None,
    fleet_key: FleetKeyOption = None,
    running: Annotated[
        str | None, typer.Option(help="Would a beacon that runs this version take it?")
    ] = None,
    floor: Annotated[str | None, typer.Option(help="… and has confirmed this one?")] = None,
    device_type: Annotated[str | None, typer.Option(help="… and is of this type?")] = None,
    at: Annotated[
        str | None, typer.Option(help="When: UTC seconds or a UTC date [default: now].")
    ] = None,
    pae_out: Annotated[Path | None, typer.Option(help="Write the bytes that were signed.")] = None,
    sig_out: Annotated[Path | None, typer.Option(help="Write a good signature.")] = None,
    pub_out: Annotated[Path | None, typer.Option(help="Write its public key, PEM.")] = None,
    json: JsonOption = False,
) -> None:
    """Check a manifest against its image and the keys, and as a beacon would.

    With --pae-out, --sig-out and --pub-out, OpenSSL can check the signature again:

    \b
        openssl dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32 \\
            -verify PUB -signature SIG PAE
    """
    from beacon_ota.trust import Verifier, dsse, files, releases
    from beacon_ota.wire import manifest as wire

    data = files.read_file(image, MAX_IMAGE)
    text = text_files.read_text(manifest or _beside(image), dsse.MAX_TEXT)
    trusted = _trusted(keys, keyring)
    now = int(datetime.now(UTC).timestamp()) if at is None else _seconds(at, "--at")
    claimed = releases.claimed_manifest(text)
    facts = releases.claims_for_image(data, claimed, fleet_key=fleet_key_of(fleet_key))
    verifier = Verifier(trusted)
    found = verifier.check_upload(text, facts, now=now)
    if running is not None:
        _judge(verifier, text, found, running, floor, device_type, now)
    payload, signatures = dsse.unpack_envelope(text)
    good = dsse.valid_signers(payload, signatures, trusted)
    if pae_out:
        files.write_file(pae_out, wire.pae(payload))
    if sig_out:
        files.write_file(sig_out, dict(signatures)[good[0]])
    if pub_out:
        files.write_file(pub_out, trusted.keys[good[0]].pem())
    row = {
        **found.fields(),
        "image": str(image),
        "looked_into": fleet_key is not None or not found.encrypted,
        "signed_by": good,
        "threshold": trusted.threshold,
    }
    if json:
        output.print_json(row)
        return
    _show(row)


def _judge(
    verifier: "Verifier",
    text: str,
    manifest: "Manifest",
    running: str,
    floor: str | None,
    device_type: str | None,
    now: int,
) -> None:
    """Ask the question that a beacon would ask, and refuse with its code."""
    import json

    from beacon_ota.images import boards
    from beacon_ota.trust import Situation
    from beacon_ota.wire.manifest import Refused

    own = device_type or manifest.device_type
    room = boards.board_for_device_type(own).slot_size
    offer = {**manifest.fields(), "manifest": json.loads(text)}
    try:
        verifier.judge_offer(offer, Situation(own, running, floor, now, room))
    except Refused as error:
        raise InputError(error.code, f"A beacon would refuse it: {error.detail}.") from error


def _trusted(keys: Path | None, keyring: Path | None) -> "KeySet":
    from beacon_ota.trust import KeySet
    from beacon_ota.trust import keys as keys_

    if keys is None:
        return open_ring(keyring).trusted()
    return KeySet.parse(text_files.read_text(keys, keys_.MAX_FILE), name=str(keys))


def fleet_key_of(file: Path | None) -> bytes | None:
    """Return the fleet key of a file."""
    from beacon_ota.trust import encrypt

    return None if file is None else encrypt.read_fleet_key(file)


def _password(ring: "Keyring", name: str, file: Path | None) -> str | None:
    return None if ring.get(name).program else password(name, file)


def only(ring: "Keyring") -> str:
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


def _beside(image: Path) -> Path:
    return image.with_name(image.name + SUFFIX)


def _expiry(text: str, issued_at: int) -> int:
    """Return UTC seconds of ``90d`` after the issue, or of a date."""
    days = text.removesuffix("d")
    if days.isascii() and days.isdigit() and len(days) <= 7:
        return issued_at + int(days) * int(timedelta(days=1).total_seconds())
    return _seconds(text, "--expires")


def _seconds(text: str, option: str) -> int:
    """Return the UTC seconds of a number, a date or a date with time."""
    if text.isascii() and text.isdigit() and len(text) <= 12:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            "date", f"{option}: {error}.", found=text, expected="2027-01-31 or UTC seconds"
        ) from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _show(row: dict[str, object]) -> None:
    """Print a manifest for a person."""
    from rich.table import Table

    def day(value: object) -> str:
        return datetime.fromtimestamp(int(str(value)), UTC).strftime("%Y-%m-%d %H:%M UTC")

    shown = dict(row)
    for name in ("issued_at", "expires_at"):
        shown[name] = day(row[name])
    shown["size"] = f"{row['size']:,}"
    shown["signed_by"] = ", ".join(row["signed_by"])  # type: ignore[arg-type]
    if "encryption" in row:
        shown["encryption"] = row["encryption"]["scheme"]  # type: ignore[index]
    order = ("image", "manifest", "looked_into", "device_type", "version", "size", "checksum")
    table = Table(show_header=False, box=None)
    for name in (*order, *(n for n in shown if n not in order)):
        if name in shown:
            value = shown[name]
            text = ("no", "yes")[value] if isinstance(value, bool) else str(value)
            table.add_row(name.replace("_", " "), output.literal_text(text))
    output.console.print(table)
