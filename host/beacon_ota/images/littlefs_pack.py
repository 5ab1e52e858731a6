"""Writes a LittleFS image whose files lie in given blocks, byte for byte the same for ever.

littlefs itself puts files where its allocator happens to be; here the caller decides
(:mod:`beacon_ota.images.app_layout`). The image is read-only: every pair of metadata blocks has
one commit, in its first block, and the second block is erased.

A file of up to ``INLINE`` bytes lies in its folder's metadata, any other in a chain of blocks, each
pointing back to earlier ones (a CTZ skip list). Source: littlefs SPEC.md, on-disk version 2.0.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from beacon_ota.images.littlefs import MAGIC, VERSION, LittlefsError
from beacon_ota.images.littlefs_writer import NAME_MAX, check_path

INLINE = 64  # bytes of a file that lies in its folder; MicroPython reads 128 at most
_FILE_MAX = 0x7FFFFFFF
_ATTRIBUTES_MAX = 1022
_REGULAR, _DIRECTORY, _SUPERBLOCK = 0x001, 0x002, 0x0FF
_DIR_STRUCT, _INLINE_STRUCT, _CTZ_STRUCT = 0x200, 0x201, 0x202
_CHECKSUM, _SOFT_TAIL, _HARD_TAIL = 0x500, 0x600, 0x601
_NOBODY = 0x3FF  # the entry of a tag that belongs to none
_REVISION = struct.pack("<I", 1)  # an erased block's revision is -1: it counts for older
_FRAME = 4 + 12 + 8  # bytes of a metadata block for revision, tail and checksum
_ROOT_ENTRY = 4 + 8 + 4 + 24  # bytes of the superblock
_ENTRY = 4 + 4 + 8  # bytes of an entry in a folder, beside its name

_Tag = tuple[int, int, bytes]  # type, entry, data


@dataclass(frozen=True)
class _Entry:
    name: str  # within its folder
    path: str
    folder: bool


def chunk_file(data: bytes, block_size: int) -> list[bytes]:
    """Return what each block of a file's chain holds beside its pointers, first to last."""
    chunks: list[bytes] = []
    at = 0
    while at < len(data):
        room = block_size - 4 * _pointer_count(len(chunks))
        chunks.append(data[at : at + room])
        at += room
    return chunks


def is_inline(data: bytes) -> bool:
    """Tell whether a file lies in its folder's metadata, and needs no block."""
    return len(data) <= INLINE


def count_pairs(files: Mapping[str, bytes], block_size: int) -> int:
    """Return how many pairs of metadata blocks the folders of these files need.

    Raises:
        LittlefsError: ``fs_name``: a path that cannot be stored.
    """
    return sum(len(pages) for _, pages in _list_folders(files, block_size))


def pack_filesystem(
    files: Mapping[str, bytes],
    block_size: int,
    block_count: int,
    chains: Mapping[str, Sequence[int]],
    pairs: Sequence[tuple[int, int]],
    canvas: bytes = b"",
) -> bytes:
    """Return an image with every file in the blocks that are given for it.

    Args:
        files: path → content.
        block_size: bytes, a power of two from 128 to 4096.
        block_count: blocks of the image.
        chains: path → numbers of the blocks of a file, for those that are not inline.
        pairs: of metadata blocks, as many as :func:`count_pairs` says; the first is (0, 1).
        canvas: what the blocks hold that nothing else uses; FF behind its end.

    Raises:
        LittlefsError: ``fs_name``.
    """
    size = block_size * block_count
    image = bytearray(canvas[:size].ljust(size, b"\xff"))

    def put(block: int, data: bytes) -> None:
        at = block * block_size
        image[at : at + block_size] = data.ljust(block_size, b"\xff")

    for path, chain in chains.items():
        chunks = chunk_file(files[path], block_size)
        for index, (block, chunk) in enumerate(zip(chain, chunks, strict=True)):
            pointers = [chain[index - (1 << step)] for step in range(_pointer_count(index))]
            put(block, struct.pack(f"<{len(pointers)}I", *pointers) + chunk)
    folders = list(_list_folders(files, block_size))
    firsts: dict[str, tuple[int, int]] = {}
    queue = list(pairs)
    placed: list[tuple[tuple[int, int], list[_Entry], bool]] = []
    for folder, pages in folders:
        firsts[folder] = queue[0]
        for number, page in enumerate(pages):
            placed.append((queue.pop(0), page, number < len(pages) - 1))
    for number, (pair, page, goes_on) in enumerate(placed):
        tags: list[_Tag] = []
        if number == 0:
            shape = struct.pack(
                "<6I", VERSION, block_size, block_count, NAME_MAX, _FILE_MAX, _ATTRIBUTES_MAX
            )
            tags += [(_SUPERBLOCK, 0, MAGIC), (_INLINE_STRUCT, 0, shape)]
        for index, entry in enumerate(page, len(tags) // 2):
            tags += _entry_tags(entry, index, files, chains, firsts)
        if number + 1 < len(placed):
            tail = _HARD_TAIL if goes_on else _SOFT_TAIL
            tags.append((tail, _NOBODY, struct.pack("<2I", *placed[number + 1][0])))
        put(pair[0], _commit(tags, block_size))
        put(pair[1], b"")
    return bytes(image)


def _pointer_count(index: int) -> int:
    """Return how many pointers the block ``index`` of a chain begins with."""
    return (index & -index).bit_length()


def _list_folders(
    files: Mapping[str, bytes], block_size: int
) -> Iterator[tuple[str, list[list[_Entry]]]]:
    """Yield each folder with its entries, in pages that fit into a metadata block; "" comes first.

    Raises:
        LittlefsError: ``fs_name``.
    """
    found: dict[str, dict[str, _Entry]] = {"": {}}
    for path in files:
        check_path(path, files)
        folder = ""
        *parts, name = path.split("/")
        for part in parts:
            below = f"{folder}{part}/"
            found[folder][part] = _Entry(part, below, True)
            found.setdefault(below, {})
            folder = below
        found[folder][name] = _Entry(name, path, False)
    for folder in sorted(found):
        pages: list[list[_Entry]] = [[]]
        room = block_size - _FRAME - (0 if folder else _ROOT_ENTRY)
        for name in sorted(found[folder], key=str.encode):
            entry = found[folder][name]
            need = _ENTRY + len(name.encode())
            if not entry.folder and is_inline(files[entry.path]):
                need += len(files[entry.path]) - 8
            if need > room:
                pages.append([])
                room = block_size - _FRAME
            if need > room:
                raise LittlefsError("fs_name", "a name is too long for the blocks", found=name)
            pages[-1].append(entry)
            room -= need
        yield folder, pages


def _entry_tags(
    entry: _Entry,
    index: int,
    files: Mapping[str, bytes],
    chains: Mapping[str, Sequence[int]],
    firsts: Mapping[str, tuple[int, int]],
) -> list[_Tag]:
    name = entry.name.encode()
    if entry.folder:
        pair = struct.pack("<2I", *firsts[entry.path])
        return [(_DIRECTORY, index, name), (_DIR_STRUCT, index, pair)]
    data = files[entry.path]
    if is_inline(data):
        return [(_REGULAR, index, name), (_INLINE_STRUCT, index, data)]
    head = struct.pack("<2I", chains[entry.path][-1], len(data))
    return [(_REGULAR, index, name), (_CTZ_STRUCT, index, head)]


def _commit(tags: Sequence[_Tag], block_size: int) -> bytes:
    """Return a metadata block with one commit that fills it to its end."""
    out = bytearray(_REVISION)
    before = 0xFFFFFFFF
    for kind, number, data in tags:
        tag = kind << 20 | number << 10 | len(data)
        out += struct.pack(">I", tag ^ before) + data
        before = tag
    # The padding belongs to the checksum's tag; a tag's length has ten bits, all ones is none.
    padding = min(block_size - len(out) - 4, 1022)
    out += struct.pack(">I", (_CHECKSUM << 20 | _NOBODY << 10 | padding) ^ before)
    return bytes(out) + struct.pack("<I", zlib.crc32(out) ^ 0xFFFFFFFF)
