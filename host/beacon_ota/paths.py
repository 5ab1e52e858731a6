"""Paths of the project's own data (firmware, boards), in a checkout or an installed wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_path(*parts: str) -> Path:
    """Return the path of a data file such as ``data_path("firmware", "app")``."""
    checkout = _PACKAGE.parent.parent
    root = checkout if (checkout / "firmware").is_dir() else _PACKAGE / "_data"
    return root.joinpath(*parts)
