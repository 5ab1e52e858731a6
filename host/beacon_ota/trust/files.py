"""Small files that hold keys: bounded reads, and writes that are complete or change nothing."""

import os
import secrets
from pathlib import Path

from beacon_ota.errors import InputError, UsageError


def read_file(file: Path, limit: int) -> bytes:
    """Return the content of a small file.

    Raises:
        UsageError: ``file_missing``, with the system's reason.
        InputError: ``file_too_large``, over ``limit`` bytes.
    """
    try:
        with file.open("rb") as f:
            data = f.read(limit + 1)
    except OSError as error:
        raise UsageError("file_missing", f"{file}: {error.strerror}.") from error
    if len(data) > limit:
        raise InputError("file_too_large", f"{file} is too large.", expected=f"≤ {limit} bytes")
    return data


def write_file(file: Path, data: bytes, *, mode: int = 0o644, replace: bool = True) -> None:
    """Write a file; replacing one is a single step: a crash leaves the old or the new.

    Args:
        file: where; its folder has to exist.
        data: the whole content.
        mode: permission bits.
        replace: False to refuse when there is one already.

    Raises:
        UsageError: ``file_exists``, or ``file_unwritable`` with the system's reason.
    """
    target = file.with_name(f".{file.name}.{secrets.token_hex(4)}") if replace else file
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            if replace:
                os.replace(target, file)
        except OSError:
            target.unlink(missing_ok=True)
            raise
    except FileExistsError as error:
        raise UsageError(
            "file_exists", f"{file} exists already, and is not overwritten."
        ) from error
    except OSError as error:
        raise UsageError("file_unwritable", f"{file}: {error.strerror}.") from error
