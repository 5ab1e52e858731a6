"""What the tests of this room play with: releases, beacons on chips, and the orchestrator."""

import contextlib
import json
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beacon_ota.images import boards, flash
from beacon_ota.images.combined import Core
from beacon_ota.trust import KeySet, dsse, releases
from beacon_ota.trust.releases import Terms
from tests.chip.chip import DEADLINE_S, HOST, SSID, Chip
from tests.firmware.beacons import make
from tests.orchestrator.world import Server
from tests.system.conftest import Release, put, signed
from tests.system.middle import Middle
from tests.system.scene import ANY_TIME
from tests.trust.lab import Key

BOARD = "esp32c3"
OLD = "1.0.0"
# What ends a wait is short; what must not strike while the machine is busy is long.
POLICY = {
    "poll_s": 5,
    "stall_s": 60,
    "give_up_s": 900,
    "backoff_ms": 200,
    "retry_s": 1,
    "trial_s": 120,
    "join_s": 15,
    "healthy_s": 5,
    "bluetooth": 0,
    "blufi": 0,
}
PLAN = {**ANY_TIME, "retry": {"limit": 100, "pauses": ["1s"]}}


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Shelf:
    """Releases of the app in the tree with the real core, each made once."""

    def __init__(self, core: Core, key: Key):
        self.core, self.key = core, key
        self.keys = KeySet.of([key.public]).to_json()
        self._made: dict[tuple[str, str, bool], Release] = {}

    def release(
        self,
        version: str = OLD,
        changes: Mapping[str, str] | None = None,
        like: Release | None = None,
    ) -> Release:
        """Return a signed release.

        Args:
            changes: sources that stand in for the app's own.
            like: the release whose layout is kept.
        """
        label = version, json.dumps(dict(changes or {})), like is not None
        if label not in self._made:
            before = None if like is None else like.image
            data = make(
                self.core.data, version, changes, keys=self.keys, insecure=False, like=before
            )
            self._made[label] = signed(data, self.key)
        return self._made[label]

    def sealed(self, version: str, fleet_key: bytes) -> Release:
        """Return a signed release whose image is encrypted."""
        plain = self.release(version)
        now = int(time.time())
        terms = Terms(now - 3600, now + 86_400)
        manifest, data = releases.describe_release(plain.image, terms, fleet_key=fleet_key)
        assert data is not None
        return Release(version, data, manifest, dsse.sign_payload(manifest.payload(), [self.key]))

    def flash(
        self, release: Release, values: Mapping[str, int | bytes], stage0: Mapping[str, bytes]
    ) -> bytes:
        """Return the flash of a chip that runs a release; ``stage0`` are files that are changed."""
        loader = self.core.bootloader
        assert loader is not None
        files = {**flash.stage0_files(), **stage0}
        return flash.build_flash(boards.load_board(BOARD), loader, release.image, values, files)


@dataclass
class Beacon:
    """A beacon on a chip, and what the orchestrator knows of it."""

    name: str
    key: bytes
    chip: Chip
    server: Server

    @property
    def shown(self) -> dict[str, Any]:
        """The orchestrator's page of it."""
        return self.server.admin().get_beacon(self.name)

    def attempts(self, firmware_id: str = "") -> list[dict[str, Any]]:
        """Return its attempts, the newest first: all, or those at one release."""
        found = self.shown["attempts"]
        return [a for a in found if not firmware_id or a["firmware_id"] == firmware_id]

    def runs(self, version: str, deadline_s: float = DEADLINE_S) -> None:
        """Wait until the orchestrator heard that it runs a release, confirmed."""
        self.chip.until(
            lambda: (self.shown["version"], self.shown["state"]) == (version, "valid"),
            f"runs {version}",
            deadline_s,
        )

    def ended(self, firmware_id: str, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
        """Wait for the first attempt at a release that has a result; return it."""
        return self.chip.until(
            lambda: next((a for a in self.attempts(firmware_id)[::-1] if a["result"]), None),
            "a result",
            deadline_s,
        )

    def settled(self) -> None:
        """Wait until it has nothing more to say of any attempt."""
        self.chip.until(lambda: "attempt" not in self.chip.settings, "nothing left to report")


class Scene(contextlib.ExitStack):
    """Chips of one test; they lose their power at its end."""

    def __init__(self, qemu: str, shelf: Shelf, server: Server, folder: Path):
        super().__init__()
        self.qemu, self.shelf, self.server, self.folder = qemu, shelf, server, folder

    @property
    def port(self) -> int:
        """Where the orchestrator listens."""
        return int(self.server.url.rpartition(":")[2])

    def beacon(
        self,
        *,
        first: Release | None = None,
        settings: Mapping[str, int | bytes] | None = None,
        policy: Mapping[str, int] | None = None,
        stage0: Mapping[str, bytes] | None = None,
        port: int = 0,
        power: bool = True,
        **options: Any,
    ) -> Beacon:
        """Register a beacon, flash it with a release, and power it on.

        Args:
            first: what it runs, the app as it is by default.
            settings: NVS, beside what every beacon has.
            policy: what differs from :data:`POLICY`.
            stage0: files of stage 0 that are changed.
            port: of this machine, that it is told the orchestrator was at.
            options: of the chip.
        """
        name, key = "chip-" + secrets.token_hex(4), secrets.token_bytes(32)
        self.server.admin().create_beacon(name, BOARD, key=key.hex(), tags=[name])
        values: dict[str, int | bytes] = {
            "beacon_id": name.encode(),
            "beacon_key": key,
            "orch_url": f"http://{HOST}:{port or self.port}".encode(),
            "wifi_ssid": SSID,
            "policy": json.dumps({**POLICY, **(policy or {})}).encode(),
            **(settings or {}),
        }
        content = self.shelf.flash(first or self.shelf.release(), values, stage0 or {})
        chip = self.enter_context(Chip(self.qemu, self.folder / name, content, **options))
        if power:
            chip.power_on()
        return Beacon(name, key, chip, self.server)

    def between(self) -> Middle:
        """Put somebody between beacons and the orchestrator."""
        return self.enter_context(Middle(self.server.url))

    def publish(self, release: Release, *beacons: Beacon) -> str:
        """Upload a release, and roll it out to these beacons; return its id."""
        firmware = put(self.server, release, self.folder)["firmware_id"]
        wave = {"name": "these", "tags": [beacon.name for beacon in beacons]}
        self.server.admin().create_rollout(firmware, {**PLAN, "waves": [wave]})
        return firmware
