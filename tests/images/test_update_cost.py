"""What an update costs, by the beacon's rules: what is kept, copied, fetched and written."""

import pytest

from beacon_ota.images import blocks, update_cost
from beacon_ota.images.blocks import SECTOR
from beacon_ota.images.update_cost import FLASH_S, RADIO, START_S, estimate_cost, full_cost


def index(*sectors: int) -> bytes:
    """Return the index of an image with one byte value a sector."""
    return blocks.hash_sectors(b"".join(bytes([one]) * SECTOR for one in sectors))


NEW = index(1, 2, 3, 4)
SIZE = 4 * SECTOR


@pytest.mark.parametrize(
    ("running", "other", "sectors", "written"),
    [
        (index(1, 2, 3, 4), index(1, 2, 3, 4), 0, 1),  # the first sector is always written
        (index(1, 2, 9, 4), index(1, 2, 9, 4), 1, 2),
        (index(1, 2, 9, 4), index(1, 2, 3, 4), 0, 1),  # there already: an earlier attempt's
        (index(1, 2, 3, 4), index(9, 9, 9, 9), 0, 4),  # all of it is copied
        (index(1, 2, 3, 4), None, 0, 4),
        (None, index(9, 2, 3, 4), 1, 1),
        (index(1, 2), index(1, 2, 3), 1, 2),
        (index(9, 9, 9, 9), index(8, 8, 8, 8), 4, 4),
    ],
)
def test_a_sector_is_fetched_when_neither_slot_has_it(running, other, sectors, written):
    cost = estimate_cost(SIZE, NEW, running, other)
    assert cost.fetched == sectors * SECTOR + len(NEW)
    assert (cost.written, cost.kept) == (written, 4 - written)
    assert cost.basis == "index"


def test_the_first_sector_of_an_encrypted_release_is_fetched_anyway():
    cost = estimate_cost(SIZE, NEW, NEW, NEW, encrypted=True)
    assert cost.fetched == SECTOR + len(NEW) and cost.written == 1


def test_the_last_sector_counts_as_long_as_it_is():
    size = SIZE - 1000
    cost = estimate_cost(size, NEW, index(1, 2, 3, 9))
    assert cost.fetched == SECTOR - 1000 + len(NEW)


def test_without_an_index_the_core_stays_and_the_app_comes():
    cost = estimate_cost(SIZE, None, NEW, NEW, core_sectors=3)
    assert (cost.fetched, cost.written, cost.basis) == (SECTOR, 4, "core")
    sealed = estimate_cost(SIZE, None, NEW, NEW, core_sectors=3, encrypted=True)
    assert sealed.fetched == 2 * SECTOR
    assert estimate_cost(SIZE, None, NEW, NEW) == full_cost(SIZE)


def test_nothing_known_is_everything():
    assert full_cost(SIZE).fetched == SIZE and full_cost(SIZE).written == 4
    assert estimate_cost(SIZE, NEW, None).fetched == SIZE + len(NEW)


def test_seconds_are_radio_and_flash():
    full = full_cost(1_781_760)
    assert full.written == 435
    assert full.seconds == pytest.approx(
        START_S + 1_781_760 / RADIO + 435 * FLASH_S + 435 * update_cost.CHECK_S, abs=0.1
    )
    assert estimate_cost(SIZE, NEW, NEW, NEW).seconds < 1
