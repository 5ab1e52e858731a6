"""Releases for the swarm: valid in every check of an upload, and made of nothing."""

import hashlib

from beacon_ota.images import appfs, littlefs, release, synthetic

_MAIN = b"M\x06\x00\x1f"  # the header of a compiled module, and no module
_BLOCK = 512


def build_image(version: str, device_type: str, size: int) -> bytes:
    """Return a release image of about ``size`` bytes; the same for the same arguments."""
    core = synthetic.app_image(size - 4096, seed=f"swarm {version}")
    info = appfs.AppInfo(version, device_type, hashlib.sha256(core).hexdigest())
    files = {"app.json": info.pack(), "main.mpy": _MAIN}
    return release.join_core_and_app(core, littlefs.build_filesystem(files, _BLOCK))


def initial_checksum(version: str) -> str:
    """Return the checksum that a beacon gives for the release it came with."""
    return hashlib.sha256(f"swarm {version}".encode()).hexdigest()
