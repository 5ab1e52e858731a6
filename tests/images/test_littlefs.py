"""LittleFS images: ours against littlefs itself, and hostile ones against our reader."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_ota.images import littlefs
from beacon_ota.images.littlefs import LittlefsError

NAMES = st.text("abcdefghijklmnopqrstuvwxyz_.0", min_size=1, max_size=20).filter(
    lambda name: name.strip(".") != ""
)


@st.composite
def trees(draw):
    """Files in the root and in folders, from empty to a few dozen KB."""
    files = {}
    folders = [""] + [f"d{i}_{draw(NAMES)}/" for i in range(draw(st.integers(0, 3)))]
    for number in range(draw(st.integers(0, 12))):
        path = draw(st.sampled_from(folders)) + f"f{number}_{draw(NAMES)}"
        size = draw(st.one_of(st.integers(0, 200), st.integers(0, 6000), st.just(30000)))
        files[path] = (bytes(range(256)) * (size // 256 + 1))[number : number + size]
    return files


@settings(max_examples=30, deadline=None)
@given(trees(), st.sampled_from([128, 256, 512, 1024, 4096]))
def test_what_littlefs_writes_our_reader_reads(files, block_size):
    image = littlefs.build_filesystem(files, block_size)
    found = littlefs.read_filesystem(image)
    assert found.files == files
    assert (found.block_size, found.size) == (block_size, len(image))
    assert found.version == (2, 0)
    assert littlefs.stored_geometry(image) == (block_size, len(image) // block_size)
    assert len(image) % 4096 == 0
    assert littlefs.filesystem_size(image) == len(image)
    assert littlefs.build_filesystem(files, block_size) == image


def test_an_image_is_as_small_as_it_can_be():
    files = {f"m{i}.mpy": bytes(900) for i in range(40)}
    image = littlefs.build_filesystem(files, 512)
    assert len(image) < 40 * 900 * 1.5
    with pytest.raises(LittlefsError) as caught:
        littlefs.build_filesystem(files, 512, (len(image) - 4096) // 512)
    assert caught.value.code == "fs_full"


def listing(fs):
    """The files as littlefs itself reads them."""
    found = {}
    for folder, _, names in fs.walk("/"):
        for name in names:
            path = f"{folder.rstrip('/')}/{name}"
            with fs.open(path, "rb") as file:
                found[path[1:]] = file.read()
    return found


@pytest.mark.parametrize("block_size", [256, 512, 4096])
@pytest.mark.parametrize("upgraded", [False, True])
def test_a_filesystem_with_a_past(block_size, upgraded):
    from littlefs import LittleFS, UserContext

    count = 200_000 // block_size
    if upgraded:  # begun by an older littlefs: the superblock moves when it is written to
        old = littlefs.build_filesystem({}, block_size, count)
        fs = LittleFS(UserContext(buffer=bytearray(old)), block_size=block_size, block_count=count)
    else:
        fs = LittleFS(block_size=block_size, block_count=count)
    fs.mkdir("sub")
    for turn in range(60):
        for number in range(10):
            folder = "sub/" if number % 3 == 0 else ""
            with fs.open(f"{folder}file{number}", "wb") as file:
                file.write(bytes([turn]) * (turn * number * 3))
        if turn % 7 == 3:
            fs.rename("sub/file9", "other")
        if turn % 5 == 4:
            fs.remove("sub/file3")
        if turn % 10 == 0:
            fs.mkdir(f"d{turn}")
        if turn % 10 == 5:
            fs.remove(f"d{turn - 5}")
        found = littlefs.read_filesystem(bytes(fs.context.buffer))
        assert found.files == listing(fs)
        assert (found.block_size, found.block_count) == (block_size, count)


READER = """
import vfs, os
f = open(IMAGE, "rb")
class Device:
    def readblocks(self, n, buf, off=0):
        f.seek(n * 512 + off)
        f.readinto(buf)
    def writeblocks(self, n, buf, off=0):
        raise OSError(30)
    def ioctl(self, op, arg):
        return {4: COUNT, 5: 512}.get(op, 0)
vfs.mount(Device(), "/x", readonly=True)
def walk(path):
    for name, kind, *_ in os.ilistdir(path):
        if kind == 0x4000:
            walk(path + "/" + name)
        else:
            with open(path + "/" + name, "rb") as file:
                data = file.read()
            print(path[3:] + "/" + name, len(data), sum(data))
walk("/x")
"""


def test_the_interpreter_reads_the_same(tmp_path):
    files = {"a.txt": b"alpha", "pkg/b.bin": bytes(5000), "pkg/deep/c": b"", "long": b"xy" * 9000}
    image = tmp_path / "fs.img"
    image.write_bytes(littlefs.build_filesystem(files, 512))
    script = READER.replace("IMAGE", repr(str(image)))
    script = script.replace("COUNT", str(image.stat().st_size // 512))
    done = subprocess.run(
        [Path(sys.executable).with_name("micropython"), "-X", "heapsize=160K", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = {line.split()[0].strip("/"): line.split()[1:] for line in done.stdout.splitlines()}
    assert seen == {path: [str(len(data)), str(sum(data))] for path, data in files.items()}


@pytest.mark.parametrize(
    "path", ["", "/abs", "a//b", "a/", "..", "a/../b", "./a", "x" * 256, "ü" * 128]
)
def test_paths_that_cannot_be_stored(path):
    with pytest.raises(LittlefsError) as caught:
        littlefs.build_filesystem({path: b""}, 512)
    assert caught.value.code == "fs_name"


def test_a_name_for_both_a_file_and_a_folder():
    with pytest.raises(LittlefsError) as caught:
        littlefs.build_filesystem({"a": b"", "a/b": b""}, 512)
    assert caught.value.code == "fs_name"


IMAGE = littlefs.build_filesystem(
    {"a": b"inline", "b": bytes(3000), "d/c": bytes(700), "d/e": b"x", "d/f/g": b"y"}, 512
)


@pytest.mark.parametrize(
    "break_it, code",
    [
        (lambda d: b"", "fs_magic"),
        (lambda d: b"\xff" * 4096, "fs_magic"),
        (lambda d: d[:-1], "fs_geometry"),
        (lambda d: d[:40] + b"\0" + d[41:552] + b"\0" + d[553:], "fs_geometry"),
    ],
)
def test_broken_images(break_it, code):
    with pytest.raises(LittlefsError) as caught:
        littlefs.read_filesystem(break_it(IMAGE))
    assert caught.value.code == code


class Log:
    """One metadata block, written tag by tag with right CRCs: whatever an attacker likes."""

    def __init__(self, revision=1):
        self.data = struct.pack("<I", revision)
        self.before = 0xFFFFFFFF
        self.start = 0

    def tag(self, kind, number, data, length=None):
        tag = kind << 20 | number << 10 | (len(data) if length is None else length)
        self.data += struct.pack(">I", tag ^ self.before) + data
        self.before = tag
        return self

    def commit(self, size):
        self.tag(0x500, 0x3FF, b"", size - len(self.data) - 4)
        crc = zlib.crc32(self.data[self.start :]) ^ 0xFFFFFFFF
        return (self.data + struct.pack("<I", crc)).ljust(size, b"\xff")


def forge(*tags, size=512, count=16, others=()):
    """A filesystem whose root is the given tags behind a right superblock."""
    log = Log()
    log.tag(0x0FF, 0, b"littlefs")
    log.tag(0x201, 0, struct.pack("<6I", 0x20000, size, count, 255, 0x7FFFFFFF, 1022))
    for tag in tags:
        log.tag(*tag)
    image = bytearray(b"\xff" * size * count)
    image[:size] = log.commit(size)
    for number, data in others:
        image[number * size : number * size + len(data)] = data
    return bytes(image)


def test_a_forged_filesystem_is_read_when_it_is_sound():
    file = (0x401, 1, b""), (0x001, 1, b"f"), (0x201, 1, b"data")
    assert littlefs.read_filesystem(forge(*file)).files == {"f": b"data"}
    assert littlefs.read_filesystem(forge(*file, (0x4FF, 1, b""))).files == {}


FOLDER = Log().tag(0x401, 0, b"").tag(0x002, 0, b"again").tag(0x200, 0, struct.pack("<II", 4, 5))


@pytest.mark.parametrize(
    "tags, others",
    [
        # A chain that points at itself, one out of bounds, one of absurd length.
        ([(0x001, 1, b"f"), (0x202, 1, struct.pack("<II", 3, 1500))], [(3, struct.pack("<I", 3))]),
        ([(0x001, 1, b"f"), (0x202, 1, struct.pack("<II", 0xFFFFFFFF, 10))], []),
        ([(0x001, 1, b"f"), (0x202, 1, struct.pack("<II", 3, 0x7FFFFFFF))], []),
        ([(0x001, 1, b"f"), (0x202, 1, struct.pack("<II", 3, 0))], []),
        # Folders: their own parent, the same blocks twice, out of bounds, without blocks.
        ([(0x002, 1, b"d"), (0x200, 1, struct.pack("<II", 0, 1))], []),
        ([(0x002, 1, b"d"), (0x200, 1, struct.pack("<II", 4, 4))], []),
        ([(0x002, 1, b"d"), (0x200, 1, struct.pack("<II", 99, 4))], []),
        ([(0x002, 1, b"d"), (0x200, 1, struct.pack("<II", 4, 5))], [(4, FOLDER.commit(512))]),
        ([(0x002, 1, b"d"), (0x201, 1, b"")], []),
        # A tail that leads back; names that are empty, odd or twice there; unknown kinds.
        ([(0x601, 0x3FF, struct.pack("<II", 0, 1))], []),
        ([(0x001, 1, b""), (0x201, 1, b"")], []),
        ([(0x001, 1, b"../x"), (0x201, 1, b"")], []),
        ([(0x001, 1, b"a\0b"), (0x201, 1, b"")], []),
        ([(0x001, 1, b"\xff\xfe"), (0x201, 1, b"")], []),
        ([(0x001, 1, b"a"), (0x201, 1, b""), (0x001, 2, b"a"), (0x201, 2, b"")], []),
        ([(0x003, 1, b"a"), (0x201, 1, b"")], []),
        ([(0x001, 1, b"a"), (0x2FF, 1, b"")], []),
        # Entries far out, tails of the wrong length.
        ([(0x401, 900, b"")], []),
        ([(0x4FF, 900, b"")], []),
        ([(0x001, 900, b"far")], []),
        ([(0x600, 0x3FF, b"abc")], []),
    ],
)
def test_hostile_images_are_refused(tags, others):
    with pytest.raises(LittlefsError) as caught:
        littlefs.read_filesystem(forge(*tags, others=others))
    assert caught.value.code in ("fs_damaged", "fs_geometry")


@pytest.mark.parametrize("size, count", [(513, 16), (64, 64), (8192, 2), (512, 1), (512, 1 << 31)])
def test_impossible_superblocks(size, count):
    log = Log().tag(0x0FF, 0, b"littlefs")
    log.tag(0x201, 0, struct.pack("<6I", 0x20000, size, count, 255, 0x7FFFFFFF, 1022))
    with pytest.raises(LittlefsError) as caught:
        littlefs.read_filesystem(log.commit(512) + b"\xff" * 7680)
    assert caught.value.code == "fs_geometry"


def test_another_version_is_refused():
    log = Log().tag(0x0FF, 0, b"littlefs")
    log.tag(0x201, 0, struct.pack("<6I", 0x30000, 512, 2, 255, 0x7FFFFFFF, 1022))
    with pytest.raises(LittlefsError) as caught:
        littlefs.read_filesystem(log.commit(512) + b"\xff" * 512)
    assert caught.value.code == "fs_version"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0x401, 0x4FF, 0x001, 0x002, 0x0FF, 0x200, 0x201, 0x202, 0x600, 0x601]),
            st.integers(0, 3) | st.just(0x3FF),
            st.binary(max_size=12)
            | st.tuples(st.integers(0, 20), st.integers(0, 9000)).map(
                lambda pair: struct.pack("<II", *pair)
            ),
        ),
        max_size=12,
    ),
    st.binary(max_size=1000),
)
def test_arbitrary_logs_are_read_or_refused_by_name(tags, junk):
    try:
        found = littlefs.read_filesystem(forge(*tags, others=[(2, junk)]))
    except LittlefsError:
        return
    assert sum(map(len, found.files.values())) <= found.size


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_anywhere_is_refused_or_harmless(data):
    image = bytearray(IMAGE)
    for _ in range(data.draw(st.integers(1, 6))):
        image[data.draw(st.integers(0, len(image) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        littlefs.read_filesystem(image)
    except LittlefsError:
        pass
