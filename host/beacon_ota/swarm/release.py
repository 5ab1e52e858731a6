"""Releases for the swarm: valid in every check of an upload, but without working code."""

import hashlib
import random

from beacon_ota.images import appfs, release, synthetic

_MAIN = b"M\x06\x00\x1f"  # the header of a compiled module, and no module
_MODULE = 3900  # bytes of each further file: one to a sector, nearly


def build_image(
    version: str,
    device_type: str,
    size: int,
    *,
    modules: int = 0,
    base: str = "",
    changed: int = 0,
) -> bytes:
    """Return a release image of about ``size`` bytes; the same for the same arguments.

    Args:
        modules: files of the app beside its main.
        base: names what the core and the modules consist of; releases of one base have them in
            common. By default the version.
        changed: of the modules, those that this version alone has.
    """
    base = base or version
    core = synthetic.app_image(size - 4096 * (1 + modules), seed=f"swarm {base}")
    info = appfs.AppInfo(version, device_type, hashlib.sha256(core).hexdigest())
    files = {"app.json": info.pack(), "main.mpy": _MAIN}
    for number in range(modules):
        seed = f"{version if number < changed else base} {number}"
        files[f"m{number:02}.bin"] = random.Random(seed).randbytes(_MODULE)
    return release.join_core_and_app(core, appfs.pack_app(files))


def initial_checksum(version: str) -> str:
    """Return the checksum that a beacon reports for its initial release."""
    return hashlib.sha256(f"swarm {version}".encode()).hexdigest()
