"""What a backup consists of: an index, and the files that it lists.

A backup is a folder, or a tar archive of the same files. The index is written last, so a backup
without one is not complete. Only what the index lists is ever read.
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from beacon_ota.errors import InputError

INDEX = "backup.json"
DATABASE = "beacon-ota.db"
KEYS = "keys.json"
IMAGES = "blobs"
FORMAT = 1
ARCHIVE = ".tar"  # a name that ends so is an archive, any other a folder
PIECE = 1 << 20  # bytes that are copied at once
_INDEX_MOST = 16 << 20  # bytes
_NAME = re.compile(rf"{re.escape(DATABASE)}|{re.escape(KEYS)}|{IMAGES}/([0-9a-f]{{64}})")
_DIGEST = re.compile("[0-9a-f]{64}")
_SIZE_MOST = 1 << 50


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a backup: its bytes, and their SHA-256 in hexadecimal digits."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class BackupIndex:
    """What a backup says of itself.

    Attributes:
        made_at: UTC, as ISO 8601 has it. made_by: the version of the program.
        schema: the revision of the database.
        files: by name.
        missing: digests of images that were damaged or gone.
    """

    made_at: str
    made_by: str
    schema: str
    files: dict[str, Entry]
    missing: tuple[str, ...] = ()

    @property
    def images(self) -> list[str]:
        """The digests of its images."""
        return sorted(name.rpartition("/")[2] for name in self.files if "/" in name)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(entry.size for entry in self.files.values())

    def text(self) -> bytes:
        """Return it as its file has it."""
        fields = {
            "format": FORMAT,
            "made_at": self.made_at,
            "made_by": self.made_by,
            "schema": self.schema,
            "files": {
                name: {"bytes": entry.size, "sha256": entry.sha256}
                for name, entry in sorted(self.files.items())
            },
            "missing": list(self.missing),
        }
        return (json.dumps(fields, indent=1) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes) -> "BackupIndex":
        """Return what an index says (InputError ``backup_damaged``, ``backup_newer``)."""
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError):
            raise damaged(f"{INDEX} is not JSON") from None
        if not isinstance(fields, dict) or type(fields.get("format")) is not int:
            raise damaged(f"{INDEX} names no format")
        if fields["format"] > FORMAT:
            raise InputError(
                "backup_newer",
                "the backup was made by a newer release, in a format that this one does not know",
                found=fields["format"],
                expected=FORMAT,
            )
        words = [fields.get(name) for name in ("made_at", "made_by", "schema")]
        files, missing = fields.get("files"), fields.get("missing")
        if (
            not all(isinstance(word, str) and len(word) <= 64 for word in words)
            or not isinstance(files, dict)
            or not isinstance(missing, list)
            or not all(isinstance(one, str) and _DIGEST.fullmatch(one) for one in missing)
        ):
            raise damaged(f"a field of {INDEX} is not what it should be")
        entries = {name: _entry(name, entry) for name, entry in files.items()}
        if DATABASE not in entries:
            raise damaged(f"{INDEX} lists no database")
        return cls(*words, entries, tuple(missing))  # type: ignore[arg-type]


def _entry(name: str, fields: Any) -> Entry:
    found = _NAME.fullmatch(name)
    if (
        found is None
        or not isinstance(fields, dict)
        or type(fields.get("bytes")) is not int
        or not 0 <= fields["bytes"] <= _SIZE_MOST
        or not isinstance(fields.get("sha256"), str)
        or not _DIGEST.fullmatch(fields["sha256"])
        or found[1] not in (None, fields["sha256"])
    ):
        raise damaged(f"{INDEX} lists a file that no backup has", found=name[:100])
    return Entry(fields["bytes"], fields["sha256"])


def damaged(what: str, *, found: object = None, expected: object = None) -> InputError:
    """Return what says that a backup is of no use."""
    return InputError(
        "backup_damaged", f"the backup is damaged: {what}", found=found, expected=expected
    )


class BackupReader:
    """A backup that is read."""

    def __init__(self, index: BackupIndex, open_: Callable[[str], IO[bytes]]):
        self.index = index
        self._open = open_

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a file; its size and digest have been compared at the end.

        Raises:
            InputError: ``backup_damaged``.
        """
        entry = self.index.files[name]
        seen, digest = 0, hashlib.sha256()
        try:
            with self._open(name) as file:
                while piece := file.read(PIECE):
                    seen += len(piece)
                    digest.update(piece)
                    if seen > entry.size:
                        break
                    yield piece
        except (OSError, EOFError, tarfile.TarError, KeyError):
            raise damaged("a file cannot be read", found=name) from None
        if seen != entry.size:
            raise damaged(f"{name} has another size", found=seen, expected=entry.size)
        if digest.hexdigest() != entry.sha256:
            raise damaged(
                f"{name} has another digest", found=digest.hexdigest(), expected=entry.sha256
            )


@contextmanager
def open_backup(path: Path) -> Iterator[BackupReader]:
    """Open a backup.

    Raises:
        InputError: ``backup_missing``, ``backup_damaged``, ``backup_newer``.
    """
    if path.is_dir():
        yield BackupReader(
            _index(lambda: _regular(path / INDEX)), lambda name: _regular(path / name)
        )
        return
    if not path.exists():
        raise InputError("backup_missing", f"there is no backup at {path}", found=str(path))
    try:
        archive = tarfile.open(path, "r:")  # noqa: SIM115
    except (OSError, EOFError, tarfile.TarError):
        raise damaged("it is neither a folder nor a tar archive", found=str(path)) from None
    with archive:

        def member(name: str) -> IO[bytes]:
            info = archive.getmember(name)
            file = archive.extractfile(info) if info.isreg() else None
            if file is None:
                raise OSError
            return file

        yield BackupReader(_index(lambda: member(INDEX)), member)


def _regular(path: Path) -> IO[bytes]:
    if not path.is_file() or path.is_symlink():
        raise OSError
    return path.open("rb")


def _index(open_: Callable[[], IO[bytes]]) -> BackupIndex:
    try:
        with open_() as file:
            data = file.read(_INDEX_MOST + 1)
    except (OSError, EOFError, tarfile.TarError, KeyError):
        raise damaged(f"it has no {INDEX}; it is not complete, or something else") from None
    if len(data) > _INDEX_MOST:
        raise damaged(f"{INDEX} is too large")
    return BackupIndex.parse(data)
