"""What the app may cost. The interpreter here has objects of twice the C3's size: what holds the
design's limits on it holds them on the chip with room to spare."""

import re

import pytest

from beacon_ota import paths
from beacon_ota.images import app_folder, appfs
from tests.firmware import measure_heap

PAYLOAD = 96 * 1024  # bytes of compiled code
IDLE = 92 * 1024  # bytes of heap
IMPORT = re.compile(r"^ *from (wire|\.) import ([\w, ]+)$", re.M)
NAMED = re.compile(r"^ *from (?:wire)?\.(\w+) import", re.M)
USED = re.compile(r"use\(\"wire\.(\w+)\"")
UPDATE = 24 * 1024  # bytes over idle, lazily imported code included
# Names that all modules have together. A virtual beacon's table of names has room for about 1,380
# when it has run all that it is asked to; the next table takes 28 KB in one piece.
NAMES = 1370


# Modules that are loaded for a moment only.
BRIEF = {"describe", "net/locate", "ota/rekey", "services/button_press"}
BLOCK = 32  # bytes of the collector's


def _read_tables(mpy: bytes) -> tuple[list[bytes | None], int]:
    """Return a compiled module's names (None: built in) and the number of its objects."""
    at = 4

    def number() -> int:
        nonlocal at
        value = 0
        while True:
            at += 1
            value = value << 7 | mpy[at - 1] & 0x7F
            if mpy[at - 1] < 0x80:
                return value

    names: list[bytes | None] = []
    count, objects = number(), number()
    for _ in range(count):
        length = number()
        if length & 1:
            names.append(None)
        else:
            names.append(mpy[at : at + (length >> 1)])
            at += (length >> 1) + 1
    return names, objects


def _compiled() -> dict[str, bytes]:
    files = appfs.compile_sources(app_folder.read_sources(paths.data_path("firmware", "app")))
    return {file.removesuffix(".mpy"): data for file, data in files.items() if "." in file}


def test_names_fit_into_their_table():
    found = {name for data in _compiled().values() for name in _read_tables(data)[0] if name}
    assert b"image_length" in found
    assert len(found) < NAMES


def test_no_module_keeps_what_is_behind_its_table():
    """A module's objects follow its names. Where there are none, and the names end with a block,
    the module's pointer to its objects is one to the next block, which is then never freed."""
    keepers = set()
    for module, data in _compiled().items():
        names, objects = _read_tables(data)
        words = (2 * len(names) + 7) // 8  # of names, two bytes each
        if not objects and not 8 * words % BLOCK:
            keepers.add(module)
    assert keepers <= BRIEF


def test_compiled_size():
    files = appfs.compile_sources(app_folder.read_sources(paths.data_path("firmware", "app")))
    assert sum(map(len, files.values())) < PAYLOAD


def test_an_image_holds_no_rules_that_only_the_host_applies():
    texts = app_folder.read_sources(paths.data_path("firmware", "app"))
    imported = set()
    for text in texts.values():
        for _, names in IMPORT.findall(text.decode()):
            imported.update(f"wire/{name.strip()}.py" for name in names.split(","))
        for pattern in (NAMED, USED):
            imported.update(f"wire/{name}.py" for name in pattern.findall(text.decode()))
    rules = {name for name in texts if name.startswith("wire/")} - {"wire/__init__.py"}
    assert rules <= imported
    assert not imported & app_folder.HOST_ONLY
    folder = paths.data_path("firmware", "app")
    assert all((folder / name).is_file() for name in app_folder.HOST_ONLY)


@pytest.mark.parametrize("signed", [True, False])
def test_heap_of_an_update(small_core, signed):
    """Whether one of three updates stays within its limits.

    MicroPython's collector takes for a pointer whatever looks like one in a C stack. So a module
    that was unloaded (8 KB, those that verify a release) is at times found to be in use as long as
    the download lasts, in one run and not in the next. That only adds to a measurement.
    """
    for _ in range(3):
        idle, used = measure_heap.update(small_core, signed=signed)
        print(f"idle {idle}, update {used} more")
        if 0 < idle < IDLE and 0 < used < UPDATE:
            return
    pytest.fail(f"idle {idle} of {IDLE} bytes, an update {used} of {UPDATE} more")
