"""``beacon-ota release``: sign, upload, promote, deprecate, republish."""

from pathlib import Path
from typing import Annotated

import typer

from beacon_ota.cli import republish, signing, unconfirmed
from beacon_ota.cli._support import remote
from beacon_ota.cli._support.remote import (
    JsonOption,
    ReasonOption,
    TokenOption,
    UrlOption,
    YesOption,
)
from beacon_ota.console import output

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Sign, upload, promote, deprecate, republish releases.",
)
signing.add_to(app)
republish.add_to(app)

Name = Annotated[
    str,
    typer.Argument(
        help="Id, version, or device_type/version.", autocompletion=remote.known("release")
    ),
]
_COLUMNS = ("firmware_id", "device_type", "version", "state", "role", "signed", "size", "uploaded")


@app.command()
def upload(
    image: Annotated[Path, typer.Argument(help="Release image.", exists=True, dir_okay=False)],
    version: Annotated[str | None, typer.Option(help="Default: what the image says.")] = None,
    device_type: Annotated[str | None, typer.Option(help="Default: what the image says.")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Signed manifest [default: IMAGE.manifest.json if there].")
    ] = None,
    description: Annotated[str, typer.Option("--description", "-m", help="One line.")] = "",
    stable: Annotated[bool, typer.Option("--stable", help="For all beacons at once.")] = False,
    required: Annotated[bool, typer.Option("--required", help="Whatever the hour.")] = False,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Upload a release; it is ``testing`` (for beta beacons) until promoted."""
    fields = republish.claims(image, version, device_type, manifest)
    if required:
        fields["required"] = "true"
    done = republish.send(remote.client(url, token), image, fields, description, stable)
    if json:
        output.print_json(done)
        return
    republish.tell(done)


@app.command("list")
def listing(
    device_type: Annotated[str | None, typer.Option(help="Only these.")] = None,
    state: Annotated[
        str | None,
        typer.Option(
            help="testing, stable, deprecated.",
            autocompletion=remote.words("testing", "stable", "deprecated"),
        ),
    ] = None,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """List releases, newest first."""
    rows = remote.client(url, token).list_firmwares(device_type=device_type, state=state)
    if not json:
        rows = [{**row, "uploaded": remote.moment(row["uploaded_at"])} for row in rows]
    output.print_rows(rows, _COLUMNS, as_json=json)


@app.command()
def show(
    name: Name, url: UrlOption = None, token: TokenOption = None, json: JsonOption = False
) -> None:
    """Show a release."""
    client = remote.client(url, token)
    found = client.find_firmware(client.find_firmware(name)["firmware_id"])
    if json:
        output.print_json(found)
        return
    info, waits = found.pop("info"), found.pop("unconfirmed", [])
    found["manifest"] = "there" if found["manifest"] else "none"
    for key in list(found):
        if key.endswith("_at"):
            found[key] = remote.moment(found[key])
    remote.show(
        {**found, **{f"image {key}": value for key, value in info.items()}},
        f"{found['device_type']} {found['version']}",
    )
    if waits:
        output.console.print(unconfirmed.named(waits))


@app.command()
def download(
    name: Name,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where to [default: TYPE-VERSION.bin].")
    ] = None,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Get a release as it is stored, its manifest beside it."""
    client = remote.client(url, token)
    found = client.find_firmware(client.find_firmware(name)["firmware_id"])
    file = out or Path(f"{found['device_type']}-{found['version']}.bin")
    manifest = republish.fetch(client, found, file)
    row = {"image": str(file), "manifest": manifest and str(manifest), "sha256": found["blob"]}
    if json:
        output.print_json(row)
        return
    output.console.print(
        " and ".join(filter(None, (row["image"], row["manifest"]))),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@app.command()
def promote(
    name: Name, url: UrlOption = None, token: TokenOption = None, json: JsonOption = False
) -> None:
    """Make a tested release stable: for every beacon, as far as a rollout brings it."""
    _move(name, "promote", "", url, token, json)


@app.command()
def deprecate(
    name: Name,
    reason: ReasonOption = "",
    yes: YesOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Withdraw a release from everybody, also from those who are downloading it."""
    remote.confirm(f"Withdraw {name} for good?", yes)
    _move(name, "deprecate", reason, url, token, json)


def _move(
    name: str, verb: str, reason: str, url: str | None, token: str | None, json: bool
) -> None:
    client = remote.client(url, token)
    done = client.post_firmware_action(client.find_firmware(name)["firmware_id"], verb, reason)
    unconfirmed.wait(done, lambda: client.find_firmware(done["firmware_id"]))
    if json:
        output.print_json(done)
        return
    output.print_markup("{} {} is {}", done["device_type"], done["version"], done["state"])
    if done.get("unconfirmed"):
        output.console.print(unconfirmed.named(done["unconfirmed"]))
