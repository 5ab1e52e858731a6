"""The pages of an NVS partition: their order, and what a power cut while pages move leaves."""

import pytest

from beacon_ota.images import nvs_format
from beacon_ota.images.nvs_format import Item, PageState, Type
from beacon_ota.images.partition_table import Partition
from beacon_ota.virtual.flash import esp_errors
from beacon_ota.virtual.flash.esp_errors import EspError
from beacon_ota.virtual.flash.nor import Flash, PowerCut, PowerCutPoint
from beacon_ota.virtual.flash.nvs_pages import PageManager

PART = Partition("nvs", 1, 2, 0, 4 * 0x1000)


def manager(flash: Flash) -> PageManager:
    return PageManager(flash, PART, faithful=True)


def number(value: int) -> Item:
    return Item.number(1, b"n%d" % value, Type.I32, value)


def filled(flash: Flash) -> PageManager:
    """Return a manager whose pages are in use but one, each with two live items."""
    pages = manager(flash)
    for first in (0, 2, 4):
        pages.pages[-1].write_item(number(first))
        pages.pages[-1].write_item(number(first + 1))
        if first < 4:
            pages.start_page()
    return pages


def stored(pages: PageManager) -> list[int]:
    return sorted(item.value for page in pages.pages for _, item in page.items())


def test_pages_keep_their_order():
    flash = Flash.blank(PART.size)
    pages = filled(flash)
    assert [page.state for page in pages.pages] == [
        PageState.FULL,
        PageState.FULL,
        PageState.ACTIVE,
    ]
    again = manager(flash)
    assert [page.sequence for page in again.pages] == [page.sequence for page in pages.pages]
    assert stored(again) == list(range(6)) and len(again.free) == 1


def test_no_free_page_is_an_error():
    flash = Flash.blank(PART.size)
    for index in range(4):
        flash.overwrite(index * 0x1000, nvs_format.pack_header(index))
    with pytest.raises(EspError) as caught:
        manager(flash)
    assert caught.value.code == esp_errors.NVS_NO_FREE_PAGES


@pytest.mark.parametrize("when", ["before", "inside", "after"])
def test_a_cut_while_items_move_loses_none(when):
    """The emptiest page gives way to a new one; the power fails at each operation of that."""
    for at in range(100):
        flash = Flash.blank(PART.size)
        pages = filled(flash)
        flash.cut = PowerCutPoint(flash.ops + at, when, seed=at)
        try:
            pages.start_page()
        except PowerCut:
            flash.power_on()
            assert stored(manager(flash)) == list(range(6)), at
        else:
            assert at > 3, "no operation was cut"
            return
    raise AssertionError("the pages were never moved")
