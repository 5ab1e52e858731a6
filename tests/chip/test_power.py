"""The power fails at any moment of any update: SIGKILL, and the flash as it then is."""

import random
import time

import pytest

from beacon_ota.images import flash
from beacon_ota.inspect import inspect
from beacon_ota.inspect.facts import BAD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SEED = 20
CUTS = 16
UPDATE_S = 40.0  # from power-on to the report of success, on a machine that does other things too
BOOT_S = 5.0
INNOCENT = {
    ("success", None, None),
    ("failed", "boot", "power"),
    ("rolled_back", "boot", "power"),
    ("rolled_back", "boot", "not_booted"),
}


def test_cuts_at_random(scene, tell):
    chance = random.Random(SEED)
    beacon = scene.beacon(power=False)
    chip = beacon.chip
    given = chip.settings
    number = 0
    firmwares: list[str] = []

    def release() -> None:
        nonlocal number
        number += 1
        firmwares.append(scene.publish(scene.shelf.release(f"5.{number}.0"), beacon))

    release()
    for cut in range(CUTS):
        chip.power_on()
        if cut % 4:  # it was heard of since the last cut: it came back by itself
            since = beacon.shown["last_seen"]
            chip.until(lambda: beacon.shown["last_seen"] != since, f"back after cut {cut}")  # noqa: B023
            time.sleep(chance.uniform(0, UPDATE_S - BOOT_S))
        else:
            time.sleep(chance.uniform(0, BOOT_S))
        chip.power_cut()
        sound(chip, given)
        if any(a["result"] == "success" for a in beacon.attempts(firmwares[-1])):
            release()
    chip.power_on()
    beacon.runs(f"5.{number}.0")
    beacon.settled()
    assert not chip.panics
    ends = [(a["result"], a["failed_in"], a["code"]) for a in beacon.attempts()]
    assert set(ends) <= INNOCENT, ends
    for firmware in firmwares:
        assert [a["result"] for a in beacon.attempts(firmware)].count("success") == 1
    assert "bad_sha" not in chip.settings
    counts = {" ".join(filter(None, end)): ends.count(end) for end in set(ends)}
    tell(f"{CUTS} cuts, {number} releases: {counts}")


def sound(chip, given) -> None:
    """Whatever was cut off, a bootable slot, stage 0 and every setting are there."""
    report = inspect.inspect_file(chip.content)
    assert not [finding for finding in report.findings if finding.level == BAD], report.findings
    parts = chip.parts
    assert parts.vfs is not None and parts.vfs.files == flash.stage0_files()
    kept = chip.settings
    assert {key: kept.get(key) for key in given} == given
