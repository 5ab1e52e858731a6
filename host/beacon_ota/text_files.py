"""Reads text files of editors and spreadsheets: UTF-8, with a byte order mark or without.

Every text file that a person hands over (options' files, CSV, TOML, passwords, PINs, sources,
manifests) is read by this module. Notepad and spreadsheets put a byte order mark in front of
UTF-8, and "Unicode text" is UTF-16 to them: the mark is dropped, and an encoding that is not UTF-8
is refused by its name.
"""

import codecs
import sys
from pathlib import Path

from beacon_ota.errors import BeaconOtaError, InputError, UsageError

LIMIT = 1 << 20  # bytes of a text file, unless its reader says otherwise
_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)  # before UTF-16: it begins alike
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode_text(
    data: bytes,
    name: object,
    *,
    code: str = "file_encoding",
    error: type[BeaconOtaError] = InputError,
) -> str:
    """Return the text of a file without its byte order mark.

    Args:
        data: its bytes.
        name: what the error calls it.
        code, error: of the refusal.

    Raises:
        InputError: ``file_encoding`` unless said otherwise: UTF-16, UTF-32, not UTF-8, or NUL.
    """
    found = ""
    if data.startswith(_UTF32):
        found = "UTF-32"
    elif data.startswith(_UTF16) or (data[:256:2].count(0) or data[1:256:2].count(0)) > 2:
        found = "UTF-16" if data.startswith(_UTF16) or b"\0" in data[:4] else "binary data"
    if not found:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as reason:
            line = data.count(b"\n", 0, reason.start) + 1
            found = f"the byte {data[reason.start]:#04x} in line {line}"
        else:
            if "\0" not in text:
                return text
            found = f"a NUL character in line {text.count(chr(10), 0, text.index(chr(0))) + 1}"
    raise error(code, f"{name} is not UTF-8 text", found=found, expected="a file saved as UTF-8")


def read_text_file(
    file: Path,
    limit: int = LIMIT,
    *,
    code: str = "file_encoding",
    error: type[BeaconOtaError] = InputError,
) -> str:
    """Return the text of a file, of standard input for ``-``.

    Args:
        file: where it is.
        limit: bytes that it may have.
        code, error: of the refusal, see :func:`decode_text`.

    Raises:
        UsageError: ``file_missing``, with the system's reason.
        InputError: ``file_too_large``; ``file_encoding``.
    """
    name: object = file
    if str(file) == "-":
        name = "standard input"
        data = sys.stdin.buffer.read(limit + 1)
    else:
        try:
            with file.open("rb") as stream:
                data = stream.read(limit + 1)
        except (OSError, ValueError) as reason:  # ValueError: a NUL in the name
            why = getattr(reason, "strerror", None) or str(reason)
            raise UsageError("file_missing", f"{name}: {why}.") from None
    if len(data) > limit:
        raise InputError("file_too_large", f"{name} is too large.", expected=f"≤ {limit} bytes")
    return decode_text(data, name, code=code, error=error)


def read_line(file: Path, limit: int = 4096, **refusal) -> str:
    """Return the first line of a file without its end: a password, a PIN, a token."""
    return read_text_file(file, limit, **refusal).partition("\n")[0].removesuffix("\r")
