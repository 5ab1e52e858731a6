"""Decides where the files of an app filesystem lie, so that the next release moves few sectors.

A beacon fetches and writes whole sectors of 4,096 bytes. A first layout puts the files one behind
the other. A layout that is made ``like`` an earlier image leaves every block where it was whose
content is the same, and gathers all others in as few sectors as have room for them: those with the
most blocks that nothing uses any more, or new ones at the end. The other sectors stay as they are,
byte for byte, old blocks included. Files that change often so come to lie together.

``app.json``, which every release changes, lies in the first sector with the metadata of the
folders; what of that does not fit lies in the next, where the erased halves of the metadata's pairs
are. The layout depends on the files and on the earlier image alone: the same input gives the same
bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from beacon_ota.images import Buffer, littlefs, littlefs_pack
from beacon_ota.images.littlefs import LittlefsError

SECTOR = 4096  # bytes: what flash erases at once
BLOCK = 256  # bytes of a block; see docs/images.md
SLACK = 6  # sectors that an image may have beyond what its files need
_PER_SECTOR = SECTOR // BLOCK


@dataclass(frozen=True)
class Layout:
    """Where everything lies in an app filesystem: numbers of blocks of ``BLOCK`` bytes.

    Attributes:
        pairs: blocks of the folders.
        chains: path → blocks of a file, first to last; inline files are not here.
        sectors: sectors of the image.
        rewritten: those that may differ from the earlier image's.
    """

    pairs: list[tuple[int, int]]
    chains: dict[str, list[int]]
    sectors: int
    rewritten: frozenset[int]


@dataclass(frozen=True)
class Earlier:
    """The app filesystem of an earlier image: its bytes, and where its files lie."""

    data: bytes
    found: littlefs.Filesystem


def read_earlier(data: Buffer, offset: int = 0) -> Earlier | None:
    """Return the filesystem at ``offset`` if a layout can be made like it.

    None for a filesystem of another block size: earlier releases of this program wrote those.
    """
    try:
        found = littlefs.read_filesystem(data, offset)
    except LittlefsError:
        return None
    if found.block_size != BLOCK or found.size % SECTOR:
        return None
    return Earlier(bytes(data[offset : offset + found.size]), found)


def build_app_filesystem(
    files: Mapping[str, bytes],
    volatile: str,
    earlier: Earlier | None = None,
    room: int | None = None,
) -> bytes:
    """Return an app filesystem; the same files and earlier image give the same bytes.

    Args:
        files: path → content.
        volatile: path of the file that every release changes.
        earlier: the image whose layout to keep; None for a first layout.
        room: bytes that the slot has for it; None if any number will do.

    Raises:
        LittlefsError: ``fs_name``.
    """
    layout = plan_layout(files, volatile, earlier, room)
    canvas = bytearray(b"" if earlier is None else earlier.data)
    for sector in layout.rewritten:
        begin = sector * SECTOR
        end = min(begin + SECTOR, len(canvas))
        canvas[begin:end] = b"\xff" * (end - begin)
    return littlefs_pack.pack_filesystem(
        files,
        BLOCK,
        layout.sectors * _PER_SECTOR,
        layout.chains,
        layout.pairs,
        bytes(canvas),
    )


def plan_layout(
    files: Mapping[str, bytes],
    volatile: str,
    earlier: Earlier | None = None,
    room: int | None = None,
) -> Layout:
    """Decide where files lie; arguments as for :func:`build_app_filesystem`."""
    chunks = {
        path: littlefs_pack.chunk_file(files[path], BLOCK)
        for path in sorted(files)
        if not littlefs_pack.is_inline(files[path])
    }
    volatile_chunks = chunks.pop(volatile, [])
    others = littlefs_pack.count_pairs(files, BLOCK) - 1
    first = 2 + len(volatile_chunks)
    pairs = [(0, 1), *((first + n, first + others + n) for n in range(others))]
    chains = {volatile: list(range(2, first))}
    reserved = _sectors_for(first + 2 * others)
    needed = reserved + _sectors_for(sum(map(len, chunks.values())))
    most = needed + (SLACK if room is None else min(SLACK, max(0, room // SECTOR - needed)))
    chosen: set[int] = set()
    if earlier is None:
        placed = _place_in_order(chunks, reserved * _PER_SECTOR)
    else:
        placement = _Placement(chunks, earlier, range(reserved, most))
        chosen = placement.choose_sectors()
        placed = placement.place(chosen)
    used = max((block for chain in placed.values() for block in chain), default=0)
    sectors = max(reserved, used // _PER_SECTOR + 1)
    rewritten = frozenset(chosen.union(range(reserved)))
    return Layout(pairs, {**(chains if volatile_chunks else {}), **placed}, sectors, rewritten)


def _sectors_for(blocks: int) -> int:
    return -(-blocks // _PER_SECTOR)


def _place_in_order(chunks: Mapping[str, list[bytes]], block: int) -> dict[str, list[int]]:
    placed = {}
    for path in chunks:
        placed[path] = list(range(block, block + len(chunks[path])))
        block += len(chunks[path])
    return placed


class _Placement:
    """Places the blocks of files like an earlier image's.

    Args:
        chunks: path → content of each block.
        room: the sectors that files may use.
    """

    def __init__(self, chunks: Mapping[str, list[bytes]], earlier: Earlier, room: range):
        self._chunks = chunks
        self._room = room
        self._before = _sectors_for(earlier.found.block_count)
        self._placed = {path: self._find_kept(path, earlier) for path in chunks}

    def choose_sectors(self) -> set[int]:
        """Return the fewest sectors that have room for all that does not stay."""
        wanted = sum(len(self._chunks[path]) - len(kept) for path, kept in self._placed.items())
        used = dict.fromkeys(self._room, 0)
        for kept in self._placed.values():
            for block in kept:
                used[block // _PER_SECTOR] += 1
        chosen: set[int] = set()
        for sector in sorted(used, key=lambda one: (used[one], one >= self._before, one)):
            if wanted <= 0:
                break
            chosen.add(sector)
            wanted -= _PER_SECTOR - used[sector]
        return chosen

    def place(self, sectors: set[int]) -> dict[str, list[int]]:
        """Return path → numbers of its blocks; only ``sectors`` change."""
        # What lies in these sectors and is the same moves together, away from what has changed:
        # the same files will change next time.
        settled = {path: self._settle(path, sectors) for path in self._placed}
        fixed = {block for path, kept in self._placed.items() for block in kept[: settled[path]]}
        order = sorted(
            sectors,
            key=lambda sector: (len(fixed.intersection(_blocks_of(sector))), sector),
        )
        free = [block for one in order for block in _blocks_of(one) if block not in fixed]
        first, last = 0, len(free)
        for path, kept in self._placed.items():
            missing = len(self._chunks[path]) - len(kept)
            if missing:
                kept += free[first : first + missing]
                first += missing
            elif settled[path] < len(kept):
                moved = len(kept) - settled[path]
                kept[settled[path] :] = free[last - moved : last]
                last -= moved
        return self._placed

    def _find_kept(self, path: str, earlier: Earlier) -> list[int]:
        """Return the blocks of a file that stay: same content and number, from the first on."""
        chain = earlier.found.chains.get(path, ())
        before = littlefs_pack.chunk_file(earlier.found.files.get(path, b""), BLOCK)
        kept: list[int] = []
        for block, old, new in zip(chain, before, self._chunks[path], strict=False):
            if old != new or block // _PER_SECTOR not in self._room:
                break
            kept.append(block)
        return kept

    def _settle(self, path: str, sectors: set[int]) -> int:
        """Return how many blocks of a file cannot move: a later block points to those before it."""
        kept = self._placed[path]
        number = len(kept)
        if number == len(self._chunks[path]):
            while number and kept[number - 1] // _PER_SECTOR in sectors:
                number -= 1
        return number


def _blocks_of(sector: int) -> range:
    return range(sector * _PER_SECTOR, (sector + 1) * _PER_SECTOR)
