"""``beacon-ota release``: sign, upload, promote, deprecate."""

from pathlib import Path
from typing import Annotated

import typer

from beacon_ota.cli import output, remote, signing
from beacon_ota.cli.remote import JsonOption, ReasonOption, TokenOption, UrlOption, YesOption

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Sign, upload, promote, deprecate releases."
)
signing.add_to(app)

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
    fields = _claims(image, version, device_type, manifest)
    if description:
        fields["description"] = description
    if stable:
        fields["channel"] = "stable"
    if required:
        fields["required"] = "true"
    with _progress(image) as file:
        done = remote.client(url, token).upload(file, **fields)
    if json:
        output.dump(done)
        return
    output.console.print(
        f"[green]uploaded[/] {done['device_type']} {done['version']} as {done['firmware_id']}, "
        f"{done['state']}, {'signed' if done['signed'] else '[bold red]not signed[/]'}",
        highlight=False,
    )


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
    rows = remote.client(url, token).firmwares(device_type=device_type, state=state)
    if not json:
        rows = [{**row, "uploaded": remote.moment(row["uploaded_at"])} for row in rows]
    output.emit(rows, _COLUMNS, as_json=json)


@app.command()
def show(
    name: Name, url: UrlOption = None, token: TokenOption = None, json: JsonOption = False
) -> None:
    """Show a release."""
    client = remote.client(url, token)
    found = client.firmware(client.firmware(name)["firmware_id"])
    if json:
        output.dump(found)
        return
    info = found.pop("info")
    found["manifest"] = "there" if found["manifest"] else "none"
    for key in list(found):
        if key.endswith("_at"):
            found[key] = remote.moment(found[key])
    remote.show(
        {**found, **{f"image {key}": value for key, value in info.items()}},
        f"{found['device_type']} {found['version']}",
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
    done = client.move_firmware(client.firmware(name)["firmware_id"], verb, reason)
    if json:
        output.dump(done)
    else:
        output.console.print(f"{done['device_type']} {done['version']} is {done['state']}")


def _claims(
    image: Path, version: str | None, device_type: str | None, manifest: Path | None
) -> dict[str, str]:
    """Return the form's fields: what was said, else what the manifest or the image says."""
    from beacon_ota.errors import UsageError
    from beacon_ota.images import release
    from beacon_ota.trust import releases

    fields: dict[str, str] = {}
    beside = manifest or image.with_name(image.name + signing.SUFFIX)
    said: tuple[str, str] | None = None
    if manifest is not None or beside.is_file():
        try:
            fields["manifest"] = beside.read_text().strip()
        except (OSError, UnicodeDecodeError):
            raise UsageError("file_unreadable", f"cannot read {beside}") from None
        claimed = releases.claimed(fields["manifest"])
        said = claimed.version, claimed.device_type
    elif version is None or device_type is None:
        info = release.parse(image.read_bytes()).info
        said = info.version, info.device_type
    fields["version"] = version or (said[0] if said else "")
    fields["device_type"] = device_type or (said[1] if said else "")
    return fields


def _progress(image: Path):
    from rich.progress import open as watch

    return watch(image, "rb", description="upload", console=output.errors, transient=True)
