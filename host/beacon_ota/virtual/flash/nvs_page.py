"""One page of NVS: items appended, marked, dropped, and found again after a power cut.

See :mod:`beacon_ota.virtual.flash.nvs` for how pages make up the settings.
Source: ESP-IDF v5.5.1 ``components/nvs_flash/src/nvs_page.cpp``.
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
    PAGE,
    EntryState,
    Item,
    PageState,
    Type,
)
from beacon_ota.virtual.flash import esp_errors
from beacon_ota.virtual.flash.esp_errors import EspError
from beacon_ota.virtual.flash.nor import Flash, FlashError

BUSY = (PageState.ACTIVE, PageState.FULL, PageState.FREEING)
_VARIABLE = (Type.STR, Type.BLOB, Type.CHUNK)


class NvsPage:
    """One page, with its entry states in RAM."""

    def __init__(self, flash: Flash, base: int, faithful: bool):
        self._flash, self._base, self._faithful = flash, base, faithful
        self.state: PageState = PageState.CORRUPT
        self.sequence = 0
        self.states = [EntryState.EMPTY] * ENTRIES
        self.next = ENTRIES  # first free entry; ENTRIES when there is none
        self._load_entries()

    @property
    def used(self) -> int:
        return self.states.count(EntryState.WRITTEN)

    @property
    def first(self) -> int | None:
        return next((i for i, s in enumerate(self.states) if s == EntryState.WRITTEN), None)

    @property
    def free_bytes(self) -> int:
        """Bytes of variable data that one item can still take here."""
        if self.state == PageState.BLANK:
            return CHUNK_MAX
        if self.state == PageState.FULL or self.next >= ENTRIES - 1:
            return 0
        return (ENTRIES - self.next - 1) * ENTRY

    def write_header(self) -> None:
        """Write the header of a blank page."""
        self._program(0, codec.pack_header(self.sequence))
        self.state, self.next = PageState.ACTIVE, 0
        self.states = [EntryState.EMPTY] * ENTRIES

    def set_state(self, state: PageState) -> None:
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

    def write_item(self, item: Item, payload: bytes = b"") -> None:
        """Append an item that :meth:`fits`."""
        if self.state == PageState.BLANK:
            self.write_header()
        self.append_entry(item.pack())
        whole = len(payload) // ENTRY * ENTRY
        if whole:
            count = whole // ENTRY
            self._program(FIRST + self.next * ENTRY, payload[:whole])
            self._set_entry_states(self.next, count, EntryState.WRITTEN)
            self.next += count
        if payload[whole:]:
            self.append_entry(payload[whole:].ljust(ENTRY, b"\xff"))

    def fits(self, span: int) -> bool:
        """Tell whether an item of ``span`` entries can be appended."""
        if self.state == PageState.BLANK:
            return True
        return self.state == PageState.ACTIVE and self.next + span <= ENTRIES

    def erase_item(self, index: int) -> None:
        """Mark the item at ``index`` erased, or the one entry when it makes no sense."""
        item = self.read_item(index) if self.states[index] == EntryState.WRITTEN else None
        span = item.span if item is not None else 1
        self._set_entry_states(index, span, EntryState.ERASED)
        if self.next < index + span:
            self.next = index + span

    def read_item(self, index: int) -> Item | None:
        """Return the item that begins at an entry, None when it is not consistent."""
        at = self._base + FIRST + index * ENTRY
        item = Item.unpack(self._flash.read(at, ENTRY), ENTRIES - index)
        if item is None or item.type not in (Type.CHUNK, Type.INDEX):
            return item
        return item if (item.type == Type.INDEX) == (item.chunk == CHUNK_ANY) else None

    def read_payload(self, index: int, item: Item) -> bytes:
        """Return the variable data of an item."""
        return self._flash.read(self._base + FIRST + (index + 1) * ENTRY, item.size)

    def items(self, start: int = 0) -> Iterator[tuple[int, Item]]:
        """Yield written items; an inconsistent one is marked erased and skipped."""
        index = start
        while index < min(self.next, ENTRIES):
            step = 1
            if self.states[index] == EntryState.WRITTEN:
                item = self.read_item(index)
                if item is None:
                    self.erase_item(index)
                else:
                    step = item.span
                    yield index, item
            index += step

    def find_item(
        self,
        namespace: int,
        type: Type | None,
        key: bytes,
        chunk: int = CHUNK_ANY,
        version: int | None = None,
    ) -> tuple[int, Item] | None:
        """Return the first item of this key; one of another type ends the search.

        Args:
            namespace: its index.
            type: None takes any type but chunks.
            key: only 15 characters are compared.
            chunk: index of a chunk; ``CHUNK_ANY`` takes any.
            version: of a blob index, 0 or 0x80; None takes any.
        """
        if self.state not in BUSY:
            return None
        for index, item in self.items():
            if item.namespace != namespace or item.key[:KEY_MAX] != key[:KEY_MAX]:
                continue
            if type == Type.CHUNK:
                if item.type == Type.CHUNK and chunk in (CHUNK_ANY, item.chunk):
                    return index, item
                continue
            if item.chunk != CHUNK_ANY or version not in (None, item.data[5]):
                continue
            return (index, item) if type in (None, item.type) else None
        return None

    def copy_to(self, other: "NvsPage") -> None:
        """Copy all written items to another page."""
        if self.first is None:
            return
        if other.state == PageState.BLANK:
            other.write_header()
        index = self.first
        while index < ENTRIES:
            if self.states[index] != EntryState.WRITTEN:
                index += 1
                continue
            item = self.read_item(index)
            span = item.span if item is not None else 1
            for entry in range(index, index + span):
                at = self._base + FIRST + entry * ENTRY
                other.append_entry(self._flash.read(at, ENTRY))
            index += span

    def append_entry(self, entry: bytes) -> None:
        """Write one entry and mark it written."""
        self._program(FIRST + self.next * ENTRY, entry)
        self._set_entry_states(self.next, 1, EntryState.WRITTEN)
        self.next += 1

    def _set_entry_states(self, index: int, count: int, state: EntryState) -> None:
        """Change entry states; ESP-IDF programs the words of the bitmap from the last back."""
        for offset, word in reversed(list(codec.state_words(index, state, count))):
            self._program(offset, word)
        self.states[index : index + count] = [state] * count

    def _program(self, offset: int, data: bytes) -> None:
        try:
            self._flash.program(self._base + offset, data)
        except FlashError as error:
            self.state = PageState.CORRUPT
            raise EspError(error.code) from error

    def _load_entries(self) -> None:
        raw = self._flash.read(self._base, PAGE)
        header = codec.parse_header(raw)
        if header.state == PageState.BLANK:
            blank = raw.count(0xFF) == PAGE
            self.state = PageState.BLANK if blank else PageState.CORRUPT
            return
        if not header.ok or header.state not in BUSY:
            return
        if header.version < codec.VERSION:
            raise EspError(esp_errors.NVS_NEW_VERSION_FOUND)
        self.state, self.sequence = PageState(header.state), header.sequence
        self.states = [codec.entry_state(raw, index) for index in range(ENTRIES)]
        if self.state == PageState.ACTIVE:
            self._recover_active(raw)
        else:
            for index, item in self._all_items():
                if not self._is_complete(index, item):
                    self.erase_item(index)

    def _recover_active(self, raw: bytes) -> None:
        """Find the end of an active page, and undo what a power cut left half done."""
        if EntryState.EMPTY in self.states:
            self.next = self.states.index(EntryState.EMPTY)
        while self.next < ENTRIES:
            at = FIRST + self.next * ENTRY
            if raw[at : at + 4] == b"\xff" * 4:
                break
            self._set_entry_states(self.next, 1, EntryState.ERASED)
            self.next += 1
        seen: dict[tuple[int, bytes, int], int] = {}
        last: tuple[int, Item] | None = None
        index = 0
        while index < min(self.next, ENTRIES):
            state, item, at = self.states[index], None, index
            index += 1
            if state != EntryState.ERASED:
                item = self.read_item(at) if state == EntryState.WRITTEN else None
                if item is None:
                    self.erase_item(at)
            if item is None:
                last = None
                continue
            name = (item.namespace, item.key, item.chunk)
            if item.type in _VARIABLE:
                index = at + item.span
                if not self._is_complete(at, item):
                    self.erase_item(at)
                    last = None
                    continue
            last = (at, item)
            if name in seen and self.states[seen[name]] == EntryState.WRITTEN:
                self.erase_item(seen[name])
            seen[name] = at
        if last is not None:
            at, item = last
            chunk = CHUNK_ANY if self._faithful else item.chunk
            twin = self.find_item(item.namespace, Type(item.type), item.key, chunk)
            if twin is not None and twin[0] < at:
                self.erase_item(twin[0])

    def _all_items(self) -> Iterator[tuple[int, Item]]:
        self.next = ENTRIES
        return self.items(self.first if self.first is not None else ENTRIES)

    def _is_complete(self, index: int, item: Item) -> bool:
        states = self.states[index : index + item.span]
        return all(state == EntryState.WRITTEN for state in states)
