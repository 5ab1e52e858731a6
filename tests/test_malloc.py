"""Memory that was freed goes back to the system, holes or not."""

import platform
import subprocess
import sys

import pytest

# Behind 40 MB lies something that stays: without the settings, the heap keeps the hole.
SCRIPT = """
import os, sys
from beacon_ota import malloc

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

if sys.argv[1] == "mapped":
    malloc.limit_to_one_arena()
    malloc.map_buffers()
bytearray(4 << 20)  # from now on glibc takes such buffers from its heap, too
large = ["x" * size for size in range(2 << 20, (2 << 20) + 20)]
after = bytearray(100_000)
before = resident()
del large
if sys.argv[1] == "trimmed":
    malloc.trim_heap()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")
@pytest.mark.parametrize("way", ["mapped", "trimmed", "neither"])
def test_freed_memory_is_given_back(way):
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, way], capture_output=True, text=True, check=True
    )
    assert (int(ran.stdout) > 30 << 20) is (way != "neither")
