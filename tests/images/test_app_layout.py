"""A layout that stays put: what a change moves, and that nothing else does."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_ota.images import app_layout, littlefs, littlefs_writer
from beacon_ota.images.app_layout import SECTOR, SLACK, build_app_filesystem, read_earlier

INFO = "app.json"


def some_bytes(seed: object, size: int) -> bytes:
    return random.Random(str(seed)).randbytes(size)


def make_app(count: int = 60, version: str = "1.0.0") -> dict[str, bytes]:
    """Return an app of some 1,100 bytes a module, in a few folders."""
    files = {
        f"{('', 'net/', 'ota/')[n % 3]}m{n}.mpy": some_bytes(n, 200 + n * 997 % 1900)
        for n in range(count)
    }
    return {**files, "ota/__init__.mpy": b"M\x06", INFO: f'{{"version":"{version}"}}'.encode() * 8}


def build(files, before: bytes | None = None, room: int | None = None) -> bytes:
    earlier = None if before is None else read_earlier(before)
    image = build_app_filesystem(files, INFO, earlier, room)
    assert littlefs.read_filesystem(image).files == files
    assert len(image) % SECTOR == 0
    return image


def differing(before: bytes, after: bytes) -> list[int]:
    """Return the sectors of ``after`` that ``before`` does not have."""
    return [
        at // SECTOR
        for at in range(0, len(after), SECTOR)
        if before[at : at + SECTOR] != after[at : at + SECTOR]
    ]


APP = make_app()
FIRST = build(APP)


def test_the_same_input_gives_the_same_bytes():
    assert build(dict(reversed(APP.items()))) == FIRST
    assert build(APP, FIRST) == FIRST
    changed = {**APP, "m0.mpy": b"other" * 100}
    assert build(changed, FIRST) == build(dict(reversed(changed.items())), FIRST)


def test_a_version_alone_moves_one_sector():
    assert differing(FIRST, build(make_app(version="1.0.1"), FIRST)) == [0]


@pytest.mark.parametrize("path", sorted(APP))
def test_a_change_in_one_file_moves_the_first_sector_and_another(path):
    changed = {**make_app(version="1.0.1"), path: some_bytes("new", len(APP[path]) + 40)}
    assert len(differing(FIRST, build(changed, FIRST))) <= 2


def test_a_change_at_the_end_of_a_file_leaves_its_beginning():
    path = max(APP, key=lambda path: len(APP[path]))
    after = build({**APP, path: APP[path] + b"more"}, FIRST)
    old, new = (littlefs.read_filesystem(one).chains[path] for one in (FIRST, after))
    assert len(old) > 3 and old[:-2] == new[: len(old) - 2]


def test_files_that_go_and_come():
    fewer = {path: data for path, data in APP.items() if not path.startswith("net/")}
    less = build(fewer, FIRST)
    assert len(differing(FIRST, less)) <= 2
    again = build(APP, less)
    needed = sum(len(data) for path, data in APP.items() if path.startswith("net/"))
    assert len(differing(less, again)) <= needed // SECTOR + 5


def test_a_smaller_app_gives_its_sectors_back():
    small = {path: data for path, data in APP.items() if path in (INFO, "m0.mpy", "net/m1.mpy")}
    image = build(small, FIRST)
    assert len(image) <= (3 + SLACK) * SECTOR
    assert len(image) <= len(build(small)) + SLACK * SECTOR


def test_more_folders_than_the_first_sector_holds():
    """The metadata takes another sector: what lay there has to move."""
    files = APP
    before = FIRST
    for number in range(20):
        files = {**files, f"folder{number}/module.mpy": some_bytes(number, 300)}
        after = build(files, before)
        assert len(differing(before, after)) <= 8
        before = after
    assert littlefs.read_filesystem(before).folders.keys() > {"folder0/", "folder19/"}


def test_the_slot_bounds_what_staying_may_cost():
    before = FIRST
    rng = random.Random(7)
    files = dict(APP)
    room = len(FIRST) + SECTOR
    for _ in range(20):
        path = rng.choice(sorted(APP.keys() - {INFO}))
        files[path] = rng.randbytes(len(APP[path]))
        before = build(files, before, room)
        assert len(before) <= room
    assert len(build(files, before, 0)) <= len(build(files))  # it has to fit; it cannot be less


def test_an_image_of_littlefs_itself_is_no_pattern():
    for block_size in (512, 4096):
        other = littlefs_writer.build_filesystem(APP, block_size)
        assert read_earlier(other) is None
        assert build(APP, other) == FIRST
    for junk in (b"", b"\xff" * 8192, FIRST[:-SECTOR], FIRST[:64] + bytes(len(FIRST) - 64)):
        assert read_earlier(junk) is None


def test_files_that_littlefs_placed_may_lie_anywhere():
    """An earlier image of the same block size, with files where the metadata is to be."""
    other = littlefs_writer.build_filesystem(APP, app_layout.BLOCK)
    earlier = read_earlier(other)
    assert earlier is not None
    image = build(APP, other)
    kept = [
        path
        for path, chain in littlefs.read_filesystem(image).chains.items()
        if earlier.found.chains[path] == chain
    ]
    assert kept and len(image) <= len(FIRST) + SLACK * SECTOR


@st.composite
def histories(draw):
    """A first app, and releases that follow it: files changed, grown, shrunk, new, gone."""
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    files = {
        f"{rng.choice(['', 'a/', 'b/'])}f{n}": rng.randbytes(rng.randrange(3000))
        for n in range(rng.randrange(1, 50))
    }
    releases = [{**files, INFO: b"0" * 150}]
    for number in range(draw(st.integers(1, 6))):
        files = dict(files)
        for _ in range(rng.randrange(8)):
            path = rng.choice([*sorted(files), f"new{rng.random()}"])
            how = rng.randrange(4)
            data = files.get(path, b"")
            if how == 0 and len(files) > 1:
                files.pop(path, None)
            elif how == 1:
                files[path] = rng.randbytes(rng.randrange(5000))
            elif how == 2:
                files[path] = data[: len(data) // 2] + rng.randbytes(rng.randrange(200))
            else:
                files[path] = data + rng.randbytes(rng.randrange(600))
        releases.append({**files, INFO: b"%d" % number * rng.randrange(60, 300)})
    return releases


@settings(max_examples=60, deadline=None)
@given(histories())
def test_whatever_changes_is_read_and_bounded(releases):
    before = build(releases[0])
    for files in releases[1:]:
        earlier = read_earlier(before)
        layout = app_layout.plan_layout(files, INFO, earlier)
        after = build(files, before)
        assert set(differing(before, after)) <= layout.rewritten
        assert len(after) == layout.sectors * SECTOR <= len(build(files)) + SLACK * SECTOR
        before = after
