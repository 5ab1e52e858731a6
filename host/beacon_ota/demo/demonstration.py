"""Runs the demonstration: provisioning, a good release, hotfixes of it, a bad one that halts."""

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from beacon_ota.client import Client
from beacon_ota.demo.display import Display
from beacon_ota.demo.fixtures import BOARD, ReleaseFixtures, SignedRelease
from beacon_ota.demo.listener import BeaconListener
from beacon_ota.demo.provisioning import JOBS, PATIENCE_S, provision_all
from beacon_ota.demo.result import DemoResult, describe_failures, measure_attempt
from beacon_ota.errors import ReachError
from beacon_ota.fleet.fleet import FleetMember, VirtualFleet
from beacon_ota.orchestrator.server.subprocess import OrchestratorProcess
from beacon_ota.provision import batch
from beacon_ota.provision.desired_config import DesiredConfig, Secret
from beacon_ota.provision.desired_config import Network as Wifi
from beacon_ota.virtual.beacon import VirtualBeacon
from beacon_ota.virtual.net.network import Network
from beacon_ota.virtual.radio.selection import select_radio
from beacon_ota.virtual.radio.space import RadioSpace

CAMPUS = "campus"


BUILDINGS = ("north", "south", "west")


OLD, GOOD, HOTFIX, SECOND, BAD = "1.0.0", "1.1.0", "1.1.1", "1.1.2", "1.2.0"


SSID, PASSWORD = "campus", "on the label of no beacon"


POLL_S = 20.0  # in the time of the beacons, as all following values


POLICY = {"poll_s": int(POLL_S), "retry_s": 5}


LADDER = [{"share": 0.1, "soak": "1m"}, {"of_remaining": 0.5, "soak": "30s"}, {"share": 1}]


GATE: dict[str, object] = {"silence": "6m", "presence": "15m"}


_TRANSITION_TEXTS = {
    "stage_opened": "opened",
    "sampled": "tried, now watched",
    "wave_completed": "served",
}


HEAP_POLLS = 3


AT_ONCE = 3  # hotfixes in a building; more would time the machine


_ENDS = ("completed", "halted", "aborted")


class Demonstration:
    """One demonstration in a folder.

    Args:
        folder: for keys, images and the orchestrator's data.
        count: beacons.
        scale: speed of all clocks.
        plain: print lines instead of a live display.
        port: of the orchestrator; 0 for a free one.
        say_url: called with the dashboard's address and an administrator's token.
    """

    def __init__(
        self,
        folder: Path,
        *,
        count: int,
        scale: float,
        plain: bool,
        port: int,
        say_url: Callable[[str, str], None],
    ):
        self.result = DemoResult(count=count)
        self._folder, self._count, self._scale = folder, count, scale
        self._plain, self._port, self._show_url = plain, port, say_url
        self._stack = ExitStack()
        self._begun = time.monotonic()

    def __enter__(self) -> "Demonstration":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, *, keep: bool = False) -> DemoResult:
        """Run the demonstration; with ``keep``, leave everything running until Ctrl-C."""
        made = self._start_parts()
        with self._display:
            self._provision_beacons()
            self._roll_out_good(made[GOOD])
            for version in (HOTFIX, SECOND):
                self._roll_out_hotfix(made[version])
            self._roll_out_bad(made[BAD])
            self._count_versions()
            self.result.seconds = time.monotonic() - self._begun
            if keep:
                self._wait_for_interrupt()
        return self.result

    # ---- preparation ----

    def _start_parts(self) -> dict[str, SignedRelease]:
        from beacon_ota.console import output

        with output.console.status("building and signing releases …"):
            shop = ReleaseFixtures(self._folder)
            made = {OLD: shop.build_release(OLD, older_core=True), GOOD: shop.build_release(GOOD)}
            made[HOTFIX] = shop.build_release(HOTFIX, like=made[GOOD], fixes=1)
            made[SECOND] = shop.build_release(SECOND, like=made[HOTFIX], fixes=2)
            made[BAD] = shop.build_release(BAD, like=made[SECOND], fixes=2, broken=True)
            image = shop.build_flash(made[OLD])
        self.result.core = shop.interpreter.name
        self.result.release_bytes, self.result.app_bytes = made[GOOD].size, made[GOOD].app_size
        enter = self._stack.enter_context
        self._server = enter(
            OrchestratorProcess(
                self._folder,
                f"--keys={shop.keys_file}",
                f"--port={self._port}",
                f"--time-scale={self._scale}",
                f"--poll={POLL_S}",
                "--window=00:00-24:00",
            )
        )
        self._client = Client(self._server.url, self._server.token)
        for path in (CAMPUS, *(f"{CAMPUS}/{name}" for name in BUILDINGS)):
            self._client.create_site(path)
        space = enter(RadioSpace(seed=1))
        network = Network(join_time=0.3, scan_time=0.3)
        network.add_access_point(SSID, PASSWORD)
        port = int(self._server.url.rsplit(":", 1)[1])
        network.set_host("orchestrator.local", "127.0.0.1", port)
        self._fleet = enter(
            VirtualFleet(
                [image],
                self._count,
                prefix="beacon-",
                network=network,
                space=space,
                boxed=True,
                settings={"policy": json.dumps(POLICY)},
                scale=self._scale,
            )
        )
        self._radio = select_radio(space.spec)
        listener = enter(BeaconListener(self._radio))
        addresses: dict[str, list[str]] = {name: [] for name in BUILDINGS}
        for index, member in enumerate(self._fleet.members):
            addresses[self._building_of(index)].append(member.label.address)
        self._display = Display(
            addresses,
            (OLD, GOOD, HOTFIX, SECOND, BAD),
            listener.newest_sightings,
            plain=self._plain,
        )
        self._show_url(self._server.url, self._server.token)
        return made

    def _building_of(self, index: int) -> str:
        return BUILDINGS[index * len(BUILDINGS) // self._count]

    # ---- first scene: provisioning ----

    def _provision_beacons(self) -> None:
        display = self._display
        display.title = f"{self._count} beacons come out of their boxes"
        self._probe.heap_watch = True
        self._fleet.power_on()
        display.add_line(f"{self._count} virtual beacons powered on; nobody has told them any WiFi")
        rows = [
            self._provisioning_row(index, member)
            for index, member in enumerate(self._fleet.members)
        ]
        seconds = provision_all(rows, self._radio, self._client, display)
        self.result.provisioned_s = seconds
        display.add_line(
            f"[green]all {self._count} are online[/]; PIN, key and WiFi took "
            f"at most {max(seconds):.1f} s each, {JOBS} at a time"
        )

    def _provisioning_row(self, index: int, member: FleetMember) -> batch.Row:
        assert member.pin is not None
        config = {
            "orch_url": "http://orchestrator.local",
            "site": f"{CAMPUS}/{self._building_of(index)}",
            "channel": "stable",
        }
        wanted = DesiredConfig(Wifi.of(SSID, PASSWORD), config)
        return batch.Row(index + 1, member.label.name, Secret(pin=member.pin), wanted)

    # ---- second scene: a good release ----

    def _roll_out_good(self, made: SignedRelease) -> None:
        display = self._display
        display.title = f"{GOOD} goes round, building by building"
        firmware = self._upload_release(made, "smoother positioning")
        self._measure_idle_heap()
        waves = [
            {
                "name": name,
                "sites": [f"{CAMPUS}/{name}"],
                "opens": {"after": "previous_start", "wait": "1m" if index else "0s"},
            }
            for index, name in enumerate(self._used_buildings())
        ]
        rollout = self._start_rollout(
            firmware, {"waves": waves, "ladder": LADDER, "gate": GATE}, GOOD
        )
        self._follow_rollout(rollout, "completed")
        boot = self._probe.boots[-2]
        self.result.heap_update = boot.heap_peak - self.result.heap_idle
        self.result.updates = [measure_attempt(row) for row in self._client.list_attempts(rollout)]
        display.add_line(
            f"[green]{GOOD} runs on all {self._count} beacons[/], confirmed by each of them"
        )

    def _used_buildings(self) -> list[str]:
        return list(dict.fromkeys(self._building_of(index) for index in range(self._count)))

    def _measure_idle_heap(self) -> None:
        """Measure the heap of one beacon while it is idle."""
        boot = self._probe.boots[-1]
        boot.heap_low = 0
        self._display.wait_until(lambda: False, HEAP_POLLS * POLL_S / self._scale)
        self.result.heap_idle, boot.heap_peak = boot.heap_low, 0

    # ---- third scene: two hotfixes ----

    def _roll_out_hotfix(self, made: SignedRelease) -> None:
        """Roll out a line more in one module: beacons fetch the sectors that differ.

        The slot that the first of them goes into holds another core, which is copied over; for the
        second, both slots have the same core.
        """
        display = self._display
        display.title = f"{made.version} changes one line"
        firmware = self._upload_release(made, "one line more in one module")
        plan = {"preset": "all-at-once", "gate": GATE, "concurrency": AT_ONCE}
        rollout = self._start_rollout(firmware, plan, made.version)
        self._follow_rollout(rollout, "completed")
        found = [measure_attempt(row) for row in self._client.list_attempts(rollout)]
        self.result.hotfixes[made.version] = found
        display.add_line(
            f"[green]{made.version} runs on all {self._count} beacons[/]: each fetched "
            f"{max(one.bytes_fetched for one in found):,} bytes of {made.size:,}"
        )

    # ---- fourth scene: a bad one ----

    def _roll_out_bad(self, made: SignedRelease) -> None:
        display = self._display
        display.title = f"{BAD} comes up and fails its health check"
        firmware = self._upload_release(made, "looked fine on the desk")
        # A small fleet has fewer canaries than the default limit of failures in a row.
        row = {"in_a_row": min(3, -(-self._count // 10))}
        rollout = self._start_rollout(firmware, {"ladder": LADDER, "gate": GATE | row}, BAD)
        self._follow_rollout(rollout, "halted")
        display.add_line("[bold red]halted by itself[/]: {}", self._reason)

        def ended() -> bool:
            rows = list(self._client.list_attempts(rollout))
            return all(row["result"] not in (None, "", "open") for row in rows)

        if not display.wait_until(ended, PATIENCE_S):
            raise ReachError("demo_stuck", "attempts at the bad release did not end")
        rows = list(self._client.list_attempts(rollout))
        self.result.touched = len({row["beacon_id"] for row in rows})
        back = [row for row in rows if row["result"] == "rolled_back"]
        self.result.rolled_back = len({row["beacon_id"] for row in back})
        self.result.trials = {row["beacon_id"]: row["trials"] for row in back}
        self.result.reason = self._reason
        for row in back:
            display.add_line(
                f"{row['beacon_id']} tried {BAD} {row['trials']} times, "
                f"[bold]went back to {SECOND}[/] and said why: {row['code']}: {row['detail']}"
            )

    # ---- what the scenes share ----

    @property
    def _probe(self) -> VirtualBeacon:
        return self._fleet.beacons[0]

    def _upload_release(self, made: SignedRelease, what: str) -> str:
        found = self._client.upload_firmware(
            made.image,
            device_type=BOARD,
            version=made.version,
            manifest=made.manifest,
            description=what,
        )
        self._client.post_firmware_action(found["firmware_id"], "promote")
        self._display.add_line(
            f"{made.version} uploaded ({made.size / 1e6:.1f} MB, signed) and promoted"
        )
        return found["firmware_id"]

    def _start_rollout(self, firmware: str, plan: dict[str, Any], version: str) -> str:
        found = self._client.create_rollout(firmware, plan, name=f"{version} for everybody")
        self._display.rollout = found
        self._display.add_line(f"rollout of {version} started")
        return found["rollout_id"]

    def _follow_rollout(self, rollout: str, wanted: str) -> None:
        """Update the display of a rollout until it has the expected status.

        Raises:
            ReachError: ``demo_stuck``: it came to another end, or to none, and why beacons failed.
        """
        told: set[str] = set()

        def step() -> None:
            found = self._display.rollout = self._client.get_rollout(rollout)
            for one in found["transitions"]:
                if (key := json.dumps(one, sort_keys=True)) not in told:
                    told.add(key)
                    self._show_transition(found, one)

        step()
        self._display.wait_until(lambda: self._status in _ENDS, PATIENCE_S, step)
        if self._status != wanted:
            raise ReachError(
                "demo_stuck",
                f"the rollout is {self._status} ({self._reason}), and should be {wanted}",
                found=describe_failures(self._client.list_attempts(rollout)),
            )

    def _show_transition(self, rollout: dict[str, Any], change: dict[str, Any]) -> None:
        wave, stage = change.get("wave"), change.get("stage")
        if isinstance(wave, int) and change["kind"] in _TRANSITION_TEXTS:
            where = rollout["waves"][wave]["name"]
            if isinstance(stage, int):
                where += f", stage {stage + 1}"
            self._display.add_line(
                "{}: {}: {}", rollout["version"], where, _TRANSITION_TEXTS[change["kind"]]
            )

    @property
    def _status(self) -> str:
        return str((self._display.rollout or {}).get("status"))

    @property
    def _reason(self) -> str:
        return str((self._display.rollout or {}).get("reason"))

    def _count_versions(self) -> None:
        versions = Counter(str(row["version"]) for row in self._client.list_beacons())
        self.result.versions = dict(sorted(versions.items()))

    def _wait_for_interrupt(self) -> None:
        self._display.title = "still running: Ctrl-C ends it"
        self._display.add_line(self._display.title)
        try:
            self._display.wait_until(lambda: False, float("inf"))
        except KeyboardInterrupt:
            return
