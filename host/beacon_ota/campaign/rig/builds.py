"""Builds the releases and flash images of campaigns from the app in the tree.

The main process of a campaign builds them once, into a folder that the workers read.
"""

import functools
import hashlib
import json
import random
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from beacon_ota import paths
from beacon_ota.images import (
    app_folder,
    appfs,
    boards,
    flash,
    release,
    synthetic,
)
from beacon_ota.images.appfs import AppInfo
from beacon_ota.trust import dsse, releases

DEVICE = "esp32c3"
BEACON = "campaign-1"
KEY = bytes(range(32))
SSID, PASSWORD = "site", "correct horse"
URL = "http://orchestrator.local:8080"
CORE_SIZE = 16 * 1024  # bytes of the synthetic core
SECTOR = 4096
# Waits that a case has to sit out are short; timeouts that a busy machine could reach are long.
POLICY = {
    "poll_s": 5,
    "stall_s": 60,
    "give_up_s": 600,
    "backoff_ms": 200,
    "retry_s": 1,
    "trial_s": 180,
    "join_s": 30,
    "healthy_s": 5,
}
MADE_FROM = "made-from"
IBEACON_FRAME = bytes(range(20))  # UUID, major, minor of the iBeacon frame


def _random_bytes(name: str, size: int) -> bytes:
    return random.Random(name).randbytes(size)


# The settings of a provisioned beacon; no fault may lose one of them.
PROVISIONED: dict[str, int | bytes] = {
    "beacon_id": BEACON.encode(),
    "beacon_key": KEY,
    "fleet_key": _random_bytes("fleet", 16),
    "orch_url": URL.encode(),
    "wifi_ssid": SSID.encode(),
    "wifi_pass": PASSWORD.encode(),
    "wifi2_ssid": b"elsewhere",
    "wifi2_pass": b"another secret",
    "site": b"campus/building-a/1",
    "utc_off": 60,
    "channel": b"stable",
    "ibeacon": IBEACON_FRAME,
    "pin_w": _random_bytes("pin", 160),
    "creds": _random_bytes("credentials", 5 * 20),
}


@functools.cache
def compile_app() -> Mapping[str, bytes]:
    """Return the app in the tree, compiled."""
    return appfs.compile_sources(app_folder.read_sources(paths.data_path("firmware", "app")))


@functools.cache
def synthetic_core() -> bytes:
    """Return a small core without an interpreter; the app behind it runs."""
    return synthetic.app_image(CORE_SIZE)


@functools.cache
def other_core() -> bytes:
    """Return another small core, longer than :func:`synthetic_core`."""
    return synthetic.app_image(CORE_SIZE + 2 * SECTOR, seed="another build")


def build_release(
    version: str,
    changes: Mapping[str, str] | None = None,
    *,
    with_core: bytes | None = None,
    extra: Mapping[str, bytes] | None = None,
) -> bytes:
    """Return a release of the app.

    Args:
        changes: sources by path that stand in for the app's own, or are added to them.
        with_core: the core; a small synthetic one by default.
        extra: further files, as they are.
    """
    texts = {name: text.encode() for name, text in (changes or {}).items()}
    files = {**compile_app(), **appfs.compile_sources(texts), **(extra or {})}
    base = synthetic_core() if with_core is None else with_core
    info = AppInfo(version, DEVICE, hashlib.sha256(base).hexdigest(), insecure=True)
    files[appfs.INFO] = info.pack()
    return release.join_core_and_app(base, appfs.pack_app(files))


def describe_unsigned(release_image: bytes) -> str:
    """Return the manifest of a release with a signature that nobody can judge.

    Insecure beacons and orchestrators without keys take it. It tells the beacon which core the
    release has.
    """
    now = int(time.time())
    manifest, _ = releases.describe_release(release_image, releases.Terms(now - 86400, now + 86400))
    return dsse.pack_envelope(manifest.payload(), [("00" * 8, bytes(384))])


def build_flash(
    first: bytes,
    *,
    board: str = DEVICE,
    stage0: Mapping[str, bytes] | None = None,
    policy: Mapping[str, int] | None = None,
    given: Mapping[str, int | bytes] | None = None,
) -> bytes:
    """Return the flash of a provisioned beacon that runs the release ``first``.

    Args:
        stage0: files that stand in for stage 0's own.
        policy: what differs from :data:`POLICY`.
        given: what differs from :data:`PROVISIONED`.
    """
    values = {
        **PROVISIONED,
        **(given or {}),
        "policy": json.dumps({**POLICY, **(policy or {})}).encode(),
    }
    files = {**flash.stage0_files(), **(stage0 or {})}
    found = boards.load_board(board)
    return flash.build_flash(found, synthetic.bootloader_image(), first, values, files)


def build_fingerprint() -> str:
    """Return a digest of firmware and settings: builds with another digest are outdated."""
    digest = hashlib.sha256(repr((sorted(PROVISIONED.items()), POLICY, CORE_SIZE)).encode())
    for files in (compile_app(), flash.stage0_files()):
        for name, content in sorted(files.items()):
            digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return digest.hexdigest()


def read_source(*parts: str) -> str:
    """Return the text of a source file of the firmware."""
    return paths.data_path("firmware", *parts).read_text()


class ReleaseStore:
    """A folder of releases and flash images by name."""

    def __init__(self, folder: Path):
        self.folder = folder

    def is_current(self, more: str = "") -> bool:
        """Return whether all builds are there, from the present firmware and ``more``."""
        mark = self.folder / MADE_FROM
        return mark.exists() and mark.read_text() == build_fingerprint() + more

    def mark_current(self, more: str = "") -> None:
        """Note that all builds are there."""
        (self.folder / MADE_FROM).write_text(build_fingerprint() + more)

    def clear(self) -> None:
        """Remove all builds."""
        (self.folder / MADE_FROM).unlink(missing_ok=True)
        for path in (*self.folder.glob("*.bin"), *self.folder.glob("*.rec")):
            path.unlink()

    def put(self, name: str, data: bytes) -> bytes:
        """Keep a release."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.bin").write_bytes(data)
        return data

    def copy_blobs(self, names: Iterable[str], folder: Path) -> None:
        """Copy releases into the image folder of an orchestrator's data folder."""
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        for name in names:
            data = self.get(name)
            (folder / "blobs" / hashlib.sha256(data).hexdigest()).write_bytes(data)

    def get(self, name: str) -> bytes:
        """Return a build (FileNotFoundError for an unknown name)."""
        return (self.folder / f"{name}.bin").read_bytes()
