"""NVS as the chip keeps it: pages in flash that survive power cuts, written as ESP-IDF does.

A set writes the new item behind the last one, marks its entries written, then marks the old
item's entries erased: two bits per entry, only ever cleared. A full page gives way to a new
one; when only one free page is left, the page with the fewest used entries is marked
*freeing*, its items are copied to the free page, and it is erased. What a power cut leaves
half done is cleaned up at the next start (:meth:`Nvs.__init__`).

ESP-IDF's own recovery (v5.2 to v6.0, ``Page::mLoadEntryTable``) loses a blob in one case: power
fails after the new value's data were written and before its index was, and the old data lie
on the same page; the old data then pass for a duplicate and are erased. A failed write of a
blob of several chunks can erase the old chunk as well (``Storage::writeMultiPageBlob``). Both
are modelled when ``faithful`` is true.

Source: ESP-IDF v5.5.1 ``components/nvs_flash/src/nvs_{page,pagemanager,storage}.cpp``.
"""

from collections.abc import Iterator

from beacon_ota.images import nvs as codec
from beacon_ota.images.nvs import (
    CHUNK_ANY,
    CHUNK_MAX,
    ENTRIES,
    ENTRY,
    FIRST,
    KEY_MAX,
    NAMESPACES,
    PAGE,
    EntryState,
    Item,
    PageState,
    Type,
)
from beacon_ota.images.partitions import Partition
from beacon_ota.virtual import esp
from beacon_ota.virtual.esp import EspError
from beacon_ota.virtual.flash import Flash, FlashError

VERSIONS = (0x00, 0x80)  # first chunk index of a blob's two versions
NAMESPACES_MAX = 254
_BUSY = (PageState.ACTIVE, PageState.FULL, PageState.FREEING)
_VARIABLE = (Type.STR, Type.BLOB, Type.CHUNK)


class _Page:
    """One page, with its entry states in RAM."""

    def __init__(self, flash: Flash, base: int, faithful: bool):
        self._flash, self._base, self._faithful = flash, base, faithful
        self.state: PageState = PageState.CORRUPT
        self.sequence = 0
        self.states = [EntryState.EMPTY] * ENTRIES
        self.next = ENTRIES  # first free entry; ENTRIES when there is none
        self._load()

    @property
    def used(self) -> int:
        return self.states.count(EntryState.WRITTEN)

    @property
    def first(self) -> int | None:
        return next((i for i, s in enumerate(self.states) if s == EntryState.WRITTEN), None)

    @property
    def room(self) -> int:
        """Bytes of variable data that one item can still take here."""
        if self.state == PageState.BLANK:
            return CHUNK_MAX
        if self.state == PageState.FULL or self.next >= ENTRIES - 1:
            return 0
        return (ENTRIES - self.next - 1) * ENTRY

    def begin(self) -> None:
        """Write the header of a blank page."""
        self._program(0, codec.pack_header(self.sequence))
        self.state, self.next = PageState.ACTIVE, 0
        self.states = [EntryState.EMPTY] * ENTRIES

    def mark(self, state: PageState) -> None:
        """Change the page's state, which only clears a bit."""
        self._program(0, state.to_bytes(4, "little"))
        self.state = state

    def erase(self) -> None:
        """Erase the page; it is blank then."""
        try:
            self._flash.erase(self._base, PAGE)
        except FlashError as error:
            self.state = PageState.CORRUPT
            raise EspError(error.code) from error
        self.state, self.next = PageState.BLANK, ENTRIES
        self.states = [EntryState.EMPTY] * ENTRIES

    def write(self, item: Item, payload: bytes = b"") -> None:
        """Append an item that :meth:`fits`."""
        if self.state == PageState.BLANK:
            self.begin()
        self._append(item.pack())
        whole = len(payload) // ENTRY * ENTRY
        if whole:
            count = whole // ENTRY
            self._program(FIRST + self.next * ENTRY, payload[:whole])
            self._mark(self.next, count, EntryState.WRITTEN)
            self.next += count
        if payload[whole:]:
            self._append(payload[whole:].ljust(ENTRY, b"\xff"))

    def fits(self, span: int) -> bool:
        """Tell whether an item of ``span`` entries can be appended."""
        if self.state == PageState.BLANK:
            return True
        return self.state == PageState.ACTIVE and self.next + span <= ENTRIES

    def drop(self, index: int) -> None:
        """Mark the item at ``index`` erased, or the one entry when it makes no sense."""
        item = self.item(index) if self.states[index] == EntryState.WRITTEN else None
        span = item.span if item is not None else 1
        self._mark(index, span, EntryState.ERASED)
        if self.next < index + span:
            self.next = index + span

    def item(self, index: int) -> Item | None:
        """Return the item that begins at an entry, None when it is not consistent."""
        at = self._base + FIRST + index * ENTRY
        item = Item.unpack(self._flash.read(at, ENTRY), ENTRIES - index)
        if item is None or item.type not in (Type.CHUNK, Type.INDEX):
            return item
        return item if (item.type == Type.INDEX) == (item.chunk == CHUNK_ANY) else None

    def payload(self, index: int, item: Item) -> bytes:
        """Return the variable data of an item."""
        return self._flash.read(self._base + FIRST + (index + 1) * ENTRY, item.size)

    def items(self, start: int = 0) -> Iterator[tuple[int, Item]]:
        """Yield written items; an inconsistent one is marked erased and skipped."""
        index = start
        while index < min(self.next, ENTRIES):
            step = 1
            if self.states[index] == EntryState.WRITTEN:
                item = self.item(index)
                if item is None:
                    self.drop(index)
                else:
                    step = item.span
                    yield index, item
            index += step

    def find(
        self, namespace: int, type: Type | None, key: bytes, chunk: int = CHUNK_ANY
    ) -> tuple[int, Item] | None:
        """Return the first item of this key; one of another type ends the search.

        ``type`` None takes any but chunks; ``chunk`` CHUNK_ANY with ``Type.CHUNK`` any chunk.
        """
        if self.state not in _BUSY:
            return None
        for index, item in self.items():
            if item.namespace != namespace or item.key[:KEY_MAX] != key[:KEY_MAX]:
                continue
            if type == Type.CHUNK:
                if item.type == Type.CHUNK and chunk in (CHUNK_ANY, item.chunk):
                    return index, item
                continue
            if item.chunk != CHUNK_ANY:
                continue
            return (index, item) if type in (None, item.type) else None
        return None

    def copy_to(self, other: "_Page") -> None:
        """Copy all written items to another page."""
        if self.first is None:
            return
        if other.state == PageState.BLANK:
            other.begin()
        index = self.first
        while index < ENTRIES:
            if self.states[index] != EntryState.WRITTEN:
                index += 1
                continue
            item = self.item(index)
            span = item.span if item is not None else 1
            for entry in range(index, index + span):
                at = self._base + FIRST + entry * ENTRY
                other._append(self._flash.read(at, ENTRY))
            index += span

    def _append(self, entry: bytes) -> None:
        self._program(FIRST + self.next * ENTRY, entry)
        self._mark(self.next, 1, EntryState.WRITTEN)
        self.next += 1

    def _mark(self, index: int, count: int, state: EntryState) -> None:
        """Change entry states; ESP-IDF programs the words of the bitmap from the last back."""
        for offset, word in reversed(list(codec.state_word(index, state, count))):
            self._program(offset, word)
        self.states[index : index + count] = [state] * count

    def _program(self, offset: int, data: bytes) -> None:
        try:
            self._flash.program(self._base + offset, data)
        except FlashError as error:
            self.state = PageState.CORRUPT
            raise EspError(error.code) from error

    def _load(self) -> None:
        raw = self._flash.read(self._base, PAGE)
        header = codec.parse_header(raw)
        if header.state == PageState.BLANK:
            blank = raw.count(0xFF) == PAGE
            self.state = PageState.BLANK if blank else PageState.CORRUPT
            return
        if not header.ok or header.state not in _BUSY:
            return
        if header.version < codec.VERSION:
            raise EspError(esp.NVS_NEW_VERSION_FOUND)
        self.state, self.sequence = PageState(header.state), header.sequence
        self.states = [codec.entry_state(raw, index) for index in range(ENTRIES)]
        if self.state == PageState.ACTIVE:
            self._resume(raw)
        else:
            for index, item in self._whole():
                if not self._complete(index, item):
                    self.drop(index)

    def _resume(self, raw: bytes) -> None:
        """Find the end of an active page, and undo what a power cut left half done."""
        if EntryState.EMPTY in self.states:
            self.next = self.states.index(EntryState.EMPTY)
        while self.next < ENTRIES:
            at = FIRST + self.next * ENTRY
            if raw[at : at + 4] == b"\xff" * 4:
                break
            self._mark(self.next, 1, EntryState.ERASED)
            self.next += 1
        seen: dict[tuple[int, bytes, int], int] = {}
        last: tuple[int, Item] | None = None
        index = 0
        while index < min(self.next, ENTRIES):
            state, item, at = self.states[index], None, index
            index += 1
            if state != EntryState.ERASED:
                item = self.item(at) if state == EntryState.WRITTEN else None
                if item is None:
                    self.drop(at)
            if item is None:
                last = None
                continue
            name = (item.namespace, item.key, item.chunk)
            if item.type in _VARIABLE:
                index = at + item.span
                if not self._complete(at, item):
                    self.drop(at)
                    last = None
                    continue
            last = (at, item)
            if name in seen and self.states[seen[name]] == EntryState.WRITTEN:
                self.drop(seen[name])
            seen[name] = at
        if last is not None:
            at, item = last
            chunk = CHUNK_ANY if self._faithful else item.chunk
            twin = self.find(item.namespace, Type(item.type), item.key, chunk)
            if twin is not None and twin[0] < at:
                self.drop(twin[0])

    def _whole(self) -> Iterator[tuple[int, Item]]:
        self.next = ENTRIES
        return self.items(self.first if self.first is not None else ENTRIES)

    def _complete(self, index: int, item: Item) -> bool:
        states = self.states[index : index + item.span]
        return all(state == EntryState.WRITTEN for state in states)


class Nvs:
    """The settings of one beacon.

    Making one is ``nvs_flash_init``: it recovers what a power cut left, and erases everything
    when no page is free or the format is newer, as the MicroPython port does.

    Args:
        flash: where the partition lies.
        part: the partition, three pages or more.
        faithful: keep ESP-IDF's own defects, see the module's text.
    """

    def __init__(self, flash: Flash, part: Partition, *, faithful: bool = True):
        self._flash, self._part, self._faithful = flash, part, faithful
        try:
            self._init()
        except EspError as error:
            if error.code not in (esp.NVS_NO_FREE_PAGES, esp.NVS_NEW_VERSION_FOUND):
                raise
            try:
                flash.erase(part.offset, part.size)
            except FlashError as failure:
                raise EspError(failure.code) from failure
            self._init()

    def wear(self) -> dict[int, int]:
        """Return erases per page of the partition since the flash was made."""
        first = self._part.offset // PAGE
        return {i: self._flash.wear[first + i] for i in range(self._part.size // PAGE)}

    def open(self, name: str) -> int:
        """Return the index of a namespace; a new one is created by a write."""
        raw = name.encode()
        for known, index in self._names.items():
            if known[:KEY_MAX] == raw[:KEY_MAX]:
                return index
        if len(raw) > KEY_MAX:
            raise EspError(esp.NVS_KEY_TOO_LONG)
        taken = set(self._names.values())
        index = next((i for i in range(1, NAMESPACES_MAX + 1) if i not in taken), None)
        if index is None:
            raise EspError(esp.NVS_NOT_ENOUGH_SPACE)
        self._write(Item.number(NAMESPACES, raw, Type.U8, index))
        self._names[raw] = index
        return index

    def set(self, namespace: int, key: str, value: int | bytes) -> None:
        """Store an i32 or a blob. It is durable when this returns."""
        raw = key.encode()
        old = self._search(namespace, Type.INDEX if isinstance(value, bytes) else Type.I32, raw)
        matched = old is not None
        if old is None:
            old = self._search(namespace, None, raw)
        if matched and self._load(namespace, raw) == value:
            return
        if len(raw) > KEY_MAX:
            raise EspError(esp.NVS_KEY_TOO_LONG)
        if isinstance(value, bytes):
            first = VERSIONS[0]
            if old is not None and matched:
                first = VERSIONS[1] if old[2].chunks[1] == VERSIONS[0] else VERSIONS[0]
            self._write_blob(namespace, raw, value, first)
        else:
            self._write(Item.number(namespace, raw, Type.I32, value))
        if old is not None:
            self._remove(namespace, raw, old)

    def get(self, namespace: int, key: str) -> int | bytes | None:
        """Return an i32 or a blob, None when there is neither."""
        return self._load(namespace, key.encode())

    def erase(self, namespace: int, key: str) -> None:
        """Erase a key of any type (``NVS_NOT_FOUND``)."""
        raw = key.encode()
        found = self._search(namespace, None, raw)
        if found is None:
            raise EspError(esp.NVS_NOT_FOUND)
        page, index, item = found
        if item.type == Type.INDEX:
            self._remove_blob(namespace, raw, page, index, item)
        else:
            page.drop(index)

    def all(self) -> dict[tuple[str, str], int | bytes]:
        """Return every i32 and blob by (namespace, key)."""
        names = {index: name.decode("ascii", "replace") for name, index in self._names.items()}
        found: dict[tuple[str, str], int | bytes] = {}
        for page in self._pages:
            for _, item in list(page.items()):
                if item.namespace in names and item.type in (Type.I32, Type.INDEX, Type.BLOB):
                    value = self._load(item.namespace, item.key)
                    if value is not None:
                        key = item.key.decode("ascii", "replace")
                        found[names[item.namespace], key] = value
        return found

    # Pages

    def _init(self) -> None:
        base, count = self._part.offset, self._part.size // PAGE
        pages = [_Page(self._flash, base + i * PAGE, self._faithful) for i in range(count)]
        self._free = [page for page in pages if page.state not in _BUSY]
        self._pages = sorted(
            (page for page in pages if page.state in _BUSY), key=lambda page: page.sequence
        )
        self._sequence = self._pages[-1].sequence + 1 if self._pages else 0
        if self._pages:
            self._drop_twin()
            self._finish_freeing()
            if not self._free:
                raise EspError(esp.NVS_NO_FREE_PAGES)
        else:
            self._activate()
        self._names = {
            item.key: item.value
            for page in self._pages
            for _, item in list(page.items())
            if item.namespace == NAMESPACES and item.type == Type.U8
        }
        self._drop_orphans()

    def _activate(self) -> None:
        if not self._free:
            raise EspError(esp.NVS_NOT_ENOUGH_SPACE)
        page = self._free[0]
        if page.state == PageState.CORRUPT:
            page.erase()
        self._free.pop(0)
        page.sequence = self._sequence
        self._sequence += 1
        self._pages.append(page)

    def _new_page(self) -> None:
        """Get a page to write to, moving the emptiest one's items when pages run out."""
        if not self._free:
            raise EspError(esp.NVS_INVALID_STATE)
        if len(self._free) >= 2:
            self._activate()
            return
        victim = min(self._pages, key=lambda page: page.used)  # the oldest of equals
        if victim.used == ENTRIES:
            raise EspError(esp.NVS_NOT_ENOUGH_SPACE)
        victim.mark(PageState.FREEING)
        self._move(victim)

    def _move(self, victim: _Page) -> None:
        self._activate()
        victim.copy_to(self._pages[-1])
        victim.erase()
        self._pages.remove(victim)
        self._free.append(victim)

    def _drop_twin(self) -> None:
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
                found = page.find(newest.namespace, type, newest.key, chunk)
                if found is not None:
                    page.drop(found[0])
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
        self._move(victim)

    def _drop_orphans(self) -> None:
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

    def _search(
        self, namespace: int, type: Type | None, key: bytes, chunk: int = CHUNK_ANY
    ) -> tuple[_Page, int, Item] | None:
        for page in self._pages:
            found = page.find(namespace, type, key, chunk)
            if found is not None:
                return page, *found
        return None

    def _load(self, namespace: int, key: bytes) -> int | bytes | None:
        found = self._search(namespace, Type.I32, key)
        if found is not None:
            return found[2].value
        found = self._search(namespace, Type.INDEX, key)
        if found is None:
            found = self._search(namespace, Type.BLOB, key)
            return self._data(found) if found is not None else None
        count, first = found[2].chunks
        parts = []
        for number in range(first, first + count):
            chunk = self._search(namespace, Type.CHUNK, key, number)
            data = self._data(chunk) if chunk is not None else None
            if data is None:
                self._remove_blob(namespace, key, *found)
                return None
            parts.append(data)
        return b"".join(parts)

    def _data(self, found: tuple[_Page, int, Item]) -> bytes | None:
        page, index, item = found
        data = page.payload(index, item)
        if codec.crc(data) != item.data_crc:
            page.drop(index)
            return None
        return data

    def _write(self, item: Item) -> None:
        if not self._pages[-1].fits(1):
            self._turn()
            if not self._pages[-1].fits(1):
                raise EspError(esp.NVS_NOT_ENOUGH_SPACE)
        self._pages[-1].write(item)

    def _turn(self) -> None:
        """Close the current page and get another."""
        page = self._pages[-1]
        if page.state == PageState.ACTIVE:
            page.mark(PageState.FULL)
        elif page.state != PageState.FULL:
            raise EspError(esp.NVS_INVALID_STATE)
        self._new_page()

    def _write_blob(self, namespace: int, key: bytes, value: bytes, first: int) -> None:
        if len(value) > (len(self._pages) + len(self._free) - 1) * CHUNK_MAX:
            raise EspError(esp.NVS_VALUE_TOO_LONG)
        used: list[_Page] = []
        try:
            self._write_chunks(namespace, key, value, first, used)
        except EspError:
            # ESP-IDF counts the chunks to erase from 0, whichever version it was writing.
            for number, page in enumerate(used):
                chunk = number if self._faithful else first + number
                found = page.find(namespace, Type.CHUNK, key, chunk)
                if found is not None:
                    page.drop(found[0])
            raise

    def _write_chunks(
        self, namespace: int, key: bytes, value: bytes, first: int, used: list[_Page]
    ) -> None:
        left, size = value, len(value)
        while True:
            page = self._pages[-1]
            room = page.room
            if not used and (room < size or not room and not size) and room < CHUNK_MAX // 10:
                self._turn()
                if self._pages[-1].room == room:
                    raise EspError(esp.NVS_NOT_ENOUGH_SPACE)
                continue
            if not room:
                raise EspError(esp.NVS_NOT_ENOUGH_SPACE)
            part, left = left[:room], left[room:]
            page.write(Item.variable(namespace, key, Type.CHUNK, part, first + len(used)), part)
            used.append(page)
            if left or room - len(part) < ENTRY:
                self._turn()
            if not left:
                index = Item.index(namespace, key, size, len(used), first)
                if not self._pages[-1].fits(1):
                    raise EspError(esp.NVS_NOT_ENOUGH_SPACE)
                self._pages[-1].write(index)
                return

    def _remove(self, namespace: int, key: bytes, old: tuple[_Page, int, Item]) -> None:
        """Erase the old value, wherever its page was moved to meanwhile."""
        _, _, item = old
        if item.type == Type.INDEX:
            for page in self._pages:
                for index, other in list(page.items()):
                    if (
                        (other.namespace, other.type) == (namespace, Type.INDEX)
                        and other.key[:KEY_MAX] == key[:KEY_MAX]
                        and other.chunks[1] == item.chunks[1]
                    ):
                        self._remove_blob(namespace, key, page, index, other)
                        return
            return
        found = self._search(namespace, Type(item.type), key)
        if found is not None:
            found[0].drop(found[1])

    def _remove_blob(self, namespace: int, key: bytes, page: _Page, index: int, item: Item) -> None:
        """Erase a blob's index, then its chunks."""
        page.drop(index)
        first = item.chunks[1]
        end = VERSIONS[1] if first == VERSIONS[0] else CHUNK_ANY
        for page in self._pages:
            for index, chunk in list(page.items()):
                if (
                    (chunk.namespace, chunk.type) == (namespace, Type.CHUNK)
                    and chunk.key[:KEY_MAX] == key[:KEY_MAX]
                    and first <= chunk.chunk < end
                ):
                    page.drop(index)
