"""Reads the files and values that the options of ``beacon-ota image`` name."""

from pathlib import Path

from beacon_ota import text_files
from beacon_ota.errors import UsageError

MAX_FILE = 32 << 20  # bytes of any file that is read


def read_image(file: Path) -> bytes:
    """Return the bytes of a file (UsageError ``file_missing``, InputError ``file_too_large``)."""
    from beacon_ota.trust import files

    return files.read_file(file, MAX_FILE)


def parse_pair(text: str, option: str) -> tuple[str, str]:
    """Split ``NAME=VALUE`` (UsageError ``options``, with the option's name)."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise UsageError("options", f"{option} takes NAME=VALUE", found=name)
    return name, value


def read_hex(value: str | None, digits: int) -> str | None:
    """Return hex of so many digits as given, or from the file that is named instead."""
    if value is None or len(value) == digits:
        return value
    return text_files.read_line(Path(value)).strip()
