"""Installs a peer from PyPI into an environment of its own, once."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3] / "build" / "peers"
INSTALL_S = 240


class Missing(Exception):
    """A peer that cannot be had here; the message says why."""


def python(name: str, *requirements: str) -> Path:
    """Return the interpreter of an environment that has these requirements.

    Raises:
        Missing: they cannot be installed.
    """
    folder = ROOT / name
    found = folder / "bin" / "python"
    stamp = folder / ".installed"
    wanted = "\n".join(requirements)
    if stamp.is_file() and stamp.read_text() == wanted:
        return found
    try:
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run(
            [str(found), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements]
        )
    except (subprocess.SubprocessError, OSError) as error:
        last = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
        raise Missing(f"{name} cannot be installed: {' '.join(last)}") from None
    stamp.write_text(wanted)
    return found


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_S)
