"""Images on the disk: what withdraws a release, what does not, and what gives it back."""

import os
import resource

import pytest

from beacon_ota.errors import ReachError
from beacon_ota.orchestrator.blobs.local import BlobDamaged, LocalBlobStore
from tests.orchestrator.world import until, upload

EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}


def test_what_says_nothing_about_the_bytes_is_no_damage(tmp_path):
    blobs = LocalBlobStore(tmp_path)
    (tmp_path / "blobs" / ("ab" * 32)).write_bytes(b"x")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open("/dev/null", os.O_RDONLY)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))  # not one file more
        os.close(spare)
        held = []
        while True:
            try:
                held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        with pytest.raises(ReachError) as caught:
            blobs.read("ab" * 32)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in held:
            os.close(one)
        blobs.close()
    assert caught.value.code == "images_unreachable"


def test_what_is_not_there_is_damaged(tmp_path):
    blobs = LocalBlobStore(tmp_path)
    with pytest.raises(BlobDamaged) as caught:
        blobs.read("ab" * 32)
    blobs.close()
    assert caught.value.code == "blob_missing"


def test_images_that_come_after_their_database_give_the_releases_back(local, tmp_path):
    """A backup that was restored in the wrong order, or a volume that was mounted late."""
    made = upload(local.admin(), "1.1.0", tmp_path, channel="stable")
    (beacon,) = local.beacons(1)
    local.admin().create_rollout(made["firmware_id"], EVERYBODY)
    data = local.service.settings.data
    local.stop()
    (data / "blobs").rename(tmp_path / "blobs")
    local.start()

    def damaged() -> bool:
        return local.admin().find_firmware(made["firmware_id"])["damaged_at"] is not None

    until(damaged)
    beacon.connect(local.url)
    assert beacon.poll().headers["x-reason"] == "withdrawn"
    local.stop()
    (data / "blobs").rmdir()
    (tmp_path / "blobs").rename(data / "blobs")
    local.start()
    until(lambda: not damaged())
    beacon.connect(local.url)
    local.clock.at += 1
    beacon.update(beacon.offered())
    (entry,) = local.admin().list_audit_entries(action="firmware.renewed")
    assert entry["actor"] == "orchestrator"
