"""The CSV of a batch of boards: who each one is, its PIN, and what became of it.

A row is on the disk before its board is written to: no board has a PIN that nobody knows. The file
is a file of labels as well, for ``provision batch`` and ``--label``.
"""

import contextlib
import csv
import io
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from beacon_ota.console.output import write_csv
from beacon_ota.errors import InputError, UsageError
from beacon_ota.provision import labels
from beacon_ota.provision.labels import Label
from beacon_ota.text_files import read_text_file

BEGUN, FLASHED = "begun", "flashed"
COLUMNS: tuple[str, ...] = (
    "beacon",
    "mac",
    "address",
    "name",
    "pin",
    "pop",
    "result",
    "version",
    "at",
    "detail",
)
_MAX_BYTES = 16 << 20


@dataclass
class BoardRow:
    """A board: ``result`` is ``begun``, ``flashed`` or the code of an error.

    ``version`` is the release's, ``at`` the UTC time of the result, ``detail`` is for people.
    """

    label: Label
    result: str = BEGUN
    version: str = ""
    at: str = ""
    detail: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return the fields by ``COLUMNS``."""
        own = {name: value for name, value in vars(self).items() if name != "label"}
        return {**self.label.as_dict(), **own}


class BoardLog:
    """The rows of a file, by the addresses of the chips; every change is written at once.

    Made by :func:`open_log`.
    """

    def __init__(self, file: Path, rows: dict[str, BoardRow], descriptor: int | None):
        self.file, self.rows = file, rows
        self._descriptor = descriptor  # of the file, locked

    def find_or_label(self, mac: str) -> BoardRow:
        """Return the row of a chip; one that has none is labelled, with a fresh PIN."""
        row = self.rows.get(mac)
        return BoardRow(labels.make_label(mac)) if row is None else row

    def save(self, row: BoardRow) -> None:
        """Put a row into the file (UsageError ``file_unwritable``)."""
        self.rows[row.label.mac] = row
        text = io.StringIO(newline="")
        write_csv([one.as_dict() for one in self.rows.values()], text)
        new = self.file.with_name(f".{self.file.name}.{secrets.token_hex(4)}")
        try:
            descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, text.getvalue().encode())
                os.fsync(descriptor)
                _lock(descriptor, self.file)
                os.replace(new, self.file)
            except BaseException:
                os.close(descriptor)
                new.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise UsageError("file_unwritable", f"{self.file}: {error.strerror}.") from error
        self.close()
        self._descriptor = descriptor

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextlib.contextmanager
def open_log(file: Path) -> Iterator[BoardLog]:
    """Open the CSV of a batch, or begin one; nobody else writes it meanwhile.

    Raises:
        UsageError: ``labels_in_use``, ``file_unwritable``. InputError: ``label_file``,
            ``file_encoding``, ``file_too_large``.
    """
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError("file_unwritable", f"{file}: {error.strerror}.") from error
        try:
            _lock(descriptor, file)
            if not os.path.samestat(os.fstat(descriptor), file.stat()):
                os.close(descriptor)  # it was replaced in between, by whoever had it
                continue
            log = BoardLog(file, _read_rows(file), descriptor)
        except FileNotFoundError:
            os.close(descriptor)
            continue
        except BaseException:
            os.close(descriptor)
            raise
        break
    try:
        yield log
    finally:
        log.close()


def _read_rows(file: Path) -> dict[str, BoardRow]:
    text = read_text_file(file, _MAX_BYTES)
    rows: dict[str, BoardRow] = {}
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if text and not {"mac", "pin"} <= set(reader.fieldnames or ()):
            raise InputError(
                "label_file",
                f"{file} is not a file of labels",
                found=", ".join(reader.fieldnames or ())[:80],
                expected=",".join(COLUMNS),
            )
        for fields in reader:
            row = _parse_row(fields)
            rows[row.label.mac] = row
    except (csv.Error, UsageError) as error:
        raise InputError("label_file", f"{file}, line {reader.line_num}: {error}") from None
    return rows


def _parse_row(fields: dict[str, str | None]) -> BoardRow:
    label = labels.make_label(fields.get("mac") or "", (fields.get("pin") or "").strip())
    given = {name: (fields.get(name) or "").strip() for name in COLUMNS}
    found = Label(label.mac, label.address, label.name, label.pin, given["pop"] or label.pop)
    return BoardRow(found, given["result"] or BEGUN, given["version"], given["at"], given["detail"])


def _lock(descriptor: int, file: Path) -> None:
    """Lock an open file for this process (UsageError ``labels_in_use``)."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing is held
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError("labels_in_use", f"another batch writes {file}", found=str(file)) from None
    except OSError:
        pass  # a file system without locks
