"""What the app may cost. The interpreter here has objects of twice the C3's size: what holds the
design's limits on it holds them on the chip with room to spare."""

import pytest

from beacon_ota import paths
from beacon_ota.images import appfs
from beacon_ota.trust import KeySet
from tests.firmware.beacons import bench, make
from tests.firmware.test_update_signed import sign
from tests.trust.lab import Key

PAYLOAD = 96 * 1024  # bytes of compiled code
UPDATE = 24 * 1024  # bytes over idle, lazily imported code included


def test_compiled_size():
    files = appfs.compile_all(appfs.sources(paths.data("firmware", "app")))
    assert sum(map(len, files.values())) < PAYLOAD


@pytest.mark.parametrize("signed", [True, False])
def test_heap_of_an_update(small_core, signed):
    """Idle is the least that is in use between two polls; the update is all of it, reports too."""
    key = Key("release")
    keys = KeySet.of([key.public]).to_json() if signed else None
    old, new = (
        make(small_core, version, keys=keys, insecure=not signed, filler=250_000 * (version > "1"))
        for version in ("1.0.0", "2.0.0")
    )
    policy = {"stall_s": 60, "give_up_s": 600}
    with bench(old, scale=10, heap_watch=True, policy=policy) as b:
        boot = b.beacon.boots[0]
        # Slow enough for reports of progress beside the download.
        b.beacon.link.faults.throttle = 25_000
        polls = lambda: sum(r.path.startswith("/firmwares/latest") for r in b.server.requests)  # noqa: E731
        b.wait(lambda: polls() > 2)
        boot.heap_low = 0
        b.wait(lambda: polls() > 4 and boot.heap_low)
        idle, boot.heap_peak = boot.heap_low, 0
        if signed:
            sign(b, new, key)
        else:
            b.server.image, b.server.offering = new, True
        b.reported("success", 90)
        assert [r for r in b.server.reports if r.get("progress", 0) > 0], "none but the first"
        used = boot.heap_peak - idle
        print(f"idle {idle}, update {used} more")
        assert idle and 0 < used < UPDATE
