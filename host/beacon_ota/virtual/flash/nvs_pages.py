"""The pages of an NVS partition: their order, the free ones, and the recovery of a power cut.

Source: ESP-IDF v5.5.1 ``components/nvs_flash/src/nvs_pagemanager.cpp``.
"""

from beacon_ota.images.nvs_format import CHUNK_ANY, ENTRIES, PAGE, Item, PageState, Type
from beacon_ota.images.partition_table import Partition
from beacon_ota.virtual.flash import esp_errors
from beacon_ota.virtual.flash.esp_errors import EspError
from beacon_ota.virtual.flash.nor import Flash
from beacon_ota.virtual.flash.nvs_page import BUSY, NvsPage


class PageManager:
    """The pages of one NVS partition.

    Args:
        flash: the chip that holds the partition.
        part: the partition, three pages or more.
        faithful: keep the defects of ESP-IDF, see :mod:`.nvs`.

    Attributes:
        pages: pages in use, the oldest first; the last one takes new items.
        free: blank and corrupt pages.

    Raises:
        EspError: ``NVS_NO_FREE_PAGES``, ``NVS_NEW_VERSION_FOUND``, or of the flash.
    """

    def __init__(self, flash: Flash, part: Partition, *, faithful: bool):
        base, count = part.offset, part.size // PAGE
        every = [NvsPage(flash, base + i * PAGE, faithful) for i in range(count)]
        self.free = [page for page in every if page.state not in BUSY]
        self.pages = sorted(
            (page for page in every if page.state in BUSY), key=lambda page: page.sequence
        )
        self._sequence = self.pages[-1].sequence + 1 if self.pages else 0
        if self.pages:
            self._erase_duplicate()
            self._finish_freeing()
            if not self.free:
                raise EspError(esp_errors.NVS_NO_FREE_PAGES)
        else:
            self.activate_page()

    def activate_page(self) -> None:
        if not self.free:
            raise EspError(esp_errors.NVS_NOT_ENOUGH_SPACE)
        page = self.free[0]
        if page.state == PageState.CORRUPT:
            page.erase()
        self.free.pop(0)
        page.sequence = self._sequence
        self._sequence += 1
        self.pages.append(page)

    def request_page(self) -> None:
        """Provide a page to write to; move the items of the emptiest page when pages run out."""
        if not self.free:
            raise EspError(esp_errors.NVS_INVALID_STATE)
        if len(self.free) >= 2:
            self.activate_page()
            return
        victim = min(self.pages, key=lambda page: page.used)  # the oldest of equals
        if victim.used == ENTRIES:
            raise EspError(esp_errors.NVS_NOT_ENOUGH_SPACE)
        victim.set_state(PageState.FREEING)
        self._move_items(victim)

    def start_page(self) -> None:
        """Close the current page and open another one."""
        page = self.pages[-1]
        if page.state == PageState.ACTIVE:
            page.set_state(PageState.FULL)
        elif page.state != PageState.FULL:
            raise EspError(esp_errors.NVS_INVALID_STATE)
        self.request_page()

    def _move_items(self, victim: NvsPage) -> None:
        self.activate_page()
        victim.copy_to(self.pages[-1])
        victim.erase()
        self.pages.remove(victim)
        self.free.append(victim)

    def _erase_duplicate(self) -> None:
        """Erase the older value under the key of the last item, if there is one."""
        *older, last = self.pages
        written = [item for _, item in last.items()]
        if not written:
            return
        newest = written[-1]
        chunk = newest.chunk
        types = (Type.INDEX, Type.BLOB) if newest.type == Type.INDEX else (Type(newest.type),)
        for type in types:
            for page in older:
                if page.state == PageState.FREEING:
                    continue
                found = page.find_item(newest.namespace, type, newest.key, chunk)
                if found is not None:
                    page.erase_item(found[0])
                    return

    def _finish_freeing(self) -> None:
        """Repeat the move of a page that a power cut interrupted, onto a clean page."""
        victim = next((page for page in self.pages if page.state == PageState.FREEING), None)
        if victim is None:
            return
        half = self.pages[-1]
        if half.state == PageState.ACTIVE:
            half.erase()
            self.pages.remove(half)
            self.free.append(half)
        self._move_items(victim)

    def find_item(
        self,
        namespace: int,
        type: Type | None,
        key: bytes,
        chunk: int = CHUNK_ANY,
        version: int | None = None,
    ) -> tuple[NvsPage, int, Item] | None:
        for page in self.pages:
            found = page.find_item(namespace, type, key, chunk, version)
            if found is not None:
                return page, *found
        return None
