"""``beacon-ota release verify``: checks a manifest against its image, as a beacon would."""

import json as encoder
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota import text_files
from beacon_ota.cli._support.options import JsonOption
from beacon_ota.cli.keys import KeyringOption, open_keyring
from beacon_ota.cli.release.manifest import (
    MAX_IMAGE,
    SUFFIX,
    FleetKeyOption,
    ImageArgument,
    manifest_beside,
    parse_utc,
    print_manifest,
    read_fleet_key,
)
from beacon_ota.console import output
from beacon_ota.errors import InputError

if TYPE_CHECKING:
    from beacon_ota.trust import KeySet, Manifest, Verifier


def verify_release(
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
    text = text_files.read_text_file(manifest or manifest_beside(image), dsse.MAX_TEXT)
    trusted = _read_trusted_keys(keys, keyring)
    now = int(datetime.now(UTC).timestamp()) if at is None else parse_utc(at, "--at")
    claimed = releases.claimed_manifest(text)
    expected = releases.claims_for_image(data, claimed, fleet_key=read_fleet_key(fleet_key))
    verifier = Verifier(trusted)
    found = verifier.check_upload(text, expected, now=now)
    if running is not None:
        _judge_as_beacon(verifier, text, found, running, floor, device_type, now)
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
    print_manifest(row)


def _judge_as_beacon(
    verifier: "Verifier",
    text: str,
    manifest: "Manifest",
    running: str,
    floor: str | None,
    device_type: str | None,
    now: int,
) -> None:
    """Ask the question that a beacon would ask, and refuse with its code."""
    from beacon_ota.images import boards
    from beacon_ota.trust import Situation
    from beacon_ota.wire.manifest import Refused

    own = device_type or manifest.device_type
    room = boards.board_for_device_type(own).slot_size
    offer = {**manifest.fields(), "manifest": encoder.loads(text)}
    try:
        verifier.judge_offer(offer, Situation(own, running, floor, now, room))
    except Refused as error:
        raise InputError(error.code, f"A beacon would refuse it: {error.detail}.") from error


def _read_trusted_keys(keys: Path | None, keyring: Path | None) -> "KeySet":
    from beacon_ota.trust import KeySet
    from beacon_ota.trust import keys as keys_

    if keys is None:
        return open_keyring(keyring).trusted()
    return KeySet.parse(text_files.read_text_file(keys, keys_.MAX_FILE), name=str(keys))
