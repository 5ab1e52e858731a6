"""LittleFS images with files in given blocks: littlefs, MicroPython and our reader agree."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings

from beacon_ota.images import littlefs, littlefs_pack
from beacon_ota.images.littlefs import LittlefsError
from tests.images.test_littlefs import READER, listing, trees


def pack(files, block_size, reverse=False):
    """Return an image with one file behind the other, or all blocks in reverse, and its chains."""
    pairs = littlefs_pack.count_pairs(files, block_size)
    need = {
        path: len(littlefs_pack.chunk_file(data, block_size))
        for path, data in files.items()
        if not littlefs_pack.is_inline(data)
    }
    count = 2 * pairs + sum(need.values())
    free = list(range(2, count))
    if reverse:
        free.reverse()
    taken = [(0, 1), *((free.pop(0), free.pop(0)) for _ in range(pairs - 1))]
    chains = {path: [free.pop(0) for _ in range(number)] for path, number in need.items()}
    image = littlefs_pack.pack_filesystem(files, block_size, count, chains, taken)
    return image, chains


def mounted(image, block_size):
    from littlefs import LittleFS, UserContext

    return LittleFS(
        UserContext(buffer=bytearray(image)),
        block_size=block_size,
        block_count=len(image) // block_size,
        disk_version=littlefs.VERSION,
        read_size=32,
        prog_size=32,
        cache_size=128,
        lookahead_size=32,
    )


@settings(max_examples=30, deadline=None)
@given(trees())
@pytest.mark.parametrize("block_size", [128, 256, 512, 4096])
@pytest.mark.parametrize("reverse", [False, True])
def test_littlefs_and_our_reader_read_it(block_size, reverse, files):
    image, chains = pack(files, block_size, reverse)
    found = littlefs.read_filesystem(image)
    assert found.files == files
    assert found.version == (2, 0)
    assert {path: list(chain) for path, chain in found.chains.items()} == chains
    assert littlefs.stored_geometry(image) == (block_size, len(image) // block_size)
    assert listing(mounted(image, block_size)) == files


FILES = {
    f"{folder}m{n}.mpy": bytes([n]) * (n * 97) for folder in ("", "a/", "b/") for n in range(24)
}


def test_micropython_reads_it(tmp_path):
    image, _ = pack(FILES, 256, reverse=True)
    file = tmp_path / "image"
    file.write_bytes(image)
    script = READER.replace("512", "256")
    done = subprocess.run(
        [
            Path(sys.executable).with_name("micropython"),
            "-X",
            "heapsize=160K",
            "-c",
            f"IMAGE, COUNT = {str(file)!r}, {len(image) // 256}\n{script}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.stderr
    found = {tuple(line.removeprefix("/").split()) for line in done.stdout.splitlines()}
    assert found == {(path, str(len(data)), str(sum(data))) for path, data in FILES.items()}


def test_littlefs_can_write_to_it():
    image, _ = pack(FILES, 256)
    fs = mounted(image, 256)
    fs.remove("a/m23.mpy")
    with fs.open("a/new", "wb") as file:
        file.write(b"new" * 100)
    expected = {**FILES, "a/new": b"new" * 100}
    del expected["a/m23.mpy"]
    assert listing(fs) == expected
    assert littlefs.read_filesystem(bytes(fs.context.buffer)).files == expected


def test_the_bytes_are_the_same_for_ever():
    image, _ = pack(FILES, 256)
    assert (
        hashlib.sha256(image).hexdigest()
        == "e8aa980d6727a8372f67ebe4275b854767ec63ea0d0b1691861a42a7ead2cc89"
    )


def test_what_lies_in_unused_blocks_stays():
    canvas = bytes(range(256)) * 8
    image = littlefs_pack.pack_filesystem(
        {"f": b"x" * 300}, 256, 10, {"f": [3, 7]}, [(0, 1)], canvas
    )
    assert image[2 * 256 : 3 * 256] == canvas[2 * 256 : 3 * 256]
    assert image[4 * 256 : 7 * 256] == canvas[4 * 256 : 7 * 256]
    assert image[8 * 256 :] == b"\xff" * 512
    assert littlefs.read_filesystem(image).files == {"f": b"x" * 300}


@pytest.mark.parametrize("path", ["", "/", "a//b", "./a", "x" * 256, "x" * 230])
def test_paths_that_cannot_be_stored(path):
    with pytest.raises(LittlefsError) as caught:
        littlefs_pack.count_pairs({path: b""}, 256)
    assert caught.value.code == "fs_name"
