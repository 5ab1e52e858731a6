"""The manifest of a release on the command line: its file, its options, how it is shown."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from beacon_ota.console import output
from beacon_ota.errors import UsageError

MAX_IMAGE = 1 << 24  # bytes
SUFFIX = ".manifest.json"  # of the manifest beside an image
BLOCKS_SUFFIX = ".blocks"  # of the block index beside an encrypted image

ImageArgument = Annotated[Path, typer.Argument(help="The release image.")]
FleetKeyOption = Annotated[Path | None, typer.Option(help="File of the fleet key.")]
_FIRST_ROWS = ("image", "manifest", "looked_into", "device_type", "version", "size", "checksum")


def manifest_beside(image: Path) -> Path:
    """Return the file of the manifest that belongs to an image."""
    return image.with_name(image.name + SUFFIX)


def blocks_beside(image: Path) -> Path:
    """Return the file of the block index that belongs to an encrypted image."""
    return image.with_name(image.name + BLOCKS_SUFFIX)


def read_fleet_key(file: Path | None) -> bytes | None:
    """Return the fleet key of a file, 16 bytes, None without a file."""
    from beacon_ota.trust import encrypt

    return None if file is None else encrypt.read_fleet_key(file)


def parse_utc(text: str, option: str) -> int:
    """Return the UTC seconds of a number, a date or a date with time.

    Args:
        option: what the refusal names.

    Raises:
        UsageError: ``date``.
    """
    if text.isascii() and text.isdigit() and len(text) <= 12:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            "date", f"{option}: {error}.", found=text, expected="2027-01-31 or UTC seconds"
        ) from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def print_manifest(row: dict[str, Any]) -> None:
    """Print the fields of a manifest, and what is known of it, as a table for people."""
    from rich.table import Table

    shown = dict(row)
    for name in ("issued_at", "expires_at"):
        shown[name] = datetime.fromtimestamp(row[name], UTC).strftime("%Y-%m-%d %H:%M UTC")
    shown["size"] = f"{row['size']:,}"
    shown["signed_by"] = ", ".join(row["signed_by"])
    if "encryption" in row:
        shown["encryption"] = row["encryption"]["scheme"]
    table = Table(show_header=False, box=None)
    for name in (*_FIRST_ROWS, *(n for n in shown if n not in _FIRST_ROWS)):
        if name in shown:
            value = shown[name]
            text = ("no", "yes")[value] if isinstance(value, bool) else str(value)
            table.add_row(name.replace("_", " "), output.literal_text(text))
    output.console.print(table)
