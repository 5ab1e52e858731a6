"""Heap that an update takes: code that is loaded for it, buffers, reports, all of it."""

from beacon_ota.trust import KeySet
from tests.firmware.beacons import bench, make
from tests.firmware.test_update_signed import sign
from tests.trust.lab import Key

SLOW = 25_000  # bytes per second: reports of progress come beside the download
FILLER = 250_000
POLICY = {"stall_s": 60, "give_up_s": 600}


def update(core: bytes, *, signed: bool) -> tuple[int, int]:
    """Return bytes of heap when idle, and how many more an update takes at most.

    Idle is the least that is in use between two polls.
    """
    key = Key("release")
    keys = KeySet.of([key.public]).to_json() if signed else None
    old = make(core, "1.0.0", keys=keys, insecure=not signed)
    new = make(core, "2.0.0", keys=keys, insecure=not signed, filler=FILLER)
    with bench(old, scale=10, heap_watch=True, policy=POLICY) as b:
        boot = b.beacon.boots[0]
        b.beacon.link.faults.throttle = SLOW

        def polls() -> int:
            return sum(r.path.startswith("/firmwares/latest") for r in b.server.requests)

        b.wait(lambda: polls() > 2, 60)
        boot.heap_low = 0
        b.wait(lambda: polls() > 12 and boot.heap_low, 60)
        idle, boot.heap_peak = boot.heap_low, 0
        if signed:
            sign(b, new, key)
        else:
            b.server.image, b.server.offering = new, True
        b.reported("success", 120)
        assert [r for r in b.server.reports if r.get("progress", 0) > 0], "none but the first"
        return idle, boot.heap_peak - idle
