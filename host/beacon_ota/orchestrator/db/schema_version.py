"""Brings a database's schema to the newest migration, and opens one without a server."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from beacon_ota import lifeline
from beacon_ota.errors import ReachError
from beacon_ota.orchestrator.db.connection import (
    StorageError,
    connect,
    describe_error,
    sqlite_url,
    storage_errors,
)

MIGRATIONS = Path(__file__).with_name("migrations")


def newest_revision() -> str:
    """Return the revision that the packaged migrations lead to."""
    return max(_revisions())


def _revisions() -> set[str]:
    return {file.stem.split("_")[0] for file in MIGRATIONS.glob("versions/[0-9]*.py")}


def migrate_if_due(engine: Engine) -> None:
    """Bring the schema to the newest revision; the work of a moment when it is there already.

    Raises:
        StorageError: ``migration``; ``database_newer``: a newer release has brought it further.
    """
    newest, found = newest_revision(), None
    try:
        with engine.connect() as conn:
            if inspect(conn).has_table("alembic_version"):
                found = conn.scalar(text("SELECT version_num FROM alembic_version"))
    except SQLAlchemyError as error:
        named = StorageError("database", f"the database cannot be used: {describe_error(error)}")
        raise named from None
    if found == newest:
        return
    if found is not None:
        check_revision(found)
    # In a process of its own: what it takes is needed once, and would stay in memory for good.
    done = subprocess.run(
        [sys.executable, "-m", "beacon_ota.orchestrator.db.migrations"],
        input=engine.url.render_as_string(hide_password=False),
        capture_output=True,
        text=True,
        check=False,
        **lifeline.options(),
    )
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["it failed without a word"])[-1]
        raise StorageError("migration", f"the database could not be brought up to date: {last}")


def run_migrations(engine: Engine) -> None:
    """Run the migrations that are due, in one transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "head")


@contextmanager
def open_offline(folder: Path) -> Iterator[Connection]:
    """Open the database of a data folder for one transaction, with or without a server running."""
    if not (folder / "beacon-ota.db").is_file():
        raise ReachError("data_missing", f"{folder} holds no orchestrator data", found=str(folder))
    engine = connect(sqlite_url(folder))
    try:
        migrate_if_due(engine)
        with storage_errors(), engine.begin() as conn:
            yield conn
    finally:
        engine.dispose()


def check_revision(found: str) -> None:
    """Refuse a database that a newer release has migrated (StorageError ``database_newer``)."""
    newest = newest_revision()
    if found not in _revisions():
        raise StorageError(
            "database_newer",
            f"the database is one of a newer release (its schema is {found}, this release knows"
            f" {newest} at most): start that release again, or put back a backup from before it",
            found=found,
            expected=newest,
        )
