"""Virtual beacons with releases of the real app, and an orchestrator to talk to."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from beacon_ota import paths
from beacon_ota.images import (
    app_folder,
    app_layout,
    appfs,
    boards,
    flash,
    release,
    synthetic,
)
from beacon_ota.images.appfs import AppInfo
from beacon_ota.virtual.beacon import VirtualBeacon
from beacon_ota.virtual.flash.nor import Flash
from beacon_ota.virtual.net.network import Network
from tests.firmware.server import BEACON, KEY, Server

WAIT = 150  # seconds: for machines that do other things as well
SCALE = 10  # beacons' time runs this much faster than ours
POLICY = {
    "poll_s": 5,
    "stall_s": 3,
    "give_up_s": 60,
    "backoff_ms": 200,
    "retry_s": 1,
    "trial_s": 20,
    "join_s": 5,
    "healthy_s": 5,
}
# On top of that where time runs faster still: a busy machine's hundred milliseconds are no stall.
PATIENT = {"stall_s": 120, "give_up_s": 1200}
SSID, PASSWORD = "site", "correct horse"


@functools.cache
def _compiled() -> dict[str, bytes]:
    return appfs.compile_sources(app_folder.read_sources(paths.data_path("firmware", "app")))


def make(
    core: bytes,
    version: str,
    changes: Mapping[str, str] | None = None,
    *,
    keys: bytes | None = None,
    insecure: bool = True,
    device_type: str = "esp32c3",
    filler: int = 0,
    extra: Mapping[str, bytes] | None = None,
    like: bytes | None = None,
) -> bytes:
    """Build a release of the app in the tree.

    Args:
        changes: sources that are put in the place of the app's own.
        filler: bytes of a file that only takes room, different in every version.
        extra: further files.
        like: an earlier release, whose layout is kept.
    """
    texts = {name: text.encode() for name, text in (changes or {}).items()}
    files = _compiled() | appfs.compile_sources(texts)
    sha = hashlib.sha256(core).hexdigest()
    info = AppInfo(version, device_type, sha, insecure=insecure)
    files[appfs.INFO] = info.pack()
    if keys is not None:
        files[appfs.KEYS] = keys
    files |= extra or {}
    if filler:
        block = hashlib.sha256(version.encode()).digest()
        files["filler"] = (block * (filler // 32 + 1))[:filler]
    earlier = None
    if like is not None and (offset := release.parse_release(like).app_offset) is not None:
        earlier = app_layout.read_earlier(like, offset)
    return release.join_core_and_app(core, appfs.pack_app(files, earlier))


def image(built: bytes, settings: Mapping[str, int | bytes], board: str = "esp32c3") -> bytes:
    """Return a flash image of a provisioned beacon with this release."""
    return flash.build_flash(
        boards.load_board(board), synthetic.bootloader_image(), built, settings
    )


@dataclass
class Bench:
    """One beacon, its network and its orchestrator."""

    server: Server
    network: Network
    flash: Flash
    beacon: VirtualBeacon

    def wait(self, condition: Callable[[], object], timeout: float = WAIT, what: str = "") -> None:
        """Wait for the beacon or the orchestrator; a failure tells both stories."""
        try:
            self.beacon.wait_for(condition, timeout, what)
        except Exception as error:
            raise AssertionError(f"{error}\n" + "\n".join(self.server.story())) from None

    def reported(self, status: str, timeout: float = WAIT) -> dict:
        """Wait for a report with this word; return it."""
        self.wait(lambda: self.server.last(status), timeout, f"report {status}")
        found = self.server.last(status)
        assert found is not None
        return found

    def running(self) -> str | None:
        """The slot that booted last."""
        return self.beacon.boot.slot if self.beacon.boot else None

    def causes(self) -> list[tuple[str | None, str | None]]:
        """All boots as (slot, how it ended)."""
        return [(boot.slot, boot.ended) for boot in self.beacon.boots]

    def polled(self, version: str, state: str = "valid") -> bool:
        """Has a release said in a poll that it runs?"""
        return any(
            r.path.startswith("/firmwares/latest")
            and r.query["version"] == version
            and r.query["state"] == state
            for r in self.server.requests
        )


@contextlib.contextmanager
def bench(
    built: bytes,
    *,
    board: str = "esp32c3",
    policy: Mapping[str, int] | None = None,
    settings: Mapping[str, int | bytes | None] | None = None,
    scale: float = SCALE,
    power: bool = True,
    server: Server | None = None,
    **options,
) -> Iterator[Bench]:
    """A provisioned beacon on a running orchestrator, powered on."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context((server or Server()).run())
        server.scale = scale
        network = Network(join_time=0.5)
        network.add_access_point(SSID, PASSWORD)
        network.set_host("orchestrator.local", "127.0.0.1", server.port)
        rules = POLICY | (PATIENT if scale > SCALE else {}) | dict(policy or {})
        values: dict[str, int | bytes | None] = {
            "beacon_id": BEACON.encode(),
            "beacon_key": KEY,
            "orch_url": b"http://orchestrator.local:8080",
            "wifi_ssid": SSID.encode(),
            "wifi_pass": PASSWORD.encode(),
            "ibeacon": bytes(range(20)),
            "policy": json.dumps(rules).encode(),
        }
        values |= settings or {}
        kept = {key: value for key, value in values.items() if value is not None}
        memory = Flash(image(built, kept, board))
        stack.callback(memory.close)
        beacon = stack.enter_context(VirtualBeacon(memory, network=network, scale=scale, **options))
        if power:
            beacon.power_on()
        yield Bench(server, network, memory, beacon)
