"""Block indexes on the disk: a cache that may be damaged, lost, full or impossible."""

import asyncio
import hashlib
import os
import threading

import pytest

from beacon_ota.images import blocks
from beacon_ota.orchestrator.blobs import block_index
from beacon_ota.orchestrator.blobs.local import BlobDamaged, LocalBlobStore
from beacon_ota.orchestrator.limits import Limits

DATA = bytes(range(256)) * 40
INDEX = blocks.hash_sectors(DATA)
DIGEST = hashlib.sha256(DATA).hexdigest()


class Store:
    """A store with one image; ``reads`` counts how often that was read."""

    def __init__(self, folder, digest: str = DIGEST, data: bytes = DATA):
        self.reads = 0
        self.store = LocalBlobStore(folder)
        self.file = folder / "blocks" / digest
        self.store.path(digest).write_bytes(data)
        self.indexes = block_index.BlockIndexes(folder / "blocks", self._read, self.store._readers)

    def _read(self, digest: str) -> bytes:
        assert threading.current_thread() is not threading.main_thread()
        self.reads += 1
        return self.store.read_verified(digest)

    def load(self, digest: str = DIGEST) -> bytes:
        return asyncio.run(self.indexes.load(digest))


@pytest.fixture
def make(tmp_path):
    made = []

    def start() -> Store:
        made.append(Store(tmp_path))
        return made[-1]

    yield start
    for one in made:
        one.store.close()


def test_it_is_computed_once_and_read_from_the_disk_by_the_next_process(make):
    first = make()
    assert first.load() == first.load() == INDEX
    assert first.reads == 1
    second = make()
    assert second.load() == INDEX and second.reads == 0


def test_concurrent_readers_share_one_computation(make):
    store = make()

    async def several() -> list[bytes]:
        return await asyncio.gather(*(store.indexes.load(DIGEST) for _ in range(9)))

    assert asyncio.run(several()) == [INDEX] * 9
    assert store.reads == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: bytes(1 << 22),
        lambda data: data[8:],
    ],
)
def test_a_damaged_file_is_computed_again_and_replaced(make, damage):
    store = make()
    store.load()
    good = store.file.read_bytes()
    store.file.write_bytes(damage(good))
    again = make()
    assert again.load() == INDEX and again.reads == 1
    assert again.file.read_bytes() == good


def test_the_file_of_another_image_is_not_taken(make):
    store = make()
    store.load()
    other = b"another" * 2000
    digest = hashlib.sha256(other).hexdigest()
    store.store.path(digest).write_bytes(other)
    (store.file.parent / digest).write_bytes(store.file.read_bytes())
    assert store.load(digest) == blocks.hash_sectors(other)


def test_a_folder_that_cannot_be_written_costs_the_computation_only(make):
    store = make()
    store.file.parent.write_bytes(b"a file where the folder should be")
    assert store.load() == INDEX
    again = make()
    assert again.load() == INDEX and again.reads == 1


def test_a_damaged_image_gives_no_index(make):
    store = make()
    store.store.path(DIGEST).write_bytes(DATA[:-1] + b"?")
    with pytest.raises(BlobDamaged):
        store.load()
    assert not store.file.exists()
    store.store.path(DIGEST).write_bytes(DATA)
    assert store.load() == INDEX


def test_the_oldest_files_go_where_there_are_too_many(make, monkeypatch):
    monkeypatch.setattr(block_index, "LIMITS", Limits(block_indexes=3))
    store = make()
    names = []
    for number in range(6):
        data = b"%d" % number * 5000
        digest = hashlib.sha256(data).hexdigest()
        store.store.path(digest).write_bytes(data)
        assert store.load(digest) == blocks.hash_sectors(data)
        os.utime(store.file.parent / digest, (1000 + number, 1000 + number))
        names.append(digest)
    assert {one.name for one in store.file.parent.iterdir()} == set(names[-3:])


def test_an_index_goes_with_its_image(tmp_path):
    store = LocalBlobStore(tmp_path)
    store.path(DIGEST).write_bytes(DATA)
    assert asyncio.run(store.block_indexes.load(DIGEST)) == INDEX
    assert (tmp_path / "blocks" / DIGEST).is_file()
    store.remove(DIGEST)
    assert not (tmp_path / "blocks" / DIGEST).exists()
    with pytest.raises(BlobDamaged):
        asyncio.run(store.block_indexes.load(DIGEST))
    store.close()
