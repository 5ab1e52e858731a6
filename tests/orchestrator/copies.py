"""Copies of a data folder, taken while its server runs, and put back later."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path


def copy_data(data: Path, to: Path) -> Path:
    """Copy a data folder as a backup does: the database as it is at one moment, and the images."""
    to.mkdir(mode=0o700)
    with (
        closing(sqlite3.connect(data / "beacon-ota.db")) as source,
        closing(sqlite3.connect(to / "beacon-ota.db")) as sink,
    ):
        source.backup(sink)
    if (data / "blobs").exists():
        shutil.copytree(data / "blobs", to / "blobs")
    return to


def put_back(data: Path, kept: Path) -> None:
    """Put a copy in the place of a data folder whose server is stopped."""
    shutil.rmtree(data)
    shutil.copytree(kept, data)
