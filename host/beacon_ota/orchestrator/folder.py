"""The data folder: made at the start, and locked for one orchestrator at a time.

Two orchestrators on one folder would decide from different states: neither would hear of the
other's halts, registrations and keys. On PostgreSQL they would also share the replay guard's file
without knowing it. The workers of one orchestrator share the folder: their parent holds the lock.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from beacon_ota.errors import UsageError

LOCK_FILE = "in-use"  # in the data folder: locked, and empty
RESTORING = "restoring"  # there while a backup is being put back


def make_folder(folder: Path, *, restoring: bool = False) -> None:
    """Make the data folder, and see whether something can be made in it.

    Args:
        restoring: it is to be filled from a backup.

    Raises:
        UsageError: ``data_unusable``, ``restore_unfinished``.
    """
    if not restoring:
        refuse_unfinished(folder)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise data_unusable(folder, error) from None


@contextlib.contextmanager
def lock_folder(
    folder: Path, *, instead: str = "another --data, or --workers"
) -> Iterator[int | None]:
    """Hold a data folder for the duration of a block; the kernel lets go for who is killed.

    Args:
        instead: what a refusal says is expected.

    Yields:
        What a forked process has to close, so that it does not hold the folder, too.

    Raises:
        UsageError: ``data_in_use``, ``data_unusable``.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nothing is held
        yield None
        return
    try:
        fd = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise data_unusable(folder / LOCK_FILE, error) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                "data_in_use",
                f"another orchestrator runs on the data folder {folder}",
                found=str(folder),
                expected=instead,
            ) from None
        except OSError:
            pass  # a file system without locks
        yield fd
    finally:
        os.close(fd)


def refuse_unfinished(folder: Path) -> None:
    """Refuse a folder that holds half a backup (UsageError ``restore_unfinished``)."""
    if (folder / RESTORING).exists():
        raise UsageError(
            "restore_unfinished",
            f"a backup was being put back into {folder}, and that did not come to its end:"
            " remove what is in the folder, and put the backup back again",
            found=str(folder / RESTORING),
        )


def synchronise(folder: Path) -> None:
    """Have the names in a folder survive a power cut (OSError)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def data_unusable(folder: Path, error: OSError) -> UsageError:
    """Return what says that a data folder, or something in it, is of no use."""
    return UsageError(
        "data_unusable",
        f"{folder} cannot be used: {error.strerror}",
        found=str(folder),
    )
