"""``beacon-ota backup``: copies an orchestrator's data while it runs."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from beacon_ota.console import output
from beacon_ota.errors import InputError, UsageError

app = typer.Typer(add_completion=False, help="Back up an orchestrator's data, while it runs.")


@app.command()
def backup(
    target: Annotated[
        Path, typer.Argument(metavar="FILE.tar|FOLDER", help="Where it goes; a new one.")
    ],
    data: Annotated[Path, typer.Option(help="The data folder of serve.")] = Path("beacon-ota-data"),
    keys: Annotated[
        Path | None, typer.Option(help="Trusted keys, if serve has them from another file.")
    ] = None,
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
    """Copy database, images and trusted keys, and check them. The server may go on meanwhile.

    Whoever has a backup has the beacons' keys. Exit code 1: images were damaged, and are not in
    the backup; the rest is.
    """
    from beacon_ota.orchestrator.backup.create import BackupSource, create_backup

    refuse_postgresql(database, f"pg_dump --format=custom --file={shlex.quote(f'{target}.dump')}")
    with output.byte_progress("Backing up", None, quiet=json) as advance:
        index = create_backup(BackupSource(data, keys, images), target, advance)
    found = {
        "backup": str(target),
        "made_at": index.made_at,
        "schema": index.schema,
        "bytes": index.size,
        "images": len(index.images),
        "keys": "keys.json" in index.files,
        "missing": list(index.missing),
    }
    if json:
        output.print_json(found)
    else:
        output.print_markup(
            "{}: database (schema {}), images: {}, {}; {:,} bytes, checked",
            target,
            index.schema,
            len(index.images),
            "keys.json" if found["keys"] else "no keys.json",
            index.size,
            soft_wrap=True,
        )
    if index.missing:
        raise InputError(
            "images_damaged",
            f"{len(index.missing)} images are damaged or missing, and not in the backup: upload"
            " them again (or name with --images where serve keeps them), and back up again",
            found=", ".join(index.missing[:3]),
        )


def refuse_postgresql(database: str | None, command: str) -> None:
    """Refuse a database that has tools of its own (UsageError ``backup_postgresql``).

    Args:
        command: without the database's address, to be shown.
    """
    if not database:
        return
    address = shown(database)
    raise UsageError(
        "backup_postgresql",
        "a PostgreSQL database is saved and put back by its own tools"
        " (docs/postgresql.md has the steps)",
        found=address,
        expected=f"{command} {shlex.quote(address)}",
    )


def shown(database: str) -> str:
    """Return a database's URL as PostgreSQL's tools take it, without a password."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(database).set(drivername="postgresql")
        return url._replace(password=None).render_as_string()
    except (ArgumentError, ValueError):
        return "postgresql://user@host/name"
