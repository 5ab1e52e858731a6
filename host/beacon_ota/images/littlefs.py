"""Reads LittleFS images that may be damaged or hostile.

The reader is this project's own: every block, chain and size is bounded by the image, so that an
uploaded file can be looked into. :mod:`beacon_ota.images.littlefs_writer` builds images.

On disk (version 2): directories are pairs of blocks, of which the newer valid one counts. A
block is a revision and commits; a commit is tags with data, and a CRC. Tags are XORed with the
tag before and log what happens to the directory's numbered entries. A file is inline in its
directory, or a chain of blocks, each pointing back (CTZ skip list). Source: littlefs SPEC.md.
"""

import struct
import zlib
from dataclasses import dataclass, field

from beacon_ota.errors import InputError
from beacon_ota.images import Buffer

MAGIC = b"littlefs"
MAGIC_OFFSET = 8
_SHAPE = 24  # offset of block size and count
VERSION = 0x0002_0000  # on-disk version written, readable by every littlefs 2
FILES_MAX = 1024
_SIZES = (512, 4096, 128, 256, 1024, 2048)  # of blocks; the likely ones first
DEPTH_MAX = 8

_NAME, _STRUCT, _SPLICE, _CRC, _TAIL = 0x000, 0x200, 0x400, 0x500, 0x600
_REGULAR, _DIRECTORY, _SUPERBLOCK = 0x001, 0x002, 0x0FF
_DIR_STRUCT, _INLINE, _CTZ = 0x200, 0x201, 0x202
_CREATE, _DELETE = 0x401, 0x4FF
_HARD_TAIL = 0x601
_NO_BLOCK = 0xFFFFFFFF


class LittlefsError(InputError):
    """An image is not a sound LittleFS, or cannot be made into one."""


@dataclass(frozen=True)
class Filesystem:
    """What an image holds: paths with ``/``, without one in front, and the files' bytes.

    Attributes:
        chains: path → numbers of a file's blocks, first to last; a file without any is inline.
        folders: path with ``/`` behind, "" the first → numbers of a folder's blocks.
    """

    block_size: int
    block_count: int
    version: tuple[int, int]
    files: dict[str, bytes]
    chains: dict[str, tuple[int, ...]] = field(default_factory=dict)
    folders: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return self.block_size * self.block_count


@dataclass
class _Entry:
    kind: int = 0
    name: bytes = b""
    struct: int = 0
    data: bytes = b""


@dataclass
class _Directory:
    entries: list[_Entry] = field(default_factory=list)
    tail: tuple[int, int] | None = None


def is_littlefs(data: Buffer, offset: int = 0) -> bool:
    """Tell whether a LittleFS begins at ``offset``, cheaply."""
    at = offset + MAGIC_OFFSET
    return bytes(data[at : at + len(MAGIC)]) == MAGIC


def stored_geometry(data: Buffer, offset: int = 0) -> tuple[int, int]:
    """Return block size and count from where they lie in an image as built: stage 0 looks there.

    littlefs moves them only when it writes to an image of an older version.
    """
    head = bytes(data[offset + _SHAPE : offset + _SHAPE + 8]).ljust(8, b"\0")
    block_size, count = struct.unpack("<II", head)
    return block_size, count


def filesystem_size(data: Buffer, offset: int = 0) -> int:
    """Return the bytes of the filesystem at ``offset`` from its first superblock alone.

    Raises:
        LittlefsError: ``fs_magic``, ``fs_geometry``.
    """
    block_size, count = _find_geometry(data, offset)
    return block_size * count


def read_filesystem(data: Buffer, offset: int = 0) -> Filesystem:
    """Read all files of the filesystem at ``offset``.

    Raises:
        LittlefsError: ``fs_magic`` (not LittleFS), ``fs_geometry`` (block size or count make no
            sense, or the image is cut short), ``fs_version``, ``fs_damaged``.
    """
    block_size, count = _find_geometry(data, offset)
    if len(data) - offset < block_size * count:
        raise LittlefsError(
            "fs_geometry",
            "the filesystem is cut short",
            found=f"{len(data) - offset} bytes",
            expected=f"{block_size * count} bytes",
        )
    reader = _Reader(memoryview(data)[offset : offset + block_size * count], block_size)
    files = reader.read_tree()
    return Filesystem(block_size, count, reader.version, files, reader.chains, reader.folders)


def _find_geometry(data: Buffer, offset: int) -> tuple[int, int]:
    """Return block size and count, which only the superblock tells.

    In a fresh image it lies at a fixed place; one that was written to may hold it anywhere in its
    first directory, of whatever block size.
    """
    if not is_littlefs(data, offset):
        head = bytes(data[offset + MAGIC_OFFSET : offset + MAGIC_OFFSET + len(MAGIC)])
        raise LittlefsError("fs_magic", "no LittleFS here", found=head.hex(), expected=MAGIC.hex())
    for block_size in _SIZES:
        blocks = [
            memoryview(data)[offset + at : offset + at + block_size] for at in (0, block_size)
        ]
        for entry in (entry for block in blocks for entry in _list_entries(block, block_size)):
            if entry.kind == _SUPERBLOCK and len(entry.data) >= 12:
                found, count = struct.unpack_from("<II", entry.data, 4)
                if found == block_size and 2 <= count <= 1 << 20:
                    return block_size, count
    raise LittlefsError(
        "fs_geometry",
        "no superblock with a possible block size and count",
        expected="blocks of 128 to 4096 bytes",
    )


def _list_entries(block: memoryview, block_size: int) -> list["_Entry"]:
    if len(block) < block_size:
        return []
    directory = _replay_commits(block)
    return directory.entries if directory else []


class _Reader:
    """Walks one image; no block is taken for a directory or a chain twice."""

    def __init__(self, view: memoryview, block_size: int):
        self.view = view
        self.block_size = block_size
        self.seen: set[int] = set()
        self.version = (0, 0)
        self.count = 0
        self.chains: dict[str, tuple[int, ...]] = {}
        self.folders: dict[str, tuple[int, ...]] = {}

    def read_tree(self) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        self.read_folder((0, 1), "", files)
        return files

    def read_folder(self, pair: tuple[int, int], path: str, files: dict[str, bytes]) -> None:
        if path.count("/") > DEPTH_MAX:
            raise _damage_error("folders nest too deep", path)
        following: tuple[int, int] | None = pair
        while following is not None:
            directory = self.read_directory(following)
            self.folders[path] = self.folders.get(path, ()) + following
            for entry in directory.entries:
                self.read_entry(entry, path, files)
            following = directory.tail

    def read_entry(self, entry: _Entry, path: str, files: dict[str, bytes]) -> None:
        if entry.kind == _SUPERBLOCK:
            self.check_superblock(entry)
            return
        self.count += 1
        if self.count > FILES_MAX:
            raise _damage_error("too many entries", self.count)
        try:
            name = path + entry.name.decode()
        except UnicodeDecodeError:
            raise _damage_error("a name is not text", entry.name.hex()) from None
        if not entry.name or b"/" in entry.name or b"\0" in entry.name or name in files:
            raise _damage_error("a name is empty, odd or twice there", name)
        if entry.kind == _DIRECTORY:
            if entry.struct != _DIR_STRUCT or len(entry.data) != 8:
                raise _damage_error("a folder without blocks", name)
            first, second = struct.unpack("<II", entry.data)
            self.read_folder((first, second), name + "/", files)
        elif entry.kind == _REGULAR and entry.struct == _INLINE:
            files[name] = entry.data
        elif entry.kind == _REGULAR and entry.struct == _CTZ and len(entry.data) == 8:
            head, size = struct.unpack("<II", entry.data)
            files[name] = self.read_chain(head, size, name)
        else:
            raise _damage_error("an entry of no known kind", name)

    def check_superblock(self, entry: _Entry) -> None:
        if entry.name != MAGIC or entry.struct != _INLINE or len(entry.data) < 24:
            raise _damage_error("the superblock is not complete", entry.name)
        version, block_size = struct.unpack_from("<II", entry.data)
        self.version = version >> 16, version & 0xFFFF
        if self.version[0] != 2:
            raise LittlefsError(
                "fs_version", "an unknown LittleFS version", found=self.version, expected="2.x"
            )
        if block_size != self.block_size:
            raise _damage_error("two block sizes", block_size)

    def claim_block(self, number: int) -> memoryview:
        """Return block ``number``, which nothing else may use."""
        if number in self.seen:
            raise _damage_error("a block is used twice", number)
        if (number + 1) * self.block_size > len(self.view):
            raise _damage_error("a block outside of the filesystem", number)
        self.seen.add(number)
        return self.view[number * self.block_size : (number + 1) * self.block_size]

    def read_directory(self, pair: tuple[int, int]) -> _Directory:
        """Return the newest valid state of a pair of blocks."""
        blocks = [self.claim_block(number) for number in pair]
        revisions = [struct.unpack_from("<I", block)[0] for block in blocks]
        if (revisions[1] - revisions[0]) & 0xFFFFFFFF < 0x80000000:
            blocks.reverse()
        for block in blocks:
            directory = _replay_commits(block)
            if directory is not None:
                return directory
        raise _damage_error("neither block of a folder is valid", pair)

    def read_chain(self, head: int, size: int, name: str) -> bytes:
        """Collect a file from its last block (``head``) to its first."""
        if not 0 < size <= len(self.view):
            raise _damage_error("a file is larger than the filesystem", name)
        index = _last_index(size, self.block_size)
        parts: list[bytes] = []
        numbers: list[int] = []
        while index >= 0:
            block = self.claim_block(head)
            numbers.append(head)
            skip = 4 * ((index & -index).bit_length()) if index else 0
            parts.append(bytes(block[skip:]))
            head = struct.unpack_from("<I", block)[0]
            index -= 1
        parts.reverse()
        self.chains[name] = tuple(reversed(numbers))
        data = b"".join(parts)
        if len(data) < size:
            raise _damage_error("a file's blocks are too few", name)
        return data[:size]


def _replay_commits(block: memoryview) -> _Directory | None:
    """Apply the commits of a block, up to the last whose CRC is right; None without any."""
    directory = _Directory()
    pending: list[tuple[int, int, bytes]] = []
    whole = False
    crc = zlib.crc32(block[:4])
    at, before = 4, 0xFFFFFFFF
    while at + 4 <= len(block):
        stored = struct.unpack_from(">I", block, at)[0]
        tag = stored ^ before
        kind, number, length = tag >> 20 & 0x7FF, tag >> 10 & 0x3FF, tag & 0x3FF
        if length == 0x3FF:  # the entry or attribute is gone
            length = 0
        if tag >> 31 or at + 4 + length > len(block):
            break
        crc = zlib.crc32(block[at : at + 4], crc)
        data = bytes(block[at + 4 : at + 4 + length])
        at += 4 + length
        before = tag
        if kind & 0x780 == _CRC:
            if length < 4 or struct.unpack_from("<I", data)[0] != crc ^ 0xFFFFFFFF:
                break
            room = len(block) // 8  # entries a block can hold: each takes a name and a struct
            if not all(_apply_tag(directory, room, *change) for change in pending):
                return None
            whole, pending, crc = True, [], 0
            before ^= (kind & 1) << 31
        else:
            crc = zlib.crc32(data, crc)
            pending.append((kind, number, data))
    return directory if whole else None


def _apply_tag(directory: _Directory, room: int, kind: int, number: int, data: bytes) -> bool:
    """Apply one tag; False when it makes no sense."""
    entries, group = directory.entries, kind & 0x700
    if kind == _CREATE:
        if number > len(entries) or number >= room:
            return False
        entries.insert(number, _Entry())
    elif kind == _DELETE:
        if number >= len(entries):
            return False
        del entries[number]
    elif group in (_NAME, _STRUCT):
        if number >= room:
            return False
        while number >= len(entries):  # a compacted log names entries in any order
            entries.append(_Entry())
        if group == _NAME:
            entries[number].kind, entries[number].name = kind, data
        else:
            entries[number].struct, entries[number].data = kind, data
    elif group == _TAIL:
        if len(data) != 8:
            return False
        first, second = struct.unpack("<II", data)
        hard = kind == _HARD_TAIL and _NO_BLOCK not in (first, second)
        directory.tail = (first, second) if hard else None
    return True


def _last_index(size: int, block_size: int) -> int:
    """Return the index of the block that holds a file's last byte."""
    at, room = size - 1, block_size - 8
    index = at // room
    if index == 0:
        return 0
    return (at - 4 * ((index - 1).bit_count() + 2)) // room


def _damage_error(what: str, found: object) -> LittlefsError:
    return LittlefsError("fs_damaged", f"the filesystem is damaged: {what}", found=found)
