"""The running system: an orchestrator's process, and virtual beacons with their own code."""

import contextlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beacon_ota.client import Client
from beacon_ota.virtual.beacon import VirtualBeacon
from beacon_ota.virtual.flash.nor import Flash
from beacon_ota.virtual.net.network import Network
from tests.firmware.beacons import PASSWORD, SSID, image
from tests.orchestrator.world import Server, until
from tests.system.middle import Middle

# A stall of some seconds on a busy machine must not become an event of its own.
SCALE = 5
POLICY = {
    "poll_s": 5,
    "stall_s": 300,
    "give_up_s": 6000,
    "backoff_ms": 200,
    "retry_s": 1,
    "trial_s": 720,
    "join_s": 120,
    "healthy_s": 5,
}
DEADLINE_S = 90.0
ANY_TIME = {
    "preset": "all-at-once",
    "window": "00:00-24:00",
    "gate": {"failure_sample": 10_000, "in_a_row": 10_000},
}


@dataclass
class Pair:
    """A virtual beacon, and who sits between it and the orchestrator."""

    name: str
    key: bytes
    beacon: VirtualBeacon
    middle: Middle
    server: Server

    @property
    def shown(self) -> dict[str, Any]:
        """What the orchestrator knows of it."""
        return self.server.admin().get_beacon(self.name)

    @property
    def attempts(self) -> list[dict[str, Any]]:
        return self.shown["attempts"]

    def until(self, condition, what: str) -> Any:
        """Wait; a failure tells what the beacon said."""
        try:
            return until(condition, deadline_s=DEADLINE_S, what=what)
        except AssertionError as error:
            raise AssertionError(f"{self.name}: {error}\n{self.beacon.console[-3000:]}") from None

    def runs(self, version: str) -> None:
        """Wait until the orchestrator heard that it runs a release, confirmed."""
        self.until(
            lambda: (self.shown["version"], self.shown["state"]) == (version, "valid"),
            f"runs {version}",
        )


@contextlib.contextmanager
def pair(
    server: Server,
    name: str,
    built: bytes,
    *,
    port: int | None = None,
    tag: str = "",
    settings: dict[str, int | bytes] | None = None,
    power: bool = True,
    **options: Any,
) -> Iterator[Pair]:
    """Register a beacon that runs this release, and power it on behind somebody in the middle.

    Args:
        tag: of this beacon and others that :func:`roll_out` is for; its name without one.
        port: where ``orchestrator.local`` leads instead.
        settings: NVS, beside what every beacon has.
        options: of the virtual beacon.
    """
    key = secrets.token_bytes(32)
    server.admin().create_beacon(name, "esp32c3", key=key.hex(), tags=[tag or name])
    with contextlib.ExitStack() as stack:
        middle = stack.enter_context(Middle(server.url))
        network = Network(join_time=0.5)
        network.add_access_point(SSID, PASSWORD)
        network.set_host("orchestrator.local", "127.0.0.1", port or middle.port)
        values: dict[str, int | bytes] = {
            "beacon_id": name.encode(),
            "beacon_key": key,
            "orch_url": b"http://orchestrator.local:8080",
            "wifi_ssid": SSID.encode(),
            "wifi_pass": PASSWORD.encode(),
            "policy": json.dumps(POLICY).encode(),
            **(settings or {}),
        }
        flash = Flash(image(built, values))
        stack.callback(flash.close)
        beacon = stack.enter_context(
            VirtualBeacon(flash, network=network, scale=SCALE, name=name, **options)
        )
        if power:
            beacon.power_on()
        yield Pair(name, key, beacon, middle, server)


def roll_out(server: Server, firmware_id: str, tag: str) -> str:
    """Roll a release out to the beacons of a tag alone; return the rollout's id."""
    plan = {**ANY_TIME, "waves": [{"name": "these", "tags": [tag]}]}
    return server.admin().create_rollout(firmware_id, plan)["rollout_id"]


def problems(admin: Client) -> dict[str, float]:
    """Return how often which refusal was given, from the metrics."""
    found = {}
    for line in admin.request("GET", "/metrics").text.splitlines():
        if line.startswith("beacon_ota_problems_total{"):
            label, _, value = line.rpartition(" ")
            found[label.partition('"')[2].partition('"')[0]] = float(value)
    return found


def metric(admin: Client, line: str) -> float:
    """Return a metric by its name and labels, 0 when there is none."""
    for found in admin.request("GET", "/metrics").text.splitlines():
        label, _, value = found.rpartition(" ")
        if label == line:
            return float(value)
    return 0.0


def everything(server: Server) -> dict[str, Any]:
    """Return what an attack must leave as it is.

    That is all but when a beacon was last heard from, and what is counted of its own requests that
    were refused.
    """
    admin = server.admin()
    passing = ("last_seen", "address", "poll", "progress")
    passing += ("standing", "refused_code", "refused_at", "refusals")
    return {
        "firmwares": admin.list_firmwares(),
        "beacons": [
            {k: v for k, v in one.items() if k not in passing} for one in admin.list_beacons()
        ],
        "rollouts": [
            (one["rollout_id"], one["status"], one["results"]) for one in admin.list_rollouts()
        ],
        "audit": admin.verify_audit(),
        "blobs": sorted(file.name for file in (server.data / "blobs").iterdir()),
        "incoming": sorted(file.name for file in (server.data / "incoming").iterdir()),
    }


def serve(folder: Path, keys: bytes, *options: str) -> Server:
    """Start an orchestrator that takes only what these keys have signed."""
    file = folder / "keys.json"
    file.write_bytes(keys)
    return Server(folder / "data", f"--keys={file}", "--poll=5", *options, insecure=False)
