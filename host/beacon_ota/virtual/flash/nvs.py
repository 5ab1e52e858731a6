"""NVS as the chip keeps it: pages in flash that survive power cuts, written as ESP-IDF does.

A set writes the new item behind the last one, marks its entries written, then marks the old
item's entries erased: two bits per entry, only ever cleared. A full page gives way to a new
one; when only one free page is left, the page with the fewest used entries is marked
*freeing*, its items are copied to the free page, and it is erased. What a power cut leaves
half done is cleaned up at the next start (:meth:`Nvs.__init__`).

ESP-IDF's own recovery (v5.2 to v6.0, ``Page::mLoadEntryTable``) loses a blob in one case: power
fails between the last mark of the new value's data and the first byte of its index, and the
old data lie on the same page; they then pass for a duplicate and are erased. A failed write of a
blob of several chunks can erase the old chunk as well (``Storage::writeMultiPageBlob``). Both
are modelled when ``faithful`` is true.

Source: ESP-IDF v5.5.1 ``components/nvs_flash/src/nvs_{page,pagemanager,storage}.cpp``.
"""

import contextlib
import itertools
import random

from beacon_ota.images import nvs as codec
from beacon_ota.images.nvs import (
    CHUNK_ANY,
    CHUNK_MAX,
    ENTRIES,
    ENTRY,
    KEY_MAX,
    NAMESPACES,
    PAGE,
    Item,
    PageState,
    Type,
)
from beacon_ota.images.partitions import Partition
from beacon_ota.virtual.flash import esp_errors
from beacon_ota.virtual.flash.esp_errors import EspError
from beacon_ota.virtual.flash.nor import FLASH_OP_FAIL, Flash, FlashError
from beacon_ota.virtual.flash.nvs_page import BUSY, NvsPage

VERSIONS = (0x00, 0x80)  # first chunk index of a blob's two versions
NAMESPACES_MAX = 254
FILLER = "filler"  # the namespace of what takes all the room


class Nvs:
    """The settings of one beacon.

    Making one is ``nvs_flash_init``: it recovers what a power cut left, and erases everything
    when no page is free or the format is newer, as the MicroPython port does.

    Args:
        flash: where the partition lies.
        part: the partition, three pages or more.
        faithful: keep ESP-IDF's own defects, see the module's text.

    Attributes:
        worn: the share of changes, 0 to 1, that fail with ``ESP_ERR_FLASH_OP_FAIL`` and leave
            everything as it was. Reading goes on: that is kinder than ESP-IDF, which gives up a
            page after a failed write until the next start (what :class:`.flash.Faults` brings).
    """

    failure_share: float = 0.0

    def __init__(self, flash: Flash, part: Partition, *, faithful: bool = True):
        self._flash, self._part, self._faithful = flash, part, faithful
        self._chance = random.Random(0)
        try:
            self._load_pages()
        except EspError as error:
            if error.code not in (esp_errors.NVS_NO_FREE_PAGES, esp_errors.NVS_NEW_VERSION_FOUND):
                raise
            try:
                flash.erase(part.offset, part.size)
            except FlashError as failure:
                raise EspError(failure.code) from failure
            self._load_pages()

    def wear(self) -> dict[int, int]:
        """Return erases per page of the partition since the flash was made."""
        first = self._part.offset // PAGE
        return {i: self._flash.wear[first + i] for i in range(self._part.size // PAGE)}

    def open_namespace(self, name: str) -> int:
        """Return the index of a namespace; a new one is created by a write."""
        raw = name.encode()
        for known, index in self._names.items():
            if known[:KEY_MAX] == raw[:KEY_MAX]:
                return index
        if len(raw) > KEY_MAX:
            raise EspError(esp_errors.NVS_KEY_TOO_LONG)
        self._fail_by_chance()
        taken = set(self._names.values())
        index = next((i for i in range(1, NAMESPACES_MAX + 1) if i not in taken), None)
        if index is None:
            raise EspError(esp_errors.NVS_NOT_ENOUGH_SPACE)
        self._write_item(Item.number(NAMESPACES, raw, Type.U8, index))
        self._names[raw] = index
        return index

    def set(self, namespace: int, key: str, value: int | bytes) -> None:
        """Store an i32 or a blob. It is durable when this returns."""
        raw = key.encode()
        old = self._find_item(namespace, Type.INDEX if isinstance(value, bytes) else Type.I32, raw)
        matched = old is not None
        if old is None:
            old = self._find_item(namespace, None, raw)
        if matched and self._read_value(namespace, raw, type(value)) == value:
            return
        if len(raw) > KEY_MAX:
            raise EspError(esp_errors.NVS_KEY_TOO_LONG)
        self._fail_by_chance()
        if isinstance(value, bytes):
            first = VERSIONS[0]
            if old is not None and matched:
                first = VERSIONS[1] if old[2].chunks[1] == VERSIONS[0] else VERSIONS[0]
            self._write_blob(namespace, raw, value, first)
        else:
            self._write_item(Item.number(namespace, raw, Type.I32, value))
        if old is not None:
            self._erase_old(namespace, raw, old)

    def get(self, namespace: int, key: str, kind: type[int] | type[bytes]) -> int | bytes | None:
        """Return an i32 (``kind`` int) or a blob (bytes), None when there is none."""
        return self._read_value(namespace, key.encode(), kind)

    def erase(self, namespace: int, key: str) -> None:
        """Erase a key of any type (``NVS_NOT_FOUND``)."""
        raw = key.encode()
        found = self._find_item(namespace, None, raw)
        if found is None:
            raise EspError(esp_errors.NVS_NOT_FOUND)
        self._fail_by_chance()
        page, index, item = found
        if item.type == Type.INDEX:
            self._erase_blob(namespace, raw)
        else:
            page.erase_item(index)

    def read_all(self) -> dict[tuple[str, str], int | bytes]:
        """Return every i32 and blob by (namespace, key)."""
        names = {index: name.decode("ascii", "replace") for name, index in self._names.items()}
        found: dict[tuple[str, str], int | bytes] = {}
        for page in self._pages:
            for _, item in list(page.items()):
                if item.namespace in names and item.type in (Type.I32, Type.INDEX, Type.BLOB):
                    kind = int if item.type == Type.I32 else bytes
                    value = self._read_value(item.namespace, item.key, kind)
                    if value is not None:
                        key = item.key.decode("ascii", "replace")
                        found[names[item.namespace], key] = value
        return found

    def fill_space(self) -> None:
        """Let another part of the firmware take all the room that is left."""
        namespace = self.open_namespace(FILLER)
        numbers = itertools.count()
        for size in (2000, 500, 100, 0):  # the last gaps are for numbers, one entry each
            with contextlib.suppress(EspError):
                while True:
                    number = next(numbers)
                    self.set(namespace, f"n{number}", bytes(size) or number)

    def free_space(self) -> None:
        """Give the room back that :meth:`fill` took."""
        if FILLER.encode() not in self._names:
            return
        namespace = self.open_namespace(FILLER)
        for space, key in list(self.read_all()):
            if space == FILLER:
                self.erase(namespace, key)

    def _fail_by_chance(self) -> None:
        if self.failure_share and self._chance.random() < self.failure_share:
            raise EspError(FLASH_OP_FAIL)

    # Pages

    def _load_pages(self) -> None:
        base, count = self._part.offset, self._part.size // PAGE
        pages = [NvsPage(self._flash, base + i * PAGE, self._faithful) for i in range(count)]
        self._free = [page for page in pages if page.state not in BUSY]
        self._pages = sorted(
            (page for page in pages if page.state in BUSY), key=lambda page: page.sequence
        )
        self._sequence = self._pages[-1].sequence + 1 if self._pages else 0
        if self._pages:
            self._erase_duplicate()
            self._finish_freeing()
            if not self._free:
                raise EspError(esp_errors.NVS_NO_FREE_PAGES)
        else:
            self._activate_page()
        self._names = {
            item.key: item.value
            for page in self._pages
            for _, item in list(page.items())
            if item.namespace == NAMESPACES and item.type == Type.U8
        }
        self._erase_orphans()

    def _activate_page(self) -> None:
        if not self._free:
            raise EspError(esp_errors.NVS_NOT_ENOUGH_SPACE)
        page = self._free[0]
        if page.state == PageState.CORRUPT:
            page.erase()
        self._free.pop(0)
        page.sequence = self._sequence
        self._sequence += 1
        self._pages.append(page)

    def _request_page(self) -> None:
        """Get a page to write to, moving the emptiest one's items when pages run out."""
        if not self._free:
            raise EspError(esp_errors.NVS_INVALID_STATE)
        if len(self._free) >= 2:
            self._activate_page()
            return
        victim = min(self._pages, key=lambda page: page.used)  # the oldest of equals
        if victim.used == ENTRIES:
            raise EspError(esp_errors.NVS_NOT_ENOUGH_SPACE)
        victim.set_state(PageState.FREEING)
        self._move_items(victim)

    def _move_items(self, victim: NvsPage) -> None:
        self._activate_page()
        victim.copy_to(self._pages[-1])
        victim.erase()
        self._pages.remove(victim)
        self._free.append(victim)

    def _erase_duplicate(self) -> None:
        """The last item written may have an older value under the same key: erase that."""
        *older, last = self._pages
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
        """The power failed while a page was moved: begin again with a clean page."""
        victim = next((page for page in self._pages if page.state == PageState.FREEING), None)
        if victim is None:
            return
        half = self._pages[-1]
        if half.state == PageState.ACTIVE:
            half.erase()
            self._pages.remove(half)
            self._free.append(half)
        self._move_items(victim)

    def _erase_orphans(self) -> None:
        """Erase blob indices whose chunks are not all there, then chunks without an index."""
        indices, chunks = [], []
        for page in self._pages:
            for index, item in list(page.items()):
                if item.type == Type.INDEX:
                    indices.append((page, index, item))
                elif item.type == Type.CHUNK:
                    chunks.append((page, index, item))
        whole = []
        for page, index, item in indices:
            count, first = item.chunks
            mine = [
                chunk
                for _, _, chunk in chunks
                if (chunk.namespace, chunk.key) == (item.namespace, item.key)
                and first <= chunk.chunk < (VERSIONS[1] if first == VERSIONS[0] else CHUNK_ANY)
            ]
            if len(mine) == count and sum(chunk.size for chunk in mine) == item.size:
                whole.append(item)
            else:
                page.drop(index)
        for page, index, item in chunks:
            for parent in whole:
                count, first = parent.chunks
                if (parent.namespace, parent.key) == (
                    item.namespace,
                    item.key,
                ) and first <= item.chunk < first + count:
                    break
            else:
                page.drop(index)

    # Items

    def _find_item(
        self,
        namespace: int,
        type: Type | None,
        key: bytes,
        chunk: int = CHUNK_ANY,
        version: int | None = None,
    ) -> tuple[NvsPage, int, Item] | None:
        for page in self._pages:
            found = page.find_item(namespace, type, key, chunk, version)
            if found is not None:
                return page, *found
        return None

    def _read_value(
        self, namespace: int, key: bytes, kind: type[int] | type[bytes]
    ) -> int | bytes | None:
        if kind is int:
            found = self._find_item(namespace, Type.I32, key)
            return found[2].value if found is not None else None
        found = self._find_item(namespace, Type.INDEX, key)
        if found is None:
            found = self._find_item(namespace, Type.BLOB, key)
            return self._read_payload(found) if found is not None else None
        count, first = found[2].chunks
        parts = []
        for number in range(first, first + count):
            chunk = self._find_item(namespace, Type.CHUNK, key, number)
            data = self._read_payload(chunk) if chunk is not None else None
            if data is None:
                self._erase_blob(namespace, key)
                return None
            parts.append(data)
        return b"".join(parts)

    def _read_payload(self, found: tuple[NvsPage, int, Item]) -> bytes | None:
        page, index, item = found
        data = page.read_payload(index, item)
        if codec.crc32(data) != item.data_crc:
            page.erase_item(index)
            return None
        return data

    def _write_item(self, item: Item) -> None:
        if not self._pages[-1].fits(1):
            self._start_page()
            if not self._pages[-1].fits(1):
                raise EspError(esp_errors.NVS_NOT_ENOUGH_SPACE)
        self._pages[-1].write_item(item)

    def _start_page(self) -> None:
        """Close the current page and get another."""
        page = self._pages[-1]
        if page.state == PageState.ACTIVE:
            page.set_state(PageState.FULL)
        elif page.state != PageState.FULL:
            raise EspError(esp_errors.NVS_INVALID_STATE)
        self._request_page()

    def _write_blob(self, namespace: int, key: bytes, value: bytes, first: int) -> None:
        if len(value) > (len(self._pages) + len(self._free) - 1) * CHUNK_MAX:
            raise EspError(esp_errors.NVS_VALUE_TOO_LONG)
        used: list[NvsPage] = []
        try:
            self._write_chunks(namespace, key, value, first, used)
        except EspError:
            # ESP-IDF counts the chunks to erase from 0, whichever version it was writing.
            for number, page in enumerate(used):
                chunk = number if self._faithful else first + number
                found = page.find_item(namespace, Type.CHUNK, key, chunk)
                if found is not None:
                    page.erase_item(found[0])
            raise

    def _write_chunks(
        self, namespace: int, key: bytes, value: bytes, first: int, used: list[NvsPage]
    ) -> None:
        left, size = value, len(value)
        while True:
            page = self._pages[-1]
            room = page.free_bytes
            if not used and (room < size or not room and not size) and room < CHUNK_MAX // 10:
                self._start_page()
                if self._pages[-1].free_bytes == room:
                    raise EspError(esp_errors.NVS_NOT_ENOUGH_SPACE)
                continue
            if not room:
                raise EspError(esp_errors.NVS_NOT_ENOUGH_SPACE)
            part, left = left[:room], left[room:]
            page.write_item(
                Item.variable(namespace, key, Type.CHUNK, part, first + len(used)), part
            )
            used.append(page)
            if left or room - len(part) < ENTRY:
                self._start_page()
            if not left:
                index = Item.index(namespace, key, size, len(used), first)
                if not self._pages[-1].fits(1):
                    raise EspError(esp_errors.NVS_NOT_ENOUGH_SPACE)
                self._pages[-1].write_item(index)
                return

    def _erase_old(self, namespace: int, key: bytes, old: tuple[NvsPage, int, Item]) -> None:
        """Erase the old value, wherever its page was moved to meanwhile."""
        item = old[2]
        if item.type == Type.INDEX:
            self._erase_blob(namespace, key, item.chunks[1])
            return
        found = self._find_item(namespace, Type(item.type), key)
        if found is not None:
            found[0].erase_item(found[1])

    def _erase_blob(self, namespace: int, key: bytes, version: int | None = None) -> None:
        """Erase a blob's index, then its chunks; of both versions when none is given."""
        for _ in range(1 if version is not None else 2):
            found = self._find_item(namespace, Type.INDEX, key, version=version)
            if found is not None:
                found[0].erase_item(found[1])
        first = VERSIONS[0] if version is None else version
        end = VERSIONS[1] if version == VERSIONS[0] else CHUNK_ANY
        for page in self._pages:
            for index, chunk in list(page.items()):
                if (
                    (chunk.namespace, chunk.type) == (namespace, Type.CHUNK)
                    and chunk.key[:KEY_MAX] == key[:KEY_MAX]
                    and first <= chunk.chunk < end
                ):
                    page.erase_item(index)
