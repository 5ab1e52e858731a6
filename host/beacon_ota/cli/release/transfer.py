"""Upload and download of a release: its image; manifest and block index in files beside it."""

import base64
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from beacon_ota import text_files
from beacon_ota.cli.release.manifest import blocks_beside, manifest_beside
from beacon_ota.console import output
from beacon_ota.errors import UsageError

if TYPE_CHECKING:
    from beacon_ota.client import Client, Json


def upload_fields(
    image: Path, version: str | None, device_type: str | None, manifest: Path | None
) -> dict[str, str]:
    """Return the form's fields: what was said, else what the manifest or the image says.

    The block index beside an encrypted image goes with it.
    """
    from beacon_ota.images import release
    from beacon_ota.trust import releases

    fields: dict[str, str] = {}
    beside = manifest or manifest_beside(image)
    said: tuple[str, str] | None = None
    if manifest is not None or beside.is_file():
        fields["manifest"] = text_files.read_text_file(beside).strip()
        claimed = releases.claimed_manifest(fields["manifest"])
        said = claimed.version, claimed.device_type
        if claimed.encrypted and blocks_beside(image).is_file():
            fields["blocks"] = base64.b64encode(blocks_beside(image).read_bytes()).decode()
    elif version is None or device_type is None:
        info = release.parse_release(image.read_bytes()).info
        said = info.version, info.device_type
    fields["version"] = version or (said[0] if said else "")
    fields["device_type"] = device_type or (said[1] if said else "")
    return fields


def upload_image(
    client: "Client", image: Path, fields: dict[str, str], description: str, stable: bool
) -> "Json":
    """Upload an image with its form, showing how far it is."""
    more = {"description": description} if description else {}
    if stable:
        more["channel"] = "stable"
    with _open_with_progress(image) as file:
        return client.upload_firmware(file, **fields, **more)


def print_uploaded(done: "Json") -> None:
    """Say what was uploaded."""
    output.print_markup(
        "[green]uploaded[/] {} {} as {}, {}, {}",
        done["device_type"],
        done["version"],
        done["firmware_id"],
        done["state"],
        "signed" if done["signed"] else output.alert_cell("not signed"),
    )


def _open_with_progress(image: Path) -> AbstractContextManager[BinaryIO]:
    from rich.progress import open as open_with_bar

    return open_with_bar(
        image, "rb", description="upload", console=output.error_console, transient=True
    )


def download_files(client: "Client", found: "Json", file: Path) -> Path | None:
    """Write a stored release into a file; its manifest goes beside it, and that is returned.

    The block index of an encrypted release goes there, too.
    """
    try:
        with file.open("wb") as target:
            client.download_firmware(found, target)
        envelope = found.get("manifest")
        if not envelope:
            return None
        beside = manifest_beside(file)
        beside.write_text(json.dumps(envelope, separators=(",", ":")))
        if found["blob"] != found["checksum"] and found.get("blocks"):
            blocks_beside(file).write_bytes(client.download_blocks(found))
    except OSError as error:
        raise UsageError("file_unwritable", f"cannot write {file}: {error.strerror}") from None
    return beside
