"""Power cuts in the middle of updates: a good image runs, says what happened, and can be updated.

The cut falls on one flash operation, before, within or after it; NVS writes count as well as
the slot's, otadata's and the bootloader's. The ordinary run takes a few, the campaign takes all.
"""

import random

import pytest

from beacon_ota.virtual.flash.nor import PowerCutPoint
from tests.firmware.beacons import bench, make

ENDS = {"success", "failed", "rolled_back"}


def check(b, cut: PowerCutPoint | None) -> None:
    """Every attempt that was begun has come to one end, and only one."""
    attempts: dict[str, set[str]] = {}
    for doc in b.server.reports:
        if doc["update_status"] != "idle":
            attempts.setdefault(doc["attempt_id"], set()).add(doc["update_status"])
    for words in attempts.values():
        assert len(words & ENDS) == 1, (cut, attempts)


def update(v1, v2, cut: PowerCutPoint | None, *, first: bytes | None = None) -> tuple[int, int]:
    """Update v1 to v2 with one power cut; return the operations before and after.

    With ``first`` the beacon is brought to v1 by an update from it, so that the update under
    test goes into the other slot.
    """
    with bench(first or v1, scale=40) as b:
        if first:
            b.server.image, b.server.version, b.server.offering = v1, "1.0.0", True
            b.reported("success")
            b.wait(lambda: b.beacon.setting("attempt") is None)
        b.wait(lambda: b.polled("1.0.0"))
        begin = b.beacon.flash.ops
        if cut:
            b.beacon.flash.cut = PowerCutPoint(begin + cut.number, cut.when, cut.seed)
        b.server.image, b.server.version, b.server.offering = v2, "2.0.0", True
        if cut:
            b.wait(lambda: not b.beacon.powered or b.server.last("success") and done(b))
            if b.beacon.powered:
                return begin, b.beacon.flash.ops
            b.beacon.power_on()
        b.wait(lambda: done(b))
        check(b, cut)
        assert b.beacon.setting("beacon_key") is not None, "NVS lives"
        return begin, b.beacon.flash.ops


def done(b) -> bool:
    last = b.server.last("success")
    return bool(last and last["firmware_version"] == "2.0.0" and not b.beacon.setting("attempt"))


@pytest.mark.parametrize("seed", range(10))
def test_power_cuts(v1, v2, seed):
    chance = random.Random(seed)
    cut = PowerCutPoint(chance.randrange(120), chance.choice(["before", "inside", "after"]), seed)
    update(v1, v2, cut)


@pytest.mark.slow
@pytest.mark.parametrize("slot", [0, 1])
def test_every_power_cut(small_core, v1, v2, slot):
    first = make(small_core, "0.9.0") if slot else None
    begin, end = update(v1, v2, None, first=first)
    for number in range(end - begin):
        for when in ("before", "inside", "after"):
            update(v1, v2, PowerCutPoint(number, when, number), first=first)
