"""``beacon-ota restore``: puts a backup into an empty data folder."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from beacon_ota.cli.backup import refuse_postgresql
from beacon_ota.console import output

app = typer.Typer(add_completion=False, help="Put a backup into an empty data folder.")


@app.command()
def restore(
    backup: Annotated[
        Path, typer.Argument(metavar="FILE.tar|FOLDER", help="What beacon-ota backup made.")
    ],
    data: Annotated[
        Path, typer.Option(help="The data folder of serve: a new or an empty one.")
    ] = Path("beacon-ota-data"),
    database: Annotated[
        str | None,
        typer.Option(envvar="BEACON_OTA_DATABASE", help="As for serve.", show_default=False),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(envvar="BEACON_OTA_IMAGES", help="As for serve.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a backup, and put it into a data folder on which no server runs.

    Nothing is overwritten, and a backup that is damaged or too new leaves nothing behind. The next
    start of the server pauses every rollout: the database does not know what was halted since.
    """
    from beacon_ota.orchestrator.backup.restore import restore_backup

    refuse_postgresql(database, f"pg_restore --clean --if-exists {shlex.quote(str(backup))} -d")
    with output.byte_progress("Restoring", None, quiet=json) as advance:
        index = restore_backup(backup, data, images=images, told=advance)
    keys = "keys.json" in index.files
    serve = f"beacon-ota serve --data {shlex.quote(str(data))}"
    if not keys:
        serve += " --keys keys.json"
    if images:
        serve += f" --images {shlex.quote(images)}"
    steps = [
        f"{serve}: its first start pauses every rollout that hands out a release",
        "beacon-ota rollout list: look at each that is paused (restored), then resume or abort it",
        f"beacon-ota token list: what was revoked after {index.made_at} is valid again",
    ]
    if index.missing:
        steps.append(f"upload again: the backup lacks {len(index.missing)} damaged images")
    if json:
        output.print_json(
            {
                "data": str(data),
                "made_at": index.made_at,
                "made_by": index.made_by,
                "schema": index.schema,
                "bytes": index.size,
                "images": len(index.images),
                "keys": keys,
                "missing": list(index.missing),
                "next": steps,
            }
        )
        return
    output.print_markup(
        "{}: as it was at {}; images: {}, {:,} bytes, checked",
        data,
        index.made_at,
        len(index.images),
        index.size,
        soft_wrap=True,
    )
    output.print_markup("next:")
    for step in steps:
        output.print_markup("  {}", step, soft_wrap=True)
