"""The block index: what it is made of, and what is refused."""

import hashlib

import pytest

from beacon_ota.errors import InputError
from beacon_ota.images import blocks
from tests.orchestrator.world import image


def test_eight_bytes_of_the_sha256_of_each_sector_in_order():
    data = image("1.0.0")
    index = blocks.hash_sectors(data)
    assert len(index) == blocks.index_size(len(data)) == len(data) // 4096 * 8
    for number, found in enumerate(blocks.split_index(index)):
        sector = data[4096 * number : 4096 * (number + 1)]
        assert found == hashlib.sha256(sector).digest()[:8]


def test_a_last_sector_that_is_shorter_is_hashed_as_it_is():
    data = bytes(4096) + b"tail"
    index = blocks.hash_sectors(data)
    assert index[8:] == hashlib.sha256(b"tail").digest()[:8]
    assert len(index) == blocks.index_size(len(data)) == 16
    assert blocks.hash_sectors(b"") == b""


@pytest.mark.parametrize("size", [0, 8, 12, 24])
def test_an_index_of_another_length_is_refused(size):
    with pytest.raises(InputError) as caught:
        blocks.check_index(bytes(size), 4097)
    assert caught.value.code == "blocks_size"
