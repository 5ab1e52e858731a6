"""Releases that are no good: each gets three trials, and the one before comes back and says why."""

import hashlib

import pytest

from beacon_ota.campaign.faults import run as faults
from beacon_ota.campaign.rig import builds
from tests.chip.scene import OLD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

POLICY = {"trial_s": 20}
WATCHDOG_MS = "10_000"  # in the place of stage 0's minute for a release on trial


# What is wrong, and how it is told.
FAULTS = {
    "import": ("crash", "ValueError: broken release"),
    "task": ("crash", "task broken died 3 times"),
    "hang": ("watchdog", "reset cause"),
    "offline": ("self_test", "wifi"),
    "self-test": ("self_test", "services"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_three_trials_and_back(scene, fault):
    code, detail = FAULTS[fault]
    number = 10 * (1 + list(FAULTS).index(fault))
    bad = scene.shelf.release(f"2.{number}.0", faults.changed_files(fault))
    boot = builds.read_source("stage0", "boot.py")
    assert boot.count("WATCHDOG = 60_000") == 1
    stage0 = {"boot.py": boot.replace("60_000", WATCHDOG_MS).encode()}
    beacon = scene.beacon(policy=POLICY, stage0=stage0)
    beacon.runs(OLD)
    firmware = scene.publish(bad, beacon)
    back = beacon.ended(firmware)
    assert (back["result"], back["failed_in"], back["code"]) == ("rolled_back", "boot", code), back
    assert detail in back["detail"] and back["trials"] == 3, back
    beacon.runs(OLD)
    assert hashlib.sha256(bad.image).digest() in beacon.chip.settings["bad_sha"]
    # It is not offered again; another one is.
    good = scene.shelf.release(f"2.{number + 1}.0")
    done = beacon.ended(scene.publish(good, beacon))
    assert done["result"] == "success", done
    assert len(beacon.attempts(firmware)) == 1
    assert beacon.chip.settings["floor"] == good.version.encode()
