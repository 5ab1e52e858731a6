"""What the app may cost. The interpreter here has objects of twice the C3's size: what holds the
design's limits on it holds them on the chip with room to spare."""

import pytest

from beacon_ota import paths
from beacon_ota.images import appfs
from tests.firmware import measure_heap

PAYLOAD = 96 * 1024  # bytes of compiled code
IDLE = 92 * 1024  # bytes of heap
UPDATE = 24 * 1024  # bytes over idle, lazily imported code included


def test_compiled_size():
    files = appfs.compile_all(appfs.sources(paths.data("firmware", "app")))
    assert sum(map(len, files.values())) < PAYLOAD


@pytest.mark.parametrize("signed", [True, False])
def test_heap_of_an_update(small_core, signed):
    idle, used = measure_heap.update(small_core, signed=signed)
    print(f"idle {idle}, update {used} more")
    assert 0 < idle < IDLE
    assert 0 < used < UPDATE
