"""Finds the address of the orchestrator, the token, and the certificate to verify it by.

The server and the token come from the arguments, else from ``BEACON_OTA_URL`` and
``BEACON_OTA_TOKEN``, else from the file ``config.toml`` (``url``, ``token``) in the folder that
``BEACON_OTA_CONFIG`` names, by default ``~/.config/beacon-ota``. ``ca`` beside them, or
``BEACON_OTA_CA``, names a file with the certificate of a private authority.
"""

import os
import tomllib
from pathlib import Path

from beacon_ota import text_files
from beacon_ota.errors import BeaconOtaError, UsageError


def config_path() -> Path:
    """Return where the configuration lies, whether it exists or not."""
    folder = os.environ.get("BEACON_OTA_CONFIG")
    return (Path(folder) if folder else Path.home() / ".config" / "beacon-ota") / "config.toml"


def load_configuration() -> dict[str, str]:
    """Return ``url``, ``token`` and ``ca`` as the environment and the configuration give them.

    Raises:
        UsageError: ``config_file``.
    """
    found: dict[str, str] = {}
    file = config_path()
    if file.is_file():
        try:
            found = {k: str(v) for k, v in tomllib.loads(text_files.read_text_file(file)).items()}
        except (tomllib.TOMLDecodeError, BeaconOtaError) as error:
            raise UsageError("config_file", f"{file} cannot be read: {error}") from None
    for name in ("url", "token", "ca"):
        if value := os.environ.get(f"BEACON_OTA_{name.upper()}"):
            found[name] = value
    return found
