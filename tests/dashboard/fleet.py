"""A fleet as one finds it: three buildings, a rollout half way, and a few that are not well."""

import hashlib
import random
from pathlib import Path
from typing import Any

from beacon_ota.orchestrator.rollout.types import HOUR, MINUTE
from tests.orchestrator.world import Local, TestBeacon, image

BUILDINGS = {
    "campus/library": ("Library", {"0": 14, "1": 26, "2": 26, "3": 18}),
    "campus/hospital": ("Hospital", {"0": 30, "1": 34, "2": 34, "3": 34, "4": 22}),
    "campus/labs": ("Laboratories", {"0": 16, "1": 24, "2": 20}),
}
TEXTS = {
    "1.2.0": "First release with access control",
    "1.3.2": "Steadier advertising while WiFi is busy",
    "1.4.0": "Faster provisioning, smaller app, new keys",
}
PLAN: dict[str, Any] = {
    "window": "00:00-24:00",
    "waves": [
        {"name": "library", "sites": ["campus/library"]},
        {"name": "hospital", "sites": ["campus/hospital"], "opens": {"after": "previous_end"}},
        {"name": "everybody else", "rest": True, "opens": {"after": "previous_end"}},
    ],
}


def sites(admin: Any) -> None:
    """Add the campus."""
    admin.create_site("campus", name="North Campus", tz="Europe/Berlin")
    for path, (name, floors) in BUILDINGS.items():
        admin.create_site(path, name=name)
        for floor in floors:
            admin.create_site(f"{path}/{floor}", name=f"Floor {floor}")


def release(admin: Any, tmp: Path, version: str, **fields: str) -> dict[str, Any]:
    """Upload a release of a size as real ones have."""
    file = tmp / f"{version}.bin"
    file.write_bytes(image(version, size=1_600_000, seed=version))
    return admin.upload(
        file, device_type="esp32c3", version=version, description=TEXTS[version], **fields
    )


def populate(local: Local, tmp: Path) -> str:
    """Fill an orchestrator; returns the id of the rollout that is under way."""
    dice = random.Random(4)
    admin = local.admin()
    sites(admin)
    old = release(admin, tmp, "1.2.0", channel="stable")
    middle = release(admin, tmp, "1.3.2", channel="stable")
    checksums = {one["version"]: one["checksum"] for one in (old, middle)}
    fleet: dict[str, TestBeacon] = {}
    for path, (_, floors) in BUILDINGS.items():
        short = path.rpartition("/")[2][:3]
        for floor, count in floors.items():
            tags = ["doors"] if floor == "0" else []
            for beacon in local.beacons(
                count, prefix=f"{short}-{floor}", site=f"{path}/{floor}", tags=tags
            ):
                version = "1.2.0" if dice.random() < 0.07 else "1.3.2"
                beacon.version, beacon.image = version, checksums[version]
                fleet[beacon.id] = beacon
    ids = sorted(fleet)
    asleep = set(dice.sample(ids, 9))  # not heard from for hours
    never = set(dice.sample(sorted(set(ids) - asleep), 4))
    for key in ids:
        if key not in never:
            fleet[key].poll()
    local.go_on(2.5 * HOUR)
    awake = [fleet[key] for key in ids if key not in asleep | never]
    for beacon in awake:
        beacon.poll()
    for key in dice.sample([one.id for one in awake], 2):
        admin.do_beacon(key, "quarantine", "bench sample, keep as it is")
    new = release(admin, tmp, "1.4.0", channel="stable")
    rollout = admin.create_rollout(new["firmware_id"], PLAN, name="1.4.0 to the campus")

    def ask(share: float = 1.0) -> list[tuple[TestBeacon, dict[str, Any]]]:
        found = [(one, one.offer()) for one in awake if dice.random() < share]
        return [(one, offer) for one, offer in found if offer is not None]

    for hours in (24.2, 12.2):
        for beacon, offer in ask():
            beacon.download(offer)
            beacon.report("rebooting", offer)
            local.clock.at += dice.uniform(0.2, 1.0)
            old_version = beacon.version
            beacon.install(offer)
            beacon.report(
                "success",
                offer,
                previous_version=old_version,
                duration_ms=dice.randint(14_000, 22_000),
                bytes=new["size"],
                heap_free_min=dice.randint(52_000, 61_000),
                reset_cause=5,
                trials=1,
            )
        local.step()
        for _ in range(int(hours)):
            local.clock.at += HOUR
            for beacon in awake:
                beacon.poll()
        local.go_on(hours % 1 * HOUR)
    # The last stage of the library, and one that goes wrong in it.
    for number, (beacon, offer) in enumerate(ask()):
        if number == 11:
            beacon.fail(offer, "download", "stall")
        elif number < 28:
            beacon.update(offer)
    local.step()
    admin.move_rollout(rollout["rollout_id"], "advance", "library looks good, hospital asked for it", wave=1)
    hospital = [one for one in awake if one.id.startswith("hos")]
    for number, beacon in enumerate(hospital):
        offer = beacon.offer()
        if offer is None:
            continue
        if number % 5 == 0:
            beacon.download(offer)
            beacon.report("downloading", offer, progress=dice.randint(5, 95))
        elif number % 7 == 0:
            beacon.download(offer)
            beacon.report("rebooting", offer)
            beacon.state = "trial"
            beacon.version, beacon.image = offer["version"], offer["checksum"]
            beacon.poll()
        else:
            local.clock.at += 2
            beacon.update(offer)
    trouble = fleet["hos-20004"]
    trouble.report(
        "idle",
        insecure=True,
        reset_cause=3,
        heap_free_min=48_112,
        journal=[
            [1, int(local.clock.now()) - 7200, "wifi", "lost", "reason 200, channel 6"],
            [2, int(local.clock.now()) - 300, "boot", "watchdog", "main loop"],
        ],
    )
    local.clock.at += 4 * MINUTE
    for beacon in awake:
        if beacon.state == "valid" and dice.random() < 0.97:
            beacon.poll()
    local.step()
    local.call(local.service.flush())
    return rollout["rollout_id"]


def checksum(version: str) -> str:
    """Return what a beacon that says this version says of its image."""
    return hashlib.sha256(version.encode()).hexdigest()
