"""Compares two release images: what a beacon on the first would fetch, erase and take from flash.

By sector, because that is what moves; and by file of the app, because that is what changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from beacon_ota.errors import InputError
from beacon_ota.images import Buffer, blocks, littlefs, update_cost
from beacon_ota.images.blocks import SECTOR
from beacon_ota.images.release import Release, parse_release
from beacon_ota.images.update_cost import UpdateCost

CORE = "core"
FOLDERS = "folders"  # the metadata of the app filesystem


@dataclass(frozen=True)
class FileChange:
    """A file of the app that two releases do not have in common.

    Attributes:
        name: path in the app.
        how: ``changed``, ``new``, ``gone``; ``moved``: same content, other blocks.
        before, after: bytes of its content; None where it is not there.
        sectors: numbers of the sectors of the second image that have to be fetched and hold part
            of it.
    """

    name: str
    how: str
    before: int | None
    after: int | None
    sectors: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """What changes from one release to another.

    Attributes:
        same_core: whether both have the same core.
        fetched: numbers of the sectors of the second image that the first does not have.
        parts: what lies in each of those sectors: names of files, ``CORE``, ``FOLDERS``; a sector
            without any holds blocks that nothing uses.
        files: the files that changed, by name.
        cost: of the update, on a beacon whose other slot holds the first release, too.
        full: what a download of everything costs.
    """

    same_core: bool
    fetched: tuple[int, ...]
    parts: dict[int, tuple[str, ...]]
    files: tuple[FileChange, ...]
    cost: UpdateCost
    full: UpdateCost


def compare_releases(before: Buffer, after: Buffer) -> Comparison:
    """Compare two plain release images.

    Raises:
        ImageError, AppError: one is no release, as :func:`parse_release` says.
        InputError: ``device_type``: they are for different boards.
    """
    first, second = parse_release(before), parse_release(after)
    if first.info.device_type != second.info.device_type:
        raise InputError(
            "device_type",
            "the two releases are for different boards",
            found=second.info.device_type,
            expected=first.info.device_type,
        )
    known, wanted = blocks.hash_sectors(before), blocks.hash_sectors(after)
    pairs = enumerate(blocks.split_index(wanted))
    old = list(blocks.split_index(known))
    fetched = tuple(n for n, one in pairs if n >= len(old) or old[n] != one)
    places = locate_parts(after, second)
    parts = {n: tuple(sorted(places.get(n, ()))) for n in fetched}
    chains = tuple(_chains_of(data, one) for data, one in ((before, first), (after, second)))
    return Comparison(
        first.core_sha256 == second.core_sha256,
        fetched,
        parts,
        tuple(_list_changes(first.files, second.files, chains, parts)),
        update_cost.estimate_cost(second.size, wanted, known, known),
        update_cost.full_cost(second.size),
    )


def list_changed_files(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[str]:
    """Return the names of the files that differ, are new or are gone, sorted."""
    return sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )


def _filesystem_of(data: Buffer, found: Release) -> littlefs.Filesystem | None:
    return None if found.app_offset is None else littlefs.read_filesystem(data, found.app_offset)


def _chains_of(data: Buffer, found: Release) -> Mapping[str, Sequence[int]]:
    filesystem = _filesystem_of(data, found)
    return {} if filesystem is None else filesystem.chains


def locate_parts(data: Buffer, found: Release) -> dict[int, set[str]]:
    """Return the names of the parts that lie in each sector of an image."""
    places: dict[int, set[str]] = {}
    for sector in range(-(-found.core.length // SECTOR)):
        places[sector] = {CORE}
    filesystem = _filesystem_of(data, found)
    if filesystem is None:
        return places
    assert found.app_offset is not None
    named = {**filesystem.chains, FOLDERS: sum(filesystem.folders.values(), ())}
    for name, numbers in named.items():
        for number in numbers:
            first = found.app_offset + number * filesystem.block_size
            last = first + filesystem.block_size - 1
            for sector in range(first // SECTOR, last // SECTOR + 1):
                places.setdefault(sector, set()).add(name)
    return places


def _list_changes(
    before: Mapping[str, bytes],
    after: Mapping[str, bytes],
    chains: Sequence[Mapping[str, Sequence[int]]],
    parts: Mapping[int, Sequence[str]],
) -> list[FileChange]:
    found = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        sectors = tuple(sector for sector, names in parts.items() if name in names)
        if old is None:
            how = "new"
        elif new is None:
            how = "gone"
        elif old != new:
            how = "changed"
        elif chains[0].get(name) != chains[1].get(name):
            how = "moved"
        else:
            continue
        before_size, after_size = (None if one is None else len(one) for one in (old, new))
        found.append(FileChange(name, how, before_size, after_size, sectors))
    return found
