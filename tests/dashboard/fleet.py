"""A fleet as one finds it: three buildings, a rollout half way, and a few that are not well."""

import random
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from beacon_ota.client import Client
from beacon_ota.orchestrator.rollout.plan_types import HOUR, MINUTE
from beacon_ota.trust import dsse, releases
from beacon_ota.trust.keys import KeySet
from beacon_ota.trust.releases import Terms
from tests.orchestrator.world import Local, ManualClock, TestBeacon, image
from tests.trust.lab import Key

BUILDINGS = {
    "campus/hospital": ("Hospital", {"0": 30, "1": 34, "2": 34, "3": 34, "4": 22}),
    "campus/labs": ("Laboratories", {"0": 16, "1": 24, "2": 20}),
    "campus/library": ("Library", {"0": 14, "1": 26, "2": 26, "3": 18}),
}
TEXTS = {
    "1.3.1": "First release with access control",
    "1.3.2": "Steadier advertising while WiFi is busy",
    "1.4.0": "Faster provisioning, smaller app, new keys",
}
PILOT: dict[str, Any] = {"window": "00:00-24:00", "ladder": [{"share": 1.0, "soak": 0}]}
PLAN: dict[str, Any] = {
    "window": "00:00-24:00",
    "waves": [
        {"name": "Library", "sites": ["campus/library"]},
        {"name": "Hospital", "sites": ["campus/hospital"], "opens": {"after": "previous_end"}},
        {"name": "Everybody else", "rest": True, "opens": {"after": "previous_end"}},
    ],
}
TICKET = "new switches in the hospital, change 4711"


class Campus:
    """The fleet, and the orchestrator that looks after it.

    Attributes:
        rollout_id: of the rollout that is under way.
    """

    rollout_id: str

    def __init__(self, tmp: Path):
        self.tmp = tmp
        self.dice = random.Random(4)
        self.key = Key("release")
        self.keys = KeySet.of([self.key.public])
        self.local = Local(tmp / "data", ManualClock(), insecure=False, trusted=self.keys)
        self.admin = self.local.admin()
        self.pool = ThreadPoolExecutor(8)
        self.fleet: dict[str, TestBeacon] = {}
        self.releases: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "Campus":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.pool.shutdown()
        self.local.stop()

    def pass_by(self, seconds: float) -> None:
        """Let time pass, in which everybody who is awake is heard from."""
        while seconds > 0:
            step = min(seconds, 5.5 * HOUR)
            self.local.clock.at += step
            seconds -= step
            list(self.pool.map(TestBeacon.poll, self.awake))
            self.local.step()

    # ---- what there is ----

    def sites(self) -> None:
        self.admin.create_site("campus", name="North Campus", tz="Europe/Berlin")
        for path, (name, floors) in BUILDINGS.items():
            self.admin.create_site(path, name=name)
            for floor in floors:
                self.admin.create_site(f"{path}/{floor}", name=f"Floor {floor}")

    def release(self, version: str) -> str:
        """Sign and upload a release of a size as real ones have; returns its id."""
        data = image(version, size=1_600_000, seed=version, keys=self.keys.to_json())
        now = int(self.local.clock.now())
        described, _ = releases.describe_release(data, Terms(now, now + 365 * 86400))
        file = self.tmp / f"{version}.bin"
        file.write_bytes(data)
        made = self.admin.upload_firmware(
            file,
            device_type="esp32c3",
            version=version,
            description=TEXTS[version],
            channel="stable",
            manifest=dsse.sign_payload(described.payload(), [self.key]),
        )
        self.releases[version] = made
        return made["firmware_id"]

    def beacons(self) -> None:
        """Register everybody; most run 1.3.1."""
        floors = [(path, *one) for path, (_, all_) in BUILDINGS.items() for one in all_.items()]
        for made in self.pool.map(self.floor, floors):
            self.fleet |= {beacon.id: beacon for beacon in made}
        ids = sorted(self.fleet)
        self.asleep = set(self.dice.sample(ids, 9))  # not heard from for hours
        self.never = set(self.dice.sample(sorted(set(ids) - self.asleep), 4))
        for key in ids:
            if key not in self.never:
                self.fleet[key].poll()
        self.awake = [self.fleet[key] for key in ids if key not in self.asleep | self.never]

    def floor(self, what: tuple[str, str, int]) -> list[TestBeacon]:
        path, floor, count = what
        made = self.local.beacons(
            count,
            prefix=f"{path.rpartition('/')[2][:3]}-{floor}",
            site=f"{path}/{floor}",
            tags=["doors"] if floor == "0" else [],
        )
        for beacon in made:
            old = path == "campus/labs" and floor != "0"
            self.run(beacon, "1.3.1" if old else "1.3.2")
        return made

    def run(self, beacon: TestBeacon, version: str) -> None:
        beacon.version, beacon.image = version, self.releases[version]["checksum"]

    # ---- what happens ----

    def offers(self, beacons: Iterable[TestBeacon]) -> list[tuple[TestBeacon, dict[str, Any]]]:
        """Ask for those; returns who is offered what, in their order."""
        beacons = list(beacons)
        found = zip(beacons, self.pool.map(TestBeacon.offer, beacons), strict=True)
        return [(beacon, offer) for beacon, offer in found if offer is not None]

    def update(self, pairs: list[tuple[TestBeacon, dict[str, Any]]]) -> None:
        """Go the whole way, as many at a time as a campus has at once."""
        for at in range(0, len(pairs), 10):
            some = pairs[at : at + 10]
            self.each(some, lambda one, offer: one.report("downloading", offer))
            took = self.dice.uniform(14, 22)
            self.local.clock.at += took
            self.each(some, lambda one, offer: one.report("rebooting", offer))
            self.each(some, lambda one, offer, took=took: self.confirm(one, offer, took))

    def each(
        self, pairs: list[tuple[TestBeacon, dict[str, Any]]], work: Callable[..., Any]
    ) -> None:
        for answer in self.pool.map(lambda pair: work(*pair), pairs):
            assert answer.status == 200, answer.body

    def confirm(self, beacon: TestBeacon, offer: dict[str, Any], took: float) -> Any:
        old = beacon.version
        beacon.install(offer)
        return beacon.report(
            "success",
            offer,
            previous_version=old,
            duration_ms=int(took * 1000),
            bytes=offer["size"],
            heap_free_min=52_000 + len(beacon.id) * 613,
            reset_cause=5,
            trials=1,
        )

    def fail(
        self, beacon: TestBeacon, offer: dict[str, Any], stage: str, code: str, detail: str
    ) -> None:
        """Get nowhere; what came back is what ran before."""
        beacon.report("downloading", offer)
        self.local.clock.at += 12
        if stage == "boot":
            beacon.report("rebooting", offer)
            self.local.clock.at += 9
        beacon.report(
            "rolled_back" if stage == "boot" else "failed",
            offer,
            stage=stage,
            code=code,
            detail=detail,
            reset_cause=3 if stage == "boot" else 1,
        )

    def pilot(self) -> None:
        """A rollout of 1.3.2 to the laboratories, which is complete."""
        self.admin.create_rollout(
            self.releases["1.3.2"]["firmware_id"],
            {**PILOT, "gate": {"failure_share": 0.2}},
            name="1.3.2 where it was missing",
        )
        self.local.step()
        troubles = {
            12: ("download", "stall", "no byte for 20 s at 43 %"),
            19: ("verify", "checksum", "2ba18046 is not 71c0de99"),
            27: ("boot", "self_test", "advertising did not start"),
        }
        self.everybody(troubles)
        self.pass_by(2 * HOUR)

    def wave(self) -> str:
        """A rollout of 1.4.0: the library is through, the hospital has begun."""
        firmware_id = self.release("1.4.0")
        rollout = self.admin.create_rollout(firmware_id, PLAN, name="1.4.0 to the campus")
        self.local.step()
        for hours in (24.5, 12.5):
            self.everybody()
            self.pass_by(hours * HOUR)
        self.everybody({21: ("boot", "watchdog", "WiFi did not come up in 60 s")})
        self.local.step()
        made = self.admin.create_token("anna", "operator")
        anna = Client(self.local.url, made["token"])
        anna.post_rollout_action(rollout["rollout_id"], "pause", TICKET)
        self.local.go_on(10 * MINUTE)
        anna.post_rollout_action(rollout["rollout_id"], "resume", "the switches are back")
        self.local.step()
        hospital = self.offers(one for one in self.awake if one.id[:3] == "hos")
        self.update(hospital[::3])
        self.each(
            hospital[1::3],
            lambda one, offer: one.report(
                "downloading", offer, progress=sum(one.id.encode()) % 90 + 5
            ),
        )
        for beacon, offer in hospital[2::3]:
            beacon.report("rebooting", offer)
            beacon.install(offer)
            beacon.state = "trial"
            beacon.poll()
        return rollout["rollout_id"]

    def everybody(self, troubles: dict[int, tuple[str, str, str]] | None = None) -> None:
        """Update all who are offered something, but those who come to grief."""
        pairs = self.offers(self.awake)
        bad = {number: what for number, what in (troubles or {}).items() if number < len(pairs)}
        at = 0
        for number, what in bad.items():
            self.update(pairs[at:number])
            self.fail(*pairs[number], *what)
            at = number + 1
        self.update(pairs[at:])
        self.local.step()

    def trouble(self) -> None:
        """One beacon that runs without protection, and has things to tell."""
        now = int(self.local.clock.now())
        self.fleet["hos-20004"].report(
            "idle",
            insecure=True,
            reset_cause=3,
            heap_free_min=48_112,
            journal=[
                [1, now - 7200, "wifi", "lost", "reason 200, channel 6"],
                [2, now - 300, "boot", "watchdog", "main loop"],
            ],
        )


def populate(tmp: Path) -> Campus:
    """Start an orchestrator and fill it."""
    campus = Campus(tmp)
    campus.sites()
    campus.release("1.3.1")
    campus.release("1.3.2")
    campus.beacons()
    campus.pass_by(2.5 * HOUR)
    for key in campus.dice.sample([one.id for one in campus.awake], 2):
        campus.admin.post_beacon_action(key, "quarantine", "bench sample, keep as it is")
    campus.pilot()
    campus.rollout_id = campus.wave()
    campus.trouble()
    campus.local.clock.at += 4 * MINUTE
    for beacon in campus.awake:
        if beacon.state == "valid" and campus.dice.random() < 0.97:
            beacon.poll()
    campus.local.step()
    campus.local.call(campus.local.service.flush_last_seen())
    return campus
