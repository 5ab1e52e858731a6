"""A simulated beacon's plan: what its slots have of a release."""

from beacon_ota.images import blocks
from beacon_ota.images.blocks import SECTOR
from beacon_ota.swarm import adaptive
from beacon_ota.swarm.adaptive import plan_download
from beacon_ota.swarm.release import build_image


def image(*values: int, tail: int = 0) -> bytes:
    return b"".join(bytes([one]) * SECTOR for one in values) + bytes(tail)


NEW = image(1, 2, 3, 4, tail=100)
INDEX = blocks.hash_sectors(NEW)


def plan(running: bytes | None, other: bytes | None = None) -> adaptive.DownloadPlan:
    images = {name: data for name, data in (("r", running), ("o", other)) if data is not None}
    return plan_download(INDEX, len(NEW), images, "r", "o")


def contents(found: adaptive.DownloadPlan) -> bytes:
    return b"".join(bytes(one) if one is not None else b"?" for one in found.held)


def test_sectors_of_either_slot_are_not_fetched():
    found = plan(image(1, 9, 3, 4), image(9, 2, 9, 9))
    assert contents(found) == NEW[: 4 * SECTOR] + b"?"
    assert (found.written, found.kept) == (4, 1)
    assert found.end_of_run(0) == 0 and found.end_of_run(4 * SECTOR) == len(NEW)


def test_the_slot_to_be_written_keeps_all_but_its_first_sector():
    found = plan(None, NEW)
    assert contents(found) == NEW and (found.written, found.kept) == (1, 4)


def test_unknown_slots_have_nothing():
    for found in (plan(None), adaptive.plan_whole(len(NEW))):
        assert contents(found) == b"?????" and found.written == 5
        assert found.end_of_run(0) == len(NEW)


def test_releases_of_one_base_differ_in_the_modules_that_changed():
    before, after = (
        build_image(version, "esp32c3", 200_000, modules=20, base="1", changed=changed)
        for version, changed in (("1.1.0", 0), ("1.1.1", 2))
    )
    images = {"r": before, "o": before}
    found = plan_download(blocks.hash_sectors(after), len(after), images, "r", "o")
    missing = sum(one is None for one in found.held)
    assert 3 <= missing <= 5  # the folders, and two modules
    assert found.written == missing + 1
