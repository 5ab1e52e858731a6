"""Cores for the tests: the real one that BEACON_OTA_CORE names, else a synthetic one."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("BEACON_OTA_GUARD", "1")  # before the view is imported; for processes, too

from beacon_ota.images import boards, combined, flash, release, synthetic

SMALL = 16 * 1024  # bytes of the small synthetic core

# How long an example takes says more of the machine than of the code. The ordinary run tries the
# same examples each time; `make campaign` looks for new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("new", deadline=None)
settings.load_profile(os.environ.get("BEACON_OTA_EXAMPLES", "same"))

# Run in the background, we would hand an ignored Ctrl-C on to every process that is started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Under nohup the same holds for a terminal that hangs up.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _given() -> Path | None:
    named = os.environ.get("BEACON_OTA_CORE")
    return Path(named) if named else None


def pytest_report_header(config) -> str:
    given = _given()
    return f"core: real, {given.name}" if given else "core: synthetic"


@pytest.fixture(scope="session")
def small_core() -> bytes:
    """A small app image without an interpreter."""
    return synthetic.app_image(SMALL)


@pytest.fixture(scope="session")
def real_core() -> combined.Core:
    """The core that BEACON_OTA_CORE names, with its bootloader; the test is skipped without."""
    given = _given()
    if given is None:
        pytest.skip("BEACON_OTA_CORE names no core")
    return combined.parse_core(given.read_bytes())


@pytest.fixture(scope="session")
def core(request) -> bytes:
    """The bytes of an app core: real where there is one, else synthetic."""
    if _given():
        return request.getfixturevalue("real_core").data
    return request.getfixturevalue("small_core")


@pytest.fixture(scope="session")
def release_factory(small_core) -> Callable[..., bytes]:
    """Build release images: ``release_factory("1.2.3", sources, core=…, keys=…)``.

    Without sources the app is one ``main.py`` that prints its version.
    """

    def make(
        version: str = "1.0.0",
        sources: Mapping[str, bytes] | None = None,
        *,
        core: bytes | None = None,
        device_type: str = "esp32c3",
        insecure: bool = False,
        built_at: int = 0,
        keys: bytes | None = None,
        extra: Mapping[str, bytes] | None = None,
    ) -> bytes:
        texts = sources or {"main.py": b"def run():\n    print('%s')\n" % version.encode()}
        return release.build_release(
            small_core if core is None else core,
            texts,
            version,
            device_type,
            built_at=built_at,
            keys=keys,
            insecure=insecure,
            extra=extra,
        )

    return make


@pytest.fixture(scope="session")
def flash_factory(release_factory) -> Callable[..., bytes]:
    """Build flash images: ``flash_factory(release, settings, board="esp32c3")``."""

    def make(
        built: bytes | None = None,
        settings: Mapping[str, int | bytes] | None = None,
        *,
        board: str = "esp32c3",
        bootloader: bytes | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> bytes:
        built = release_factory(device_type=board) if built is None else built
        loader = synthetic.bootloader_image() if bootloader is None else bootloader
        return flash.build_flash(boards.load_board(board), loader, built, settings, files)

    return make
