"""What the app may cost. The interpreter here has objects of twice the C3's size: its limits are
those of the design on a heap of half the room."""

from beacon_ota import paths
from beacon_ota.images import appfs
from tests.firmware.beacons import bench

PAYLOAD = 96 * 1024  # bytes of compiled code
UPDATE = 32 * 1024  # bytes over idle, of 64-bit objects; 24 KB on the chip


def test_compiled_size():
    files = appfs.compile_all(appfs.sources(paths.data("firmware", "app")))
    assert sum(map(len, files.values())) < PAYLOAD


def test_heap_of_an_update(v1, v2):
    with bench(v1, scale=5, heap_watch=True) as b:
        b.wait(lambda: sum(r.path.startswith("/firmwares/latest") for r in b.server.requests) > 2)
        idle = b.beacon.boots[0].heap_peak
        b.server.image, b.server.offering = v2, True
        b.reported("success", 30)
        peak = b.beacon.boots[0].heap_peak
        print(f"idle {idle}, update {peak - idle} more")
        assert idle and peak - idle < UPDATE
