"""Makes the fixtures of the demonstration: a signing key, five releases, a flash image."""

import time
from dataclasses import dataclass
from pathlib import Path

from beacon_ota import paths
from beacon_ota.errors import UsageError
from beacon_ota.images import app_folder, boards, combined, core, flash, release, synthetic
from beacon_ota.trust import dsse, releases
from beacon_ota.trust.keyring import Keyring

BOARD = "esp32c3"
YEAR_S = 365 * 86400
SYNTHETIC_SIZE = 1 << 20

# The defect of release 1.2.0: it boots, and its health check raises an error.
_HEALTHY = b"    def is_healthy(self):\n"
_BROKEN = _HEALTHY + b'        raise RuntimeError("positioning table lost")\n'

# The hotfixes of releases 1.1.1 and 1.1.2: a line more in one module.
_FIXED_MODULE, _FIXES = "services/positioning.py", (b"\n\nFIXED = 1\n", b"FIXED_AGAIN = 2\n")


@dataclass(frozen=True)
class SignedRelease:
    """A release with its signed manifest."""

    version: str
    image: Path
    manifest: str
    size: int
    app_size: int
    """Bytes of compiled code and data."""


@dataclass(frozen=True)
class DemoCore:
    """The core of the releases, and its origin."""

    data: bytes
    bootloader: bytes
    name: str


def find_core() -> DemoCore:
    """Return the real core if one is found, else a synthetic one."""
    try:
        file, origin = core.locate_core()
    except UsageError:
        stand_in = synthetic.app_image(size=SYNTHETIC_SIZE)
        return DemoCore(stand_in, synthetic.bootloader_image(), "a stand-in (no real core found)")
    found: combined.Core = core.read_core(file)
    return DemoCore(
        found.data,
        found.bootloader or synthetic.bootloader_image(),
        f"the real one: {file.name}, named by the {origin}",
    )


class ReleaseFixtures:
    """Makes releases of the app in the tree, signed with a new key.

    Args:
        folder: where the files go.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.interpreter = find_core()
        ring = Keyring(folder / "keyring")
        password = "only for the demonstration"
        ring.new("demo", password)
        self._signer = ring.signer("demo", password)
        self.keys = ring.trusted().to_json()
        self.keys_file = folder / "keys.json"
        self.keys_file.write_bytes(self.keys)
        self._sources = app_folder.read_sources(paths.data_path("firmware", "app"))

    def build_release(
        self,
        version: str,
        *,
        like: SignedRelease | None = None,
        fixes: int = 0,
        broken: bool = False,
        older_core: bool = False,
    ) -> SignedRelease:
        """Build and sign a release.

        Args:
            like: the release before it, whose layout is kept.
            fixes: lines more in one module.
            broken: its health check raises an error.
            older_core: with a stand-in for another core, so that an update from it moves all.
        """
        texts = dict(self._sources)
        texts[_FIXED_MODULE] += b"".join(_FIXES[:fixes])
        if broken:
            texts["main.py"] = texts["main.py"].replace(_HEALTHY, _BROKEN)
            assert texts["main.py"] != self._sources["main.py"], "nothing to break"
        core = self.interpreter.data
        if older_core:
            # A sector longer: the app behind it moves, too.
            core = synthetic.app_image(len(core) + release.SECTOR, seed="older")
        before = None if like is None else like.image.read_bytes()
        data = release.build_release(core, texts, version, BOARD, keys=self.keys, like=before)
        now = int(time.time())
        terms = releases.Terms(issued_at=now - 60, expires_at=now + YEAR_S)
        manifest, _ = releases.describe_release(data, terms)
        envelope = dsse.sign_payload(manifest.payload(), [self._signer])
        image = self.folder / f"beacon-{version}.bin"
        image.write_bytes(data)
        return SignedRelease(
            version, image, envelope, len(data), release.parse_release(data).payload
        )

    def build_flash(self, made: SignedRelease) -> Path:
        """Build the flash image of the new beacons."""
        file = self.folder / f"flash-{made.version}.bin"
        data = made.image.read_bytes()
        file.write_bytes(
            flash.build_flash(boards.load_board(BOARD), self.interpreter.bootloader, data)
        )
        return file
