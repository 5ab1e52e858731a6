"""The commands of ``beacon-ota release`` that talk to an orchestrator."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota.cli._support import unconfirmed
from beacon_ota.cli._support.completion import complete_names, complete_words
from beacon_ota.cli._support.cost import print_cost, read_cost
from beacon_ota.cli._support.display import local_time, print_fields
from beacon_ota.cli._support.options import (
    JsonOption,
    ReasonOption,
    Server,
    YesOption,
    expand_groups,
)
from beacon_ota.cli._support.prompts import confirm_action
from beacon_ota.cli.release import transfer
from beacon_ota.cli.release.republish import republish_release
from beacon_ota.cli.release.sign import sign_release
from beacon_ota.cli.release.verify import verify_release
from beacon_ota.console import output

if TYPE_CHECKING:
    from beacon_ota.client import Client

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Sign, upload, promote, deprecate, republish releases.",
)
app.command("sign")(sign_release)
app.command("verify")(verify_release)
app.command("republish")(republish_release)

ReleaseName = Annotated[
    str,
    typer.Argument(
        help="Id, version, or device_type/version.", autocompletion=complete_names("release")
    ),
]
_COLUMNS = ("firmware_id", "device_type", "version", "state", "role", "signed", "size", "uploaded")


@app.command("upload")
@expand_groups
def upload_release(
    image: Annotated[Path, typer.Argument(help="Release image.", exists=True, dir_okay=False)],
    version: Annotated[str | None, typer.Option(help="Default: what the image says.")] = None,
    device_type: Annotated[str | None, typer.Option(help="Default: what the image says.")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Signed manifest [default: IMAGE.manifest.json if there].")
    ] = None,
    description: Annotated[str, typer.Option("--description", "-m", help="One line.")] = "",
    stable: Annotated[bool, typer.Option("--stable", help="For all beacons at once.")] = False,
    required: Annotated[bool, typer.Option("--required", help="Whatever the hour.")] = False,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Upload a release; it is ``testing`` (for beta beacons) until promoted."""
    fields = transfer.upload_fields(image, version, device_type, manifest)
    if required:
        fields["required"] = "true"
    done = transfer.upload_image(server.client, image, fields, description, stable)
    if json:
        output.print_json(done)
        return
    transfer.print_uploaded(done)
    print_cost(server.client, done["firmware_id"])


@app.command("list")
@expand_groups
def list_releases(
    device_type: Annotated[str | None, typer.Option(help="Only these.")] = None,
    state: Annotated[
        str | None,
        typer.Option(
            help="testing, stable, deprecated.",
            autocompletion=complete_words("testing", "stable", "deprecated"),
        ),
    ] = None,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """List releases, newest first."""
    rows = server.client.list_firmwares(device_type=device_type, state=state)
    if not json:
        rows = [{**row, "uploaded": local_time(row["uploaded_at"])} for row in rows]
    output.print_rows(rows, _COLUMNS, as_json=json)


@app.command("show")
@expand_groups
def show_release(name: ReleaseName, *, server: Server, json: JsonOption = False) -> None:
    """Show a release, and what it costs the beacons that do not run it yet."""
    client = server.client
    found = client.find_firmware(client.find_firmware(name)["firmware_id"])
    if json:
        output.print_json({**found, "cost": read_cost(client, found["firmware_id"])})
        return
    info, waits = found.pop("info"), found.pop("unconfirmed", [])
    found["manifest"] = "there" if found["manifest"] else "none"
    for key in list(found):
        if key.endswith("_at"):
            found[key] = local_time(found[key])
    print_fields(
        {**found, **{f"image {key}": value for key, value in info.items()}},
        f"{found['device_type']} {found['version']}",
    )
    if waits:
        output.console.print(unconfirmed.describe_waiting(waits))
    if found["state"] != "deprecated":
        print_cost(client, found["firmware_id"])


@app.command("download")
@expand_groups
def download_release(
    name: ReleaseName,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where to [default: TYPE-VERSION.bin].")
    ] = None,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Get a release as it is stored, its manifest beside it."""
    client = server.client
    found = client.find_firmware(client.find_firmware(name)["firmware_id"])
    file = out or Path(f"{found['device_type']}-{found['version']}.bin")
    manifest = transfer.download_files(client, found, file)
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


@app.command("promote")
@expand_groups
def promote_release(name: ReleaseName, *, server: Server, json: JsonOption = False) -> None:
    """Make a tested release stable: for every beacon, as far as a rollout brings it."""
    _post_action(server.client, name, "promote", "", json)


@app.command("deprecate")
@expand_groups
def deprecate_release(
    name: ReleaseName,
    reason: ReasonOption = "",
    yes: YesOption = False,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Withdraw a release from everybody, also from those who are downloading it."""
    confirm_action(f"Withdraw {name} for good?", yes)
    _post_action(server.client, name, "deprecate", reason, json)


def _post_action(client: "Client", name: str, action: str, reason: str, json: bool) -> None:
    done = client.post_firmware_action(client.find_firmware(name)["firmware_id"], action, reason)
    unconfirmed.wait_for_mirrors(done, lambda: client.find_firmware(done["firmware_id"]))
    if json:
        output.print_json(done)
        return
    output.print_markup("{} {} is {}", done["device_type"], done["version"], done["state"])
    if done.get("unconfirmed"):
        output.console.print(unconfirmed.describe_waiting(done["unconfirmed"]))
