"""A fleet of simulated beacons in threads, and an administrator who publishes releases to it."""

import random
import secrets
import threading
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

from beacon_ota.campaign.kills.consistency import find_incomplete, find_lost_promises
from beacon_ota.campaign.kills.server_process import ServerProcess, wait_until
from beacon_ota.campaign.kills.simulated_beacon import CALL_ERRORS, SimulatedBeacon
from beacon_ota.campaign.rig import builds
from beacon_ota.client import Client
from beacon_ota.errors import BeaconOtaError, ReachError

BEACONS = 12


PATIENCE = 120.0  # real seconds for what has to come by itself


ROLLOUT = {
    "preset": "all-at-once",
    "window": "00:00-24:00",
    "retry": {"limit": 30, "pauses": ["1s"]},
    "gate": {"healthy_share": 0, "failure_share": 1, "in_a_row": 1000},
}


PAUSING_STEPS = ("idle", "broken", "refused", "called off")  # steps that lead no further


class UpdatingFleet:
    """Beacons in threads, and an administrator who publishes one release after the other."""

    def __init__(self, server: ServerProcess, chance: random.Random, *, count: int = BEACONS):
        self.server, self.chance = server, chance
        self.server_up = threading.Event()
        self.stopping = threading.Event()
        self.steps = 0  # that got an answer
        self.releases: dict[str, str] = {}  # firmware id -> checksum, as acknowledged
        self.rollouts: set[str] = set()
        self.target = ""
        self.errors: list[str] = []
        self.beacons = [self._register_beacon(number) for number in range(count)]
        self._admin = threading.Thread(target=self._publish_releases, daemon=True)
        self._threads = [
            *(
                threading.Thread(target=self._run_beacon, args=(b,), daemon=True)
                for b in self.beacons
            ),
            self._admin,
        ]

    def _register_beacon(self, number: int) -> SimulatedBeacon:
        key = secrets.token_bytes(32)
        name = f"b{number:03}"
        self.server.admin_client().create_beacon(name, builds.DEVICE, key=key.hex())
        chance = random.Random(self.chance.random())
        return SimulatedBeacon(name, key, chance, lossy=0.05, failing=0.1)

    def start(self) -> None:
        self.server_up.set()
        for thread in self._threads:
            thread.start()

    def wait_until_done(self) -> None:
        """Wait until all beacons run the newest release and all their reports are acknowledged."""
        self.stopping.set()
        self.server_up.set()
        self._admin.join(PATIENCE)
        wait_until(
            lambda: self.errors or all(self._is_up_to_date(beacon) for beacon in self.beacons),
            PATIENCE,
            f"the fleet on {self.target}",
        )
        for thread in self._threads:
            thread.join(PATIENCE)

    def _is_up_to_date(self, beacon: SimulatedBeacon) -> bool:
        return beacon.version == self.target and not beacon.busy

    def _run_beacon(self, beacon: SimulatedBeacon) -> None:
        while not (
            self.stopping.is_set() and not self._admin.is_alive() and self._is_up_to_date(beacon)
        ):
            self.server_up.wait()
            beacon.url = self.server.url
            try:
                word = beacon.step()
            except CALL_ERRORS:
                word = "broken"
            except Exception as error:
                self.errors.append(f"{beacon.id}: {type(error).__name__}: {error}")
                return
            if word in PAUSING_STEPS:
                time.sleep(0.05)
            else:
                self.steps += 1

    def _publish_releases(self) -> None:
        number = 0
        while not self.stopping.is_set():
            number += 1
            version = f"1.{number}.0"
            image = builds.build_release(version)
            row = self._repeat_until_acknowledged(
                lambda c, v=version, i=image: upload_release(c, i, v)
            )
            if row is None:
                return
            self.releases[row["firmware_id"]] = row["checksum"]
            made = self._repeat_until_acknowledged(
                lambda c, f=row["firmware_id"]: roll_out_once(c, f)
            )
            if made is None:
                return
            self.rollouts.add(made["rollout_id"])
            self.target = version
            while not self.stopping.is_set() and not all(map(self._is_up_to_date, self.beacons)):
                time.sleep(0.02)

    def _repeat_until_acknowledged(self, order: Callable[[Client], Any]) -> Any:
        """Repeat a request until it is acknowledged; return None when it is refused."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.server_up.wait()
            try:
                return order(self.server.admin_client())
            except ReachError:
                time.sleep(0.05)
            except BeaconOtaError as error:
                self.errors.append(f"administrator: {error.code}: {error}")
                return None
        self.errors.append("administrator: no answer")
        return None

    def find_violations(self) -> list[str]:
        """Return the differences between acknowledgements and database."""
        lost = find_lost_promises(self.server, self.beacons, self.rollouts, self.releases)
        return [*self.errors, *lost, *find_incomplete(self.server)]


def upload_release(client: Client, image: bytes, version: str) -> dict[str, Any]:
    fields = {"device_type": builds.DEVICE, "version": version, "channel": "stable"}
    return client.upload_firmware(BytesIO(image), **fields)


def roll_out_once(client: Client, firmware_id: str) -> dict[str, Any]:
    for one in client.list_rollouts():
        if one["firmware_id"] == firmware_id:
            return one  # the answer was lost
    return client.create_rollout(firmware_id, ROLLOUT)
